"""A night in an environment that belongs to other work: proxies, a cloud account, a home with odd signs."""

import json

import pytest

from tests.e2e.conftest import Project

pytestmark = pytest.mark.servers


@pytest.mark.soak  # the night of test_flows.py runs there too
def test_a_whole_night_needs_nothing_of_the_surroundings(project: Project) -> None:
    states = [json.loads(line)["state"] for line in project.ptp("status", "--json").stdout.splitlines()]
    assert set(states) == {"up"}
    ingested = project.ptp("ingest", "fruit", "--json")
    assert ingested.returncode == 0, ingested.stderr
    night = project.ptp("trigger", "nightly", "--json")
    assert night.returncode == 0, night.stderr
    assert json.loads(night.stdout)["status"] in ("promoted", "unchanged")  # unchanged if a test before ran a night
    answered = project.ptp("predict", "fruit", "apple pear plum", "--json")
    assert json.loads(answered.stdout)["version"].startswith("fruit@"), answered.stderr
    assert project.ptp("doctor", "fruit").returncode == 0


def test_all_of_a_home_with_odd_signs_lies_in_it(project: Project) -> None:
    files = {path.name for path in project.home.rglob("*") if path.is_file()}
    assert {"stack-ledger.db", "prefect.db", "mlflow.db", "stack.json"} <= files
    assert [path.name for path in project.folder.parent.iterdir()] == [project.folder.name]
    beside = {path.name for path in project.folder.iterdir()} - {"aws", "fruit.csv", "tasks", "tiny", "other"}
    assert beside == {project.home.name}  # the others are what the tests put there
