"""Two trainers against one, each a container of its own: with a home and a network, and what all share by address.

Training is replaced by fixed work: after its training of some steps, each gang sleeps for SECONDS per task. Two cores
could not show that two machines are faster.
"""

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from flows.requests import NightlyRequest
from flows.server.trigger import Finished, follow, trigger
from tests.deploy.containers import are_possible
from tests.deploy.factory import Factory, make_project, running_factory
from tests.e2e.conftest import TASK

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not are_possible(), reason="namespaces need root and bridges")]

TASKS, SECONDS = 8, 60.0
FIXED_WORK = f"""\
import time
from registry import failpoints
failpoints.watch(lambda step: step == "gang member staged" and time.sleep({SECONDS}))
"""


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    project = make_project(tmp_path_factory)
    (project / "tasks" / "fruit.yaml").unlink()
    for number in range(TASKS):
        write_task(project, number, 0)
    (project / "fixed").mkdir()
    (project / "fixed" / "sitecustomize.py").write_text(FIXED_WORK)
    with running_factory(project) as running:
        yield running


def write_task(project: Path, number: int, version: int) -> None:
    """Write a task, whose `version` changes its recipe, so that it has to train again."""
    text = TASK.format(rows=project / "fruit.csv").replace("name: fruit", f"name: fruit-{number}")
    text = text.replace("steps: 12", f"steps: {12 + version}")
    (project / "tasks" / f"fruit-{number}.yaml").write_text(text)


def night(factory: Factory) -> tuple[float, list[str]]:
    """Run a night; return its seconds and, for each of its gangs, the worker that took it.

    Each task trains; a candidate that is no better than the one of the night before fails its gate, as it should.
    """
    began = time.monotonic()
    before = trainings(factory)
    run = trigger(factory.api, "nightly", NightlyRequest())
    *_, end = follow(factory.api, run)
    seconds = time.monotonic() - began
    assert_trained(end, trainings(factory) - before)
    return seconds, gangs_of(factory)


def assert_trained(end: object, trained: Counter[str]) -> None:
    assert isinstance(end, Finished)
    assert len(end.rows) == TASKS
    assert {row["status"] for row in end.rows} <= {"promoted", "gate failed"}, end.message
    assert "unchanged" not in {row["plan"] for row in end.rows}
    assert trained == {f"fruit-{number}": 1 for number in range(TASKS)}


def trainings(factory: Factory) -> Counter[str]:
    """How often each task was trained so far."""
    password = (factory.secrets / "mlflow_password").read_text()
    return count_trainings(f"http://{factory.network.address('mlflow')}:5000", password)


def count_trainings(mlflow: str, password: str) -> Counter[str]:
    """How often each task was trained: each training is a run in MLflow, which one that is resumed goes on with."""
    ask = partial(httpx.post, headers={"Host": "mlflow:5000"}, auth=("ptp", password))
    experiments = ask(f"{mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 1000}).json()["experiments"]
    body = {"experiment_ids": [one["experiment_id"] for one in experiments], "max_results": 1000}
    runs = ask(f"{mlflow}/api/2.0/mlflow/runs/search", json=body).json().get("runs", [])
    return Counter(tag["value"] for run in runs for tag in run["data"]["tags"] if tag["key"] == "ptp.task")


def gangs_of(factory: Factory) -> list[str]:
    """The trainer of each gang so far."""
    found = factory.call("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["gang"]}}, "limit": 200})
    logs = {name: factory.running[name].log.read_text() for name in ("trainer", "trainer-2") if name in factory.running}
    return [name for run in found for name, log in logs.items() if run["id"] in log]


def test_two_workers_are_nearly_twice_as_fast_and_train_each_task_once(factory: Factory) -> None:
    paths = {"PYTHONPATH": f"{factory.project}/fixed:/opt/checkout"}
    factory.start("worker", "worker")
    factory.start("trainer", "trainer", **paths)
    factory.wait_for_workers(2)
    alone, first = night(factory)
    assert set(first) == {"trainer"}
    for number in range(TASKS):
        write_task(factory.project, number, 1)
    factory.start("trainer-2", "trainer", **paths)
    factory.wait_for_workers(3)
    together, both = night(factory)
    print(f"one worker {alone:.0f} s, two {together:.0f} s: {alone / together:.2f} times as fast; {Counter(both)}")
    assert set(both[: len(both) - len(first)]) == {"trainer", "trainer-2"}
    assert alone / together >= 1.8


def test_a_worker_that_is_added_in_the_night_takes_a_gang_within_half_a_minute(factory: Factory) -> None:
    paths = {"PYTHONPATH": f"{factory.project}/fixed:/opt/checkout"}
    factory.running["trainer-2"].stop()
    for number in range(TASKS):
        write_task(factory.project, number, 2)
    trained = trainings(factory)
    run = trigger(factory.api, "nightly", NightlyRequest())
    before = gangs_of(factory)
    while len(gangs_of(factory)) == len(before):
        time.sleep(1)
    began = time.monotonic()
    added = factory.start("trainer-3", "trainer", **paths)
    while "Worker" not in added.log.read_text() or "flow run" not in added.log.read_text().lower():
        time.sleep(0.5)
        assert time.monotonic() - began < 300, added.log.read_text()
    seconds = time.monotonic() - began
    *_, end = follow(factory.api, run)
    print(f"the added worker had a gang after {seconds:.0f} s")
    assert_trained(end, trainings(factory) - trained)
    assert seconds < 30
