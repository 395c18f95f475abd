"""The stack's secrets and its certificate: made once, kept, and readable by their owner alone."""

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from flows.local import certificate
from flows.local.keys import WEBHOOK_KEY, credential, load_keys, renew_keys
from ptpipeline.errors import StackError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_made_once_and_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "stack.env"
    path.write_text("PREFECT_API_AUTH_STRING=ptp:old\nMINE=kept\n")
    first, written = load_keys(tmp_path), path.read_text()
    assert first["PREFECT_API_AUTH_STRING"] == "ptp:old"
    assert len(set(first.values())) == len(first)
    assert "MINE=kept" in written
    assert "MINE" not in first
    assert (load_keys(tmp_path), path.read_text(), mode(path)) == (first, written, 0o600)


def test_each_server_has_its_own_credential() -> None:
    keys = {
        "PREFECT_API_AUTH_STRING": "ptp:one",
        "MLFLOW_TRACKING_USERNAME": "ptp",
        "MLFLOW_TRACKING_PASSWORD": "other",
    }
    assert (credential(keys, "prefect"), credential(keys, "mlflow")) == ("ptp:one", "ptp:other")
    with pytest.raises(StackError, match="holds no credential for prefect: run `ptp up`"):
        credential({}, "prefect")


def test_one_password_opens_both_servers_of_a_new_stack(tmp_path: Path) -> None:
    keys = load_keys(tmp_path)
    assert credential(keys, "prefect") == credential(keys, "mlflow")


def public_keys(home: Path) -> list[bytes]:
    paths = certificate.locate(home)
    held = x509.load_pem_x509_certificate(paths.certificate.read_bytes()).public_key()
    own = load_pem_private_key(paths.key.read_bytes(), None).public_key()
    return [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (held, own)]


def test_a_certificate_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    certificate.ensure(tmp_path)
    paths = certificate.locate(tmp_path)
    before = public_keys(tmp_path)
    assert before[0] == before[1]
    assert [mode(path) for path in (paths.certificate.parent, *paths)] == [0o700, 0o600, 0o600]
    certificate.ensure(tmp_path)
    assert public_keys(tmp_path) == before
    held = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
    assert held.not_valid_after_utc.year - held.not_valid_before_utc.year >= 99  # its end would only stop the stack


@pytest.mark.parametrize("lost", [0, 1])
def test_a_certificate_without_its_key_is_made_anew(tmp_path: Path, lost: int) -> None:
    certificate.ensure(tmp_path)
    certificate.locate(tmp_path)[lost].unlink()
    certificate.ensure(tmp_path)
    held, own = public_keys(tmp_path)
    assert held == own


def test_renewed_keys_open_nothing_that_the_old_ones_did_and_read_what_was_encrypted(tmp_path: Path) -> None:
    before = load_keys(tmp_path)
    renew_keys(tmp_path)
    after = load_keys(tmp_path)
    assert {name for name in before if before[name] == after[name]} == {WEBHOOK_KEY, "MLFLOW_TRACKING_USERNAME"}
