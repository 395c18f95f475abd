"""Which ports `ptp up` takes, and when it refuses."""

import socket
from contextlib import ExitStack

import pytest

from benchmarks.fixtures.s3_server import free_ports
from flows.local import ports
from flows.local.ports import Ports, choose_ports
from flows.local.process import is_free
from flows.local.servers import GRPC_OFFSET, LAST_PORT
from ptpipeline.errors import StackError


def recorded(storage: int, mlflow: int, prefect: int) -> dict[str, int]:
    return {"storage": storage, "mlflow": mlflow, "prefect": prefect}


def test_a_port_is_the_one_before_unless_another_is_given() -> None:
    storage, mlflow, prefect, other = free_ports(4)
    before = recorded(storage, mlflow, prefect)
    chosen = choose_ports(Ports(mlflow=other), before, {})
    assert chosen == {"storage": storage, "mlflow": other, "prefect": prefect}


def test_two_servers_never_share_a_port_and_a_busy_one_is_passed_over() -> None:
    storage, one, busy = free_ports(3)
    with socket.create_server(("127.0.0.1", busy)):
        chosen = choose_ports(Ports(), recorded(storage, busy, one), {})
        assert chosen["mlflow"] > busy
    chosen = choose_ports(Ports(), recorded(storage, one, one), {})
    assert chosen["mlflow"] == one < chosen["prefect"]


def test_a_given_port_that_is_busy_is_refused_and_so_is_another_than_a_running_servers() -> None:
    storage, mlflow, prefect, busy = free_ports(4)
    before = recorded(storage, mlflow, prefect)
    with socket.create_server(("127.0.0.1", busy)), pytest.raises(StackError, match=f"port {busy} for mlflow is busy"):
        choose_ports(Ports(mlflow=busy), before, {})
    running = {"mlflow"}
    assert choose_ports(Ports(mlflow=mlflow), before, running)["mlflow"] == mlflow
    with pytest.raises(StackError, match=f"runs on port {mlflow} already, not on {busy}: `ptp down` first"):
        choose_ports(Ports(mlflow=busy), before, running)


def test_a_port_that_is_given_to_one_server_is_chosen_for_no_other() -> None:
    storage, mlflow, prefect = free_ports(3)
    before = recorded(storage, mlflow, prefect)
    chosen = choose_ports(Ports(prefect=mlflow), before, {})
    assert (chosen["prefect"], len({*chosen.values()})) == (mlflow, 3)
    with pytest.raises(StackError, match=f"port {mlflow} is given for two servers: give each a port of its own"):
        choose_ports(Ports(mlflow=mlflow, prefect=mlflow), before, {})


def test_a_port_for_the_storage_is_busy_if_that_of_its_grpc_is() -> None:
    storage, mlflow, prefect = free_ports(3)
    with socket.create_server(("127.0.0.1", storage + GRPC_OFFSET)), pytest.raises(StackError, match="storage is busy"):
        choose_ports(Ports(storage=storage), recorded(storage, mlflow, prefect), {})


def test_no_server_is_given_the_port_of_the_storages_grpc() -> None:
    storage, one, two = free_ports(3)
    grpc = storage + GRPC_OFFSET
    before = recorded(storage, grpc, one)
    chosen = choose_ports(Ports(), before, {})
    assert (chosen["storage"], chosen["mlflow"] > grpc) == (storage, True)
    chosen = choose_ports(Ports(mlflow=grpc), before, {})
    assert (chosen["storage"] > storage, chosen["mlflow"]) == (True, grpc)
    with pytest.raises(StackError, match=f"port {grpc} is given for two servers"):
        choose_ports(Ports(storage=storage, prefect=grpc), recorded(storage, one, two), {})


def test_the_last_port_may_be_taken_and_behind_it_there_is_none() -> None:
    """A person may have named it, and `ptp up` takes the port of before."""
    with ExitStack() as taken:
        if is_free(LAST_PORT):
            assert ports._next_free_port("mlflow", LAST_PORT, set()) == LAST_PORT
            taken.enter_context(socket.create_server(("127.0.0.1", LAST_PORT)))
        told = f"no port from {LAST_PORT} to {LAST_PORT} is free for storage: name one by `ptp up --s3-port`"
        with pytest.raises(StackError, match=told):
            ports._next_free_port("storage", LAST_PORT, set())


def test_storage_needs_the_port_of_its_grpc_too() -> None:
    port = next(port for port in free_ports(20) if port + GRPC_OFFSET <= 65_535)
    assert ports._is_usable("storage", port)
    with socket.create_server(("127.0.0.1", port + GRPC_OFFSET)):
        assert not ports._is_usable("storage", port)
        assert ports._is_usable("mlflow", port)
