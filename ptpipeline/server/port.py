"""The port that a process listens on, taken before anybody is told of it."""

import socket

from ptpipeline.errors import SettingsError


class _Taken(socket.socket):
    """A socket that shares its port with connections of a server that ended, and with no other program.

    Linux lets any number of programs bind one port as long as all say that they share it and none listens yet. So this
    one says it while it is bound and when it listens, and not in between.
    """

    def listen(self, backlog: int = 128, /) -> None:
        """Let clients connect."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().listen(backlog)


def take_port(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; nobody connects before it listens, and nobody else takes it.

    Raises SettingsError if the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = _Taken(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except (OSError, OverflowError) as error:
        taken.close()
        reason = str(getattr(error, "strerror", None) or error).split(" (")[0]
        raise SettingsError(
            f"cannot listen on {host} port {port} ({reason}); choose another --port or --host"
        ) from error
    return taken
