"""A certificate that is renewed on disk is used by the next connections, and a broken one by none."""

import os
import ssl
import time
from pathlib import Path

import httpx
import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.server import listen
from ptpipeline.server.certificates import Certificate, open_certificate
from ptpipeline.server.listen import Address
from tests.server.serving import running
from tests.server.test_listen import make_pair


def shown(certificate: Certificate) -> str:
    """The certificate that a client sees which names no server, as PEM; both ends are in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl._create_unverified_context().wrap_bio(down, up)
    server = certificate.context.wrap_bio(up, down, server_side=True)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    seen = client.getpeercert(binary_form=True)
    assert seen
    return ssl.DER_cert_to_PEM_cert(seen)


def test_half_a_renewal_changes_nothing_and_the_whole_one_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "next").mkdir()
    (cert, key), (next_cert, next_key) = make_pair(tmp_path), make_pair(tmp_path / "next")
    certificate, before = Certificate(cert, key), cert.read_text()
    cert.write_text(next_cert.read_text())
    for _ in range(2):
        certificate.renew()
    assert (shown(certificate), caplog.text.count("the certificate before it stays in use")) == (before, 1)
    key.unlink()
    certificate.renew()
    assert shown(certificate) == before
    key.write_text(next_key.read_text())
    certificate.renew()
    assert shown(certificate) == cert.read_text() != before


def test_a_server_shows_a_renewed_certificate_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "RENEWAL_TICKS", 1)
    pair = make_pair(tmp_path)
    with running(tmp_path, address=Address("127.0.0.1", 0, *pair)) as server:
        make_pair(tmp_path)
        deadline, place = time.monotonic() + 20, ("127.0.0.1", server.server.port)
        while ssl.get_server_certificate(place) != pair[0].read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(("begins", "days", "told"), [(-9, 3, True), (2, 9, True), (0, 1, False)])
def test_a_certificate_that_clients_refuse_by_its_dates_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, begins: int, days: int, told: bool
) -> None:
    """At the start, and if it is put in another one's place; the server goes on: some clients do not look."""
    certificate = Certificate(*make_pair(tmp_path, begins, days))
    assert caplog.text.count("so that clients refuse it now") == told
    make_pair(tmp_path, begins, days)
    certificate.renew()
    assert caplog.text.count("so that clients refuse it now") == 2 * told


def test_a_client_that_looks_refuses_a_certificate_that_has_expired(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, -9, 3)
    with running(tmp_path, address=Address("127.0.0.1", 0, *pair)) as server:
        with pytest.raises(httpx.ConnectError, match="expired"):
            httpx.get(f"{server.url}/healthz", verify=ssl.create_default_context(cafile=str(pair[0])))
        assert httpx.get(f"{server.url}/healthz", verify=False).status_code == 200


def test_a_certificate_has_a_key_and_both_are_files(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path)
    for pair in ((certificate, None), (None, key)):
        with pytest.raises(SettingsError, match="TLS takes both --tls-cert and --tls-key"):
            open_certificate(*pair)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="cannot be used"):  # and nobody waits for who writes into it
        open_certificate(tmp_path / "pipe", key)
