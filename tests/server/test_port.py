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


def test_a_port_that_another_process_will_listen_on_is_taken() -> None:
    """A server loads its base for minutes before it listens: a second one has to learn of it at its start."""
    with take_port("127.0.0.1", 0) as first, pytest.raises(SettingsError, match="Address already in use"):
        take_port("127.0.0.1", first.getsockname()[1])


def test_connections_of_a_server_that_ended_keep_no_port_from_the_next_one() -> None:
    with take_port("127.0.0.1", 0) as ended:
        ended.listen()
        address = ended.getsockname()
        with socket.create_connection(address) as client:
            ended.accept()[0].close()  # who closes first waits for a minute (TIME-WAIT)
            client.recv(1)
    with take_port(*address) as taken:
        taken.listen()
        with socket.create_connection(address, timeout=5):
            pass
