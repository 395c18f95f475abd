"""A port is taken once, and who cannot have it is told what to do."""

import socket

import pytest

from ptpipeline.errors import SettingsError
from ptpipeline.server.port import take_port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_is_taken_before_it_listens(host: str) -> None:
    with take_port(host, 0) as taken:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(taken.getsockname()[:2], timeout=5)
        taken.listen()
        with socket.create_connection(taken.getsockname()[:2], timeout=5):
            pass


def test_a_port_that_cannot_be_had_is_named() -> None:
    with take_port("127.0.0.1", 0) as other:
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            SettingsError, match=rf"cannot listen on 127\.0\.0\.1 port {port} \(Address already in use\)"
        ):
            take_port("127.0.0.1", port)
    with pytest.raises(SettingsError, match="cannot listen on no such host port 0"):
        take_port("no such host", 0)
    with pytest.raises(SettingsError, match=r"cannot listen on 127\.0\.0\.1 port 70000"):
        take_port("127.0.0.1", 70000)
