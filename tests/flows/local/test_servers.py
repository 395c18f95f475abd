"""When a worker is ready, and which ports the storage's inner servers get."""

import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.fixtures.s3_server import free_ports
from flows.local import servers
from flows.local.keys import load_keys
from flows.local.process import Process
from flows.local.servers import GRPC_OFFSET, GRPC_SOCKET, MAKE, StackConfig
from ptpipeline.errors import StackError
from tests.flows.server.test_prefect import Prefect, listening
from tests.processes import as_another_user, in_child

BEGAN = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "seconds", "ready"),
    [("local", 1, True), ("local", -1, False), ("elsewhere", 1, False)],  # an earlier one beat before it was started
)
def test_a_worker_is_ready_once_it_has_sent_a_heartbeat_of_its_own(
    tmp_path: Path, name: str, seconds: int, ready: bool
) -> None:
    beat = (BEGAN + timedelta(seconds=seconds)).isoformat()
    workers = [{"name": name, "last_heartbeat_time": beat}]
    answers = {"POST /work_pools/ptp/workers/filter": lambda _: (200, workers)}
    with listening(Prefect(answers)) as prefect:
        config = StackConfig(tmp_path, {"prefect": urlsplit(prefect.url).port or 0}, load_keys(tmp_path))
        process = Process(pid=1, created=BEGAN.timestamp())
        assert servers._worker_ready(config, process) == ready
    assert not servers._worker_ready(config, process)  # nobody answers any more


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_server_at_another_users_port_is_not_asked(tmp_path: Path) -> None:
    answers = {"POST /work_pools/ptp/workers/filter": lambda _: (200, [])}
    with as_another_user(), listening(Prefect(answers)) as prefect:
        os.seteuid(0)
        config = StackConfig(tmp_path, {"prefect": urlsplit(prefect.url).port or 0}, load_keys(tmp_path))
        assert not servers._worker_ready(config, Process(pid=1, created=BEGAN.timestamp()))
    assert prefect.asked == []


def test_a_mark_names_the_stack_the_server_and_its_make(tmp_path: Path) -> None:
    assert StackConfig(tmp_path, {}, {}).mark("mlflow") == f"{tmp_path}//mlflow/{MAKE}"


def test_inner_ports_are_free_with_those_of_their_grpc() -> None:
    first = next(port for port in free_ports(20) if port + GRPC_OFFSET + 50 <= 65_535 and port < servers.LAST_PORT - 50)
    with socket.create_server(("127.0.0.1", first + GRPC_OFFSET)):
        one, two = servers._choose_inner_ports(first, 2, [])
    assert first < one < two


@pytest.fixture
def socket_file() -> Iterator[tuple[int, Path]]:
    """A free port with that of its gRPC, and where SeaweedFS's master would make a socket for the latter."""
    paths = {port: Path(GRPC_SOCKET.format(name="master", port=port + GRPC_OFFSET)) for port in free_ports(100)}
    port, path = next((port, path) for port, path in paths.items() if servers.fits_weed(port) and not path.exists())
    yield port, path
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def test_a_port_whose_socket_cannot_be_made_is_passed_over(socket_file: tuple[int, Path]) -> None:
    port, path = socket_file
    path.mkdir()
    assert not servers.fits_weed(port)
    assert port not in servers._choose_inner_ports(port, 2, [])


def test_a_socket_that_an_own_server_left_behind_is_in_nobodys_way(socket_file: tuple[int, Path]) -> None:
    port, path = socket_file
    path.touch()
    assert servers.fits_weed(port)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_socket_of_another_user_takes_its_port(socket_file: tuple[int, Path]) -> None:
    port, path = socket_file
    path.touch()

    def as_nobody() -> None:
        os.setuid(65534)
        sys.exit(servers.fits_weed(port))

    in_child(as_nobody, ends=0)


def test_inner_ports_are_none_of_the_other_servers_which_start_behind_them() -> None:
    first, second, *_ = servers._choose_inner_ports(free_ports(1)[0], 4, [])
    one, *_ = servers._choose_inner_ports(first, 1, [first, second + GRPC_OFFSET])
    assert one > second


def test_inner_ports_lie_behind_the_last_port_too_and_end_where_ports_end() -> None:
    assert len(servers._choose_inner_ports(servers.LAST_PORT + 1, 4, [])) == 4
    with pytest.raises(StackError, match="name a lower port by `ptp up --s3-port`"):
        servers._choose_inner_ports(2**16 - GRPC_OFFSET - 3, 4, [])
