"""Which ports the servers of the local stack take."""

from collections.abc import Collection, Mapping

from flows.local.process import is_free
from flows.local.servers import DEFAULT_PORTS, GRPC_OFFSET, GRPC_SOCKET, LAST_PORT, fits_weed
from ptpipeline.errors import StackError
from ptpipeline.records.base import Record


class Ports(Record):
    """Requested ports; None takes the port used before, else the default, else the next free one."""

    storage: int | None = None
    mlflow: int | None = None
    prefect: int | None = None


def choose_ports(requested: Ports, recorded: Mapping[str, int], running: Collection[str]) -> dict[str, int]:
    """Return a port for each server that has one; those that run keep the recorded one.

    Raises StackError if a requested port is busy, requested twice, not the one of a running server, or if none is free.
    """
    chosen: dict[str, int] = {}
    wanted = [
        port
        for name in DEFAULT_PORTS
        if (given := getattr(requested, name)) is not None
        for port in _list_ports(name, given)
    ]
    for name in DEFAULT_PORTS:
        given = getattr(requested, name)
        if name in running:
            chosen[name] = recorded[name]
            if given not in (None, recorded[name]):
                raise StackError(
                    f"{name} runs on port {recorded[name]} already, not on {given}: `ptp down` first, or leave "
                    "the port out"
                )
        elif given is not None:
            if wanted.count(given) > 1:
                raise StackError(
                    f"port {given} is given for two servers: give each a port of its own, or leave one out"
                )
            if not _is_usable(name, given):
                sockets = GRPC_SOCKET.format(name="*", port=given + GRPC_OFFSET)
                also = f", or {sockets} is another user's" if name == "storage" else ""
                raise StackError(
                    f"port {given} for {name} is busy{also}: free it, or leave the port out to take the next free one"
                )
            chosen[name] = given
        else:
            others = {port for other in chosen for port in _list_ports(other, chosen[other])}
            chosen[name] = _next_free_port(name, recorded[name], {*others, *wanted})
    return chosen


def _next_free_port(name: str, first: int, taken: set[int]) -> int:
    for port in range(first, LAST_PORT + 1):
        if _is_usable(name, port) and taken.isdisjoint(_list_ports(name, port)):
            return port
    option = "s3" if name == "storage" else name
    raise StackError(f"no port from {first} to {LAST_PORT} is free for {name}: name one by `ptp up --{option}-port`")


def _is_usable(name: str, port: int) -> bool:
    return fits_weed(port) if name == "storage" else is_free(port)


def _list_ports(name: str, port: int) -> list[int]:
    """Return the ports that a server takes beside the one that it is given, and that one."""
    return [port, port + GRPC_OFFSET] if name == "storage" else [port]
