"""Who listens at a port of this machine."""

import os
import socket

import pytest

from ptpipeline.listeners import find_listeners, find_strangers, is_running
from tests.processes import as_another_user


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::ffff:127.0.0.1"),
        (socket.AF_INET6, "::"),
    ],
)
def test_whoever_answers_at_this_machine_is_found(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, 0))
        listener.listen()
        assert find_listeners(listener.getsockname()[1]) == {os.geteuid()}


def test_a_bound_port_without_a_listener_answers_nobody() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert find_listeners(bound.getsockname()[1]) == set()


def test_a_listener_elsewhere_does_not_count() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        assert find_listeners(listener.getsockname()[1]) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize(("owner", "strangers"), [(65533, set()), (65534, {65533})])
def test_a_stranger_is_neither_the_owner_nor_root(owner: int, strangers: set[int]) -> None:
    with as_another_user(65533):
        listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_server(("127.0.0.1", 0)) as of_root:
        assert find_strangers(listener.getsockname()[1], owner) == strangers
        assert find_strangers(of_root.getsockname()[1], owner) == set()


def test_only_a_process_that_runs_is_running() -> None:
    assert is_running(os.getpid())
    assert not is_running(2**22 + 1)  # above the kernel's last pid
