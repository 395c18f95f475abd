"""The backends: SeaweedFS behind a proxy that injects faults, MLflow, PostgreSQL; each can be killed and restarted on
its port.
"""

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import psycopg
import stamina

from benchmarks.chaos.target import Target
from benchmarks.faults import FaultProxy
from benchmarks.fixtures.mlflow_server import migrate, mlflow_command, mlflow_environment
from benchmarks.fixtures.postgres import Postgres, running_postgres
from benchmarks.fixtures.s3_server import free_ports, running_s3, wait_until_healthy
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.storage import S3Store

SILENCE_SECONDS = 2.0
READY = "ready"


class ServerProcess:
    """A server's process group, at one address for its whole life."""

    def __init__(
        self, command: Sequence[str], folder: Path, url: str, health: str, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._command, self._folder, self.url, self._health = list(command), folder, url, f"{url}{health}"
        self._environment = environment
        self.start()
        self.wait()

    def start(self) -> None:
        """Start it, without waiting for its answer."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers; raise RuntimeError, with the end of its log, if it does not."""
        wait_until_healthy(self._health, self._process, self._folder / "server.log")

    def kill(self) -> None:
        """kill -9."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Backends:
    """All servers, and the targets on them."""

    def __init__(self, folder: Path, s3: ServerProcess, mlflow: ServerProcess, postgres: Postgres) -> None:
        self.folder, self.s3, self.mlflow, self.postgres = folder, s3, mlflow, postgres
        self.proxy = FaultProxy(s3.url, silence=SILENCE_SECONDS)
        self.restarts: Counter[str] = Counter()
        boto3.client("s3", endpoint_url=s3.url).create_bucket(Bucket=READY)
        self._ready_store = S3Store(READY, endpoint=s3.url)

    def make_target(self, tasks: int, ledger: str = "postgresql", store: str = "s3") -> Target:
        """Make an empty registry of that many tasks, with unique names: all targets share the MLflow server."""
        name = uuid.uuid4().hex[:10]
        folder = self.folder / name
        folder.mkdir()
        url = self.postgres.create_database(name) if ledger == "postgresql" else f"sqlite:///{folder}/ledger.db"
        if store == "s3":
            boto3.client("s3", endpoint_url=self.s3.url).create_bucket(Bucket=name)
        return Target(
            ledger=url,
            store=f"s3://{name}" if store == "s3" else (folder / "store").as_uri(),
            mlflow=self.mlflow.url,
            tasks=tuple(f"t{number}-{name}" for number in range(tasks)),
            endpoint=self.proxy.endpoint,
            direct=self.s3.url,
        )

    def restart(self, server: str) -> None:
        """kill -9 and start again, without waiting for MLflow, which takes seconds to start."""
        self.restarts[server] += 1
        if server == "postgresql":
            self.restart_postgres()
        else:
            process = self.s3 if server == "s3" else self.mlflow
            process.kill()
            process.start()

    def restart_postgres(self) -> None:
        """kill -9 and start again, with repeats: children of the killed server may hold its memory for a moment."""
        self.postgres.kill()
        for attempt in range(20):
            try:
                self.postgres.start()
            except RuntimeError:
                if attempt == 19:
                    raise
                time.sleep(0.1)
            else:
                return

    def wait(self) -> None:
        """Wait until every server answers; SeaweedFS reports itself healthy before it finds its objects again."""
        self.s3.wait()
        self.mlflow.wait()
        for attempt in stamina.retry_context(on=ServiceUnavailable, attempts=None, timeout=60, wait_max=0.5):
            with attempt:
                self._ready_store.create(READY, b"ready")
                self._ready_store.create(f"{READY}-{uuid.uuid4().hex}", b"ready")

    def drop_mlflow(self) -> None:
        """Replace MLflow's database by an empty one, on the same port; delete its artifacts."""
        self.mlflow.kill()
        for path in self.folder.glob("mlflow/mlflow.db*"):
            path.unlink()
        shutil.rmtree(self.folder / "mlflow" / "artifacts", ignore_errors=True)
        shutil.copy(self.folder / "mlflow" / "empty.db", self.folder / "mlflow" / "mlflow.db")
        self.restarts["mlflow"] += 1
        self.mlflow.start()

    def back_up(self, target: Target) -> str:
        """Copy the target's ledger as it is now; return the copy's name."""
        name = target.ledger.rsplit("/", 1)[1]
        self._copy_database(name, f"{name}-backup")
        return f"{name}-backup"

    def restore(self, target: Target, backup: str) -> None:
        """Replace the target's ledger by that backup."""
        name = target.ledger.rsplit("/", 1)[1]
        with self._connect() as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        self._copy_database(backup, name)

    def _copy_database(self, source: str, target: str) -> None:
        with self._connect() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (source,))
            connection.execute(f'CREATE DATABASE "{target}" TEMPLATE "{source}"')

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(), autocommit=True)


@contextmanager
def run_backends(folder: Path) -> Iterator[Backends]:
    """Run all servers over `folder` until the block ends; the environment holds S3's keys meanwhile."""
    for name in ("s3", "mlflow"):
        (folder / name).mkdir(parents=True)
    with running_s3(folder / "s3") as first:  # only to learn how it is started: this one cannot be restarted
        command, environment = [str(part) for part in first.process.args], first.environment  # type: ignore[union-attr]
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with running_postgres(durable=True) as postgres, ExitStack() as stack:
            s3 = ServerProcess(command, folder / "s3", first.endpoint, "/healthz")
            stack.callback(s3.kill)
            mlflow = _start_mlflow(folder / "mlflow")
            stack.callback(mlflow.kill)
            migrate(mlflow.url)
            shutil.copy(folder / "mlflow" / "mlflow.db", folder / "mlflow" / "empty.db")
            backends = Backends(folder, s3, mlflow, postgres)
            with backends.proxy:
                yield backends
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start_mlflow(folder: Path) -> ServerProcess:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    return ServerProcess(mlflow_command(port), folder, url, "/health", mlflow_environment(folder))
