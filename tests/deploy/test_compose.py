"""deploy/compose.yaml as running services: each by its command, as its user, with its environment and network alone."""

import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from flows.requests import NightlyRequest
from flows.server.trigger import Finished, follow, trigger
from tests.deploy.containers import are_possible
from tests.deploy.factory import SERVICES, Factory, make_project, running_factory

pytestmark = [
    pytest.mark.timeout(1800),  # a machine that many share
    pytest.mark.servers,
    pytest.mark.soak,  # a night through eleven processes; test_manifests.py holds what the files say
    pytest.mark.skipif(not are_possible(), reason="namespaces and bridges need root and unshare, nsenter, setpriv, ip"),
]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    project = make_project(tmp_path_factory)
    with running_factory(project) as running:
        yield running


def test_bootstrap_made_everything_and_nobody_else_has_the_admins_key(factory: Factory) -> None:
    log = factory.running["bootstrap"].log.read_text()
    assert "cannot" not in log, log
    deployments = factory.call("POST", "deployments/filter", {})
    assert {"ptp-nightly", "ptp-gang", "ptp-promote"} <= {one["name"] for one in deployments}
    given = {name: service.get("secrets", []) for name, service in SERVICES.items() if name not in ("bootstrap", "s3")}
    assert "s3_admin" not in json.dumps(given)


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


def test_a_night_goes_through_all_services_and_trains_where_it_should(factory: Factory) -> None:
    """The night runs on the worker, and its one gang on the trainer, which has its own home and network."""
    worker, trainer = (factory.start(kind, kind) for kind in ("worker", "trainer"))
    factory.wait_for_workers(2)
    run = trigger(factory.api, "nightly", NightlyRequest())
    *lines, end = follow(factory.api, run)
    assert isinstance(end, Finished)
    told = [getattr(line, "message", "") for line in lines][-20:]
    logs = [service.log.read_text()[-2000:] for service in (worker, trainer)]
    assert (end.state, end.message) == ("COMPLETED", "fruit: promoted"), (told, logs)
    assert end.rows[0]["page"].startswith("http://mlflow:5000/")
    assert run in worker.log.read_text()
    (gang,) = factory.call("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["gang"]}}})
    assert gang["id"] in trainer.log.read_text()


def test_the_alarm_looks_without_the_workers(factory: Factory) -> None:
    alarm = factory.start("alarm")
    deadline = time.monotonic() + 120
    while "nothing is overdue" not in alarm.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert alarm.log.read_text().splitlines()[-1:] == ["nothing is overdue"]
    alarm.stop()


def test_the_server_answers_with_what_the_night_promoted_to_who_has_the_token(factory: Factory) -> None:
    server = factory.start("server")
    factory.wait_until_healthy("server")
    address = f"http://{factory.network.address('server')}:8080"
    asked = {"model": "fruit", "input": "a ripe apple"}
    assert httpx.post(f"{address}/v1/classify", json=asked).status_code == 401
    token = (factory.secrets / "serve_token").read_text()
    answer = httpx.post(f"{address}/v1/classify", json=asked, headers={"Authorization": f"Bearer {token}"}, timeout=60)
    assert (answer.status_code, answer.headers["x-ptp-version"]) == (200, "fruit@1"), server.log.read_text()[-2000:]
    os.killpg(server.process.pid, signal.SIGTERM)
    assert server.process.wait(75) == 0  # as long as stop_grace_period


def test_a_service_ends_soon_after_it_is_told(factory: Factory) -> None:
    """`docker stop` waits ten seconds by default, and then kills."""
    worker = factory.running.get("worker") or factory.start("worker", "worker")
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 10
