"""The servers: SeaweedFS behind a proxy that injects faults, MLflow and PostgreSQL; each is killed and started again on
its port.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import httpx
import psycopg
import stamina

from benchmarks.chaos.site import Site
from benchmarks.faults import FaultProxy
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.storage import S3Store
from tests.postgres import Postgres, running_postgres
from tests.registry.servers import QUIET
from tests.servers import free_ports, running_s3

SILENCE_SECONDS = 2.0
READY = "ready"


class Served:
    """A server's process group, on one port for its whole life."""

    def __init__(self, command: Sequence[str], folder: Path, health: str) -> None:
        self._command, self._folder, self._health = list(command), folder, health
        self.start()
        self.wait()

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**os.environ, **QUIET},
                cwd=self._folder,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(self._health, timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError(f"{self._health} did not come up: {(self._folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class World:
    """All servers, and the sites on them."""

    def __init__(self, folder: Path, s3: tuple[Served, str], mlflow: tuple[Served, str], postgres: Postgres) -> None:
        self.folder, self.postgres = folder, postgres
        (self.s3, self.s3_url), (self.mlflow, self.mlflow_url) = s3, mlflow
        self.proxy = FaultProxy(self.s3_url, silence=SILENCE_SECONDS)
        self.restarts: Counter[str] = Counter()
        boto3.client("s3", endpoint_url=self.s3_url).create_bucket(Bucket=READY)
        self._probe = S3Store(READY, endpoint=self.s3_url)

    def site(self, tasks: int, ledger: str = "postgresql", store: str = "s3") -> Site:
        """A fresh registry of that many tasks; the MLflow server is shared, so their names are unique."""
        name = uuid.uuid4().hex[:10]
        folder = self.folder / name
        folder.mkdir()
        url = self.postgres.create_database(name) if ledger == "postgresql" else f"sqlite:///{folder}/ledger.db"
        if store == "s3":
            boto3.client("s3", endpoint_url=self.s3_url).create_bucket(Bucket=name)
        stored = f"s3://{name}" if store == "s3" else (folder / "store").as_uri()
        return Site(
            url,
            stored,
            self.mlflow_url,
            tuple(f"t{number}-{name}" for number in range(tasks)),
            self.proxy.endpoint,
            self.s3_url,
        )

    def restart(self, server: str) -> None:
        """kill -9 and start again; MLflow is not waited for, it takes seconds."""
        self.restarts[server] += 1
        if server == "postgresql":
            self.restart_postgres()
        else:
            served = self.s3 if server == "s3" else self.mlflow
            served.kill()
            served.start()

    def restart_postgres(self) -> None:
        """Children of the killed server may hold its memory for a moment."""
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
        """Until every server answers; SeaweedFS calls itself healthy before it finds its objects again."""
        self.s3.wait()
        self.mlflow.wait()
        for attempt in stamina.retry_context(on=ServiceUnavailable, attempts=None, timeout=60, wait_max=0.5):
            with attempt:
                self._probe.create(READY, b"ready")
                self._probe.create(f"{READY}-{uuid.uuid4().hex}", b"ready")

    def drop_mlflow(self) -> None:
        """A fresh, empty database in place of MLflow's, on the same port; its artifacts are gone too."""
        self.mlflow.kill()
        for path in self.folder.glob("mlflow/mlflow.db*"):
            path.unlink()
        shutil.rmtree(self.folder / "mlflow" / "artifacts", ignore_errors=True)
        shutil.copy(self.folder / "mlflow" / "empty.db", self.folder / "mlflow" / "mlflow.db")
        self.restarts["mlflow"] += 1
        self.mlflow.start()

    def back_up(self, site: Site) -> str:
        """A copy of the site's ledger as it is now; its name."""
        name = site.ledger.rsplit("/", 1)[1]
        self._copied(name, f"{name}-backup")
        return f"{name}-backup"

    def restore(self, site: Site, backup: str) -> None:
        """The site's ledger as it was when that backup was made."""
        name = site.ledger.rsplit("/", 1)[1]
        with self._administration() as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        self._copied(backup, name)

    def _copied(self, source: str, target: str) -> None:
        with self._administration() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (source,))
            connection.execute(f'CREATE DATABASE "{target}" TEMPLATE "{source}"')

    def _administration(self) -> psycopg.Connection:
        return psycopg.connect(self.postgres.url(), autocommit=True)


@contextmanager
def running(folder: Path) -> Iterator[World]:
    """All servers over `folder` until the block ends; S3's keys are in the environment meanwhile."""
    for name in ("s3", "mlflow"):
        (folder / name).mkdir(parents=True)
    with running_s3(folder / "s3") as first:
        command, environment = [str(part) for part in first.process.args], first.environment  # type: ignore[union-attr]
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with running_postgres(durable=True) as postgres, ExitStack() as stack:
            s3 = Served(command, folder / "s3", f"{first.endpoint}/healthz")
            stack.callback(s3.kill)
            (port,) = free_ports(1)
            mlflow = _mlflow(folder / "mlflow", port)
            stack.callback(mlflow.kill)
            shutil.copy(folder / "mlflow" / "mlflow.db", folder / "mlflow" / "empty.db")
            world = World(folder, (s3, first.endpoint), (mlflow, f"http://127.0.0.1:{port}"), postgres)
            with world.proxy:
                yield world
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _mlflow(folder: Path, port: int) -> Served:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    return Served(command, folder, f"http://127.0.0.1:{port}/health")
