"""The client of Prefect's server, made from whatever the environment names."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import api
from ptpipeline.errors import SettingsError

AWAY = "http://192.0.2.1:9/api"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has made no client, in an environment that names no proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    api._client.cache_clear()
    yield
    api._client.cache_clear()


@pytest.mark.parametrize("address", ["http://[::1", "socks5://127.0.0.1:9", "ftp://127.0.0.1:9", "http://host:port"])
def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(SettingsError, match=r"ALL_PROXY names cannot be used .*exempt Prefect's host by NO_PROXY"):
        api.call("GET", AWAY)


def test_certificates_that_are_not_there_are_one_sentence(tmp_path: Path) -> None:
    code = f"from flows.server.api import call; call('GET', {AWAY!r})"  # a process reads them once
    environment = os.environ | {"SSL_CERT_FILE": str(tmp_path / "missing.pem")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "SettingsError: the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read" in done.stderr
