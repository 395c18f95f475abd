"""A trainer whose machine dies in a training: another one, with a home and a network of its own, goes on from the
checkpoint. They share PostgreSQL, the object store and Prefect by address, and nothing else.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.requests import NightlyRequest
from flows.server.trigger import Finished, follow, trigger
from ptpipeline.settings import Settings
from registry.ledger.ledger import Ledger
from tests.deploy.containers import are_possible
from tests.deploy.factory import Factory, make_project, running_factory
from tests.e2e.conftest import make_long
from tests.e2e.test_down import train_undisturbed
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not are_possible(), reason="namespaces need root and bridges"),
]

TRAINERS = ("trainer", "trainer-2")
PATIENCE = 900.0  # with a machine that is busy
NOTICED_SECONDS, LOST_SECONDS = 120.0, 30.0
STEPS = 6000  # minutes of training: it is killed behind its second checkpoint
_STEP = re.compile(r"orchard: step (\d+)/")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    project = make_project(tmp_path_factory)
    (project / "tasks" / "fruit.yaml").unlink()
    (project / "tasks" / "orchard.yaml").write_text(make_long(STEPS, 1000).format(rows=project / "fruit.csv"))
    with running_factory(project) as running:
        running.start("worker", "worker")
        for name in TRAINERS:
            running.start(name, "trainer")
        running.wait_for_workers(1 + len(TRAINERS))
        yield running


def last_step(log: str) -> int:
    """The last step that a trainer told."""
    return max(map(int, _STEP.findall(log)), default=0)


def find_gangs(factory: Factory) -> dict[str, str]:
    """The states of the gangs' runs by id."""
    found: list[dict[str, Any]] = factory.call("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["gang"]}}})
    return {run["id"]: run["state_type"] for run in found}


def open_ledger(factory: Factory) -> Ledger:
    """The ledger that all of them share, as the test reaches it."""
    address = (factory.secrets / "ledger_address").read_text()
    return Ledger(address.replace("@postgres", f"@{factory.network.address('postgres')}"))


def test_a_gang_whose_machine_died_goes_on_on_another_one_to_the_same_bits(factory: Factory, tmp_path: Path) -> None:
    run = trigger(factory.api, "nightly", NightlyRequest(tasks=["orchard"]))
    logs = {name: factory.running[name].log for name in TRAINERS}
    holder = wait_for(lambda: next((name for name in TRAINERS if last_step(logs[name].read_text())), ""), PATIENCE)
    began = time.monotonic()
    [gang] = find_gangs(factory)
    time.sleep(2 * Settings.model_fields["checkpoint_seconds"].default + 5)
    factory.running[holder].kill()
    died, reached = time.monotonic(), last_step(logs[holder].read_text())
    [other] = set(TRAINERS) - {holder}

    wait_for(lambda: find_gangs(factory)[gang] == "CRASHED", PATIENCE, every=1)
    noticed = time.monotonic() - died
    wait_for(lambda: "resumes from a checkpoint" in logs[other].read_text(), PATIENCE, every=1)
    resumed = int(re.findall(r"resumes from a checkpoint: .*?step (\d+)", logs[other].read_text())[0])
    lost = (reached - resumed) * (died - began) / reached
    print(f"noticed after {noticed:.0f} s; {reached - resumed} of {reached} steps were lost, {lost:.0f} s of training")
    *_, end = follow(factory.api, run)

    assert isinstance(end, Finished)
    assert [row["status"] for row in end.rows] == ["promoted"], end.message
    assert (noticed < NOTICED_SECONDS, lost < LOST_SECONDS) == (True, True)
    tuned = open_ledger(factory).last_tuned("orchard")
    assert tuned
    assert tuned.digest == train_undisturbed(
        factory.project, factory.network.folder / f"home-{other}" / "home", tmp_path
    )
