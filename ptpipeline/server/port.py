"""The port that a process listens on, taken before anybody is told of it."""

import socket

from ptpipeline.errors import SettingsError


def take_port(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; nobody connects before it listens.

    Raises SettingsError if the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        reason = str(getattr(error, "strerror", None) or error).split(" (")[0]
        raise SettingsError(
            f"cannot listen on {host} port {port} ({reason}); choose another --port or --host"
        ) from error
    return taken
