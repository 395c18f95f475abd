"""Why a task trains, and which tasks train together."""

from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_snapshot, a_task, an_artifact, published
from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.plan import GANG_ROWS, Plan, find_changes, group, identify, plan
from ptpipeline.records.data import Snapshot
from ptpipeline.storage.keys import manifest_key
from ptpipeline.task.task import Task
from ptpipeline.tuning import key
from registry.ledger import tables
from tests.flows.project import Project

BASE = an_artifact(a_task()).manifest.base_model.fingerprint


@pytest.fixture
def task(context: Context, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task that trained with today's rows, recipe, base and engine."""
    task = a_task()
    published(context.registry, task, 0)
    monkeypatch.setattr("flows.stages.plan.ENGINE_VERSION", an_artifact(task).manifest.engine_version)
    return task


def changes(context: Context, task: Task, snapshot: Snapshot | None = None, base: str = BASE) -> str:
    return find_changes(context, task, snapshot or a_snapshot(task), {base})


def test_a_task_without_a_training_trains_first(context: Context) -> None:
    assert changes(context, a_task("new")) == "first training"


def test_other_training_rows_are_named(context: Context, task: Task) -> None:
    rows = a_snapshot(task)
    train = rows.model_copy(update={"train": rows.train.model_copy(update={"digest": "a" * 64})})
    test = rows.model_copy(update={"test": rows.test.model_copy(update={"digest": "a" * 64})})
    dev = rows.model_copy(update={"dev": rows.dev.model_copy(update={"digest": "a" * 64})})
    assert changes(context, task, train) == changes(context, task, dev) == "new rows"
    assert "new rows" not in changes(context, task, test)


def test_another_recipe_is_named(context: Context, task: Task) -> None:
    tune = task.tune.model_copy(update={"learning_rate": 0.007})
    assert changes(context, task.model_copy(update={"tune": tune})) == "recipe changed"


def test_another_base_is_named(context: Context, task: Task) -> None:
    assert changes(context, task, base="b" * 64) == "base changed"


def test_another_engine_is_named(context: Context, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stages.plan.ENGINE_VERSION", key.ENGINE_VERSION + 1)
    assert changes(context, task) == "engine changed"


def test_all_changes_are_named(context: Context, task: Task) -> None:
    tune = task.tune.model_copy(update={"learning_rate": 0.007})
    assert changes(context, task.model_copy(update={"tune": tune}), base="b" * 64) == "recipe changed, base changed"


@pytest.mark.parametrize("body", [None, b"{}"])
def test_bytes_that_are_gone_or_altered_are_named(context: Context, task: Task, body: bytes | None) -> None:
    store, key = context.registry.store, manifest_key(task.name, an_artifact(task).digest)
    store.delete(key)
    if body is not None:
        store.create(key, body)
    assert changes(context, task) == "the last prompt's bytes are gone or altered"


def test_rows_that_the_ledger_lost_are_new(context: Context, task: Task) -> None:
    with context.registry.ledger.database.writing() as connection:
        connection.execute(tables.snapshot.delete())
    assert changes(context, task) == "new rows"


def test_what_no_digest_of_these_tells_is_named_too(context: Context, task: Task) -> None:
    assert changes(context, task) == "its start, metric, dev rows or chat template changed"


def test_a_plan_says_how_much_there_is_to_train_and_that_it_is_forced(first_night: Project, tmp_path: Path) -> None:
    project = first_night.copy(tmp_path)
    stages, task = project.stages, project.task()
    snapshot, last = ingest(stages, task), stages.registry.ledger.last_tuned(task.name)
    known, forced = plan(stages, task, snapshot), plan(stages, task, snapshot, force=True)
    assert (known.trained, known.reason, forced.trained, forced.reason) == (True, "unchanged", False, "forced")
    assert forced.training_key == known.training_key
    assert snapshot.dev.rows < task.tune.dev_rows
    assert forced.rows == snapshot.train.rows + snapshot.dev.rows
    few = task.model_copy(update={"tune": task.tune.model_copy(update={"dev_rows": 5})})
    assert plan(stages, few, snapshot).rows == snapshot.train.rows + 5
    assert last is not None
    assert last.cost is not None
    assert forced.seconds == last.cost.seconds != last.seconds


# ---------------------------------------------------------------- gangs


def a_plan(
    name: str, base: str = "small", seconds: float | None = 10.0, rows: int = 100, trained: bool = False
) -> Plan:
    return Plan(
        task=name,
        base_model=base,
        snapshot="s" * 64,
        training_key="k" * 64,
        trained=trained,
        reason="unchanged" if trained else "new rows",
        rows=rows,
        seconds=seconds,
    )


def names(gangs: list[list[Plan]]) -> list[list[str]]:
    return [[plan.task for plan in gang] for gang in gangs]


def test_tasks_of_one_base_train_together() -> None:
    plans = [a_plan("b"), a_plan("c", "large"), a_plan("a"), a_plan("d", trained=True)]
    assert names(group(plans, {})) == [["c"], ["a", "b"]]


def test_rows_that_do_not_fit_into_memory_make_two_gangs() -> None:
    plans = [a_plan(name, rows=GANG_ROWS // 2) for name in "abc"]
    assert names(group(plans, {})) == [["a", "c"], ["b"]]


def test_rows_that_just_fit_into_memory_make_one_gang() -> None:
    assert names(group([a_plan(name, rows=GANG_ROWS // 2) for name in "ab"], {})) == [["a", "b"]]


def test_the_parts_of_a_night_are_shared_out_between_its_bases() -> None:
    plans = [*(a_plan(name) for name in "ab"), *(a_plan(name, "large") for name in "cd")]
    assert names(group(plans, {}, parts=2)) == [["c", "d"], ["a", "b"]]
    assert names(group(plans, {}, parts=9)) == [["c"], ["d"], ["a"], ["b"]]


def test_trainings_that_took_no_time_are_grouped_too() -> None:
    plans = [a_plan(name, seconds=0.0) for name in "ab"]
    assert names(group(plans, {}, parts=2)) == [["a", "b"]]


def test_gangs_of_several_workers_take_equally_long() -> None:
    plans = [a_plan("a", seconds=90.0), *(a_plan(name, seconds=30.0) for name in "bcd"), a_plan("new", seconds=None)]
    gangs = group(plans, {}, parts=2)
    assert names(gangs) == [["a", "d"], ["b", "c", "new"]]


def test_a_task_that_never_trained_counts_as_those_that_did_on_average() -> None:
    plans = [a_plan("a", seconds=60.0), *(a_plan(name, seconds=30.0) for name in "bc"), a_plan("new", seconds=None)]
    assert names(group(plans, {}, parts=2)) == [["a", "c"], ["b", "new"]]


def test_a_gang_that_was_interrupted_stays_together() -> None:
    one, two, new = a_plan("a"), a_plan("b"), a_plan("c")
    begun = dict.fromkeys(["a", "b"], identify([one, two]))
    assert names(group([one, two, new], begun)) == [["a", "b"], ["c"]]


def test_a_gang_whose_task_changed_since_is_made_anew() -> None:
    one, two = a_plan("a"), a_plan("b")
    begun = dict.fromkeys(["a", "b"], identify([one, two]))
    changed = two.model_copy(update={"training_key": "d" * 64})
    assert names(group([one, changed, a_plan("c")], begun)) == [["a", "b", "c"]]
