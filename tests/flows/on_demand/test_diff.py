"""Rows that two versions answer differently, counted: won, lost, and wrong otherwise."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_task, published
from flows.on_demand import diff
from flows.on_demand.interpret import train_wayward
from flows.on_demand.measure import VersionRef, open_version
from flows.stages.context import Context
from ptpipeline.errors import DataError, NotFound
from ptpipeline.evaluation.compare import Pair
from ptpipeline.evaluation.results import Results
from ptpipeline.task.task import Task
from registry.ledger.tombstone import Tombstone
from tests.flows.stages.conftest import make_context
from tests.flows.stages.test_approve import FILE

TRUE = ["a", "a", "a", "a", "b", "b", "c"]
BEFORE = ["a", "b", "b", "c", "b", "a", "c"]
AFTER = ["a", "a", "c", "c", "a", "b", "c"]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def results(**columns: list[Any]) -> Results:
    ids = [str(number) for number in range(len(next(iter(columns.values()))))]
    return Results({name: dict(zip(ids, values, strict=True)) for name, values in {"id": ids, **columns}.items()})


def task(**changes: Any) -> Task:
    return a_task().model_copy(update=changes)


def test_rows_are_counted_by_their_true_label() -> None:
    ours, theirs = results(label=TRUE, predicted=AFTER), results(label=TRUE, predicted=BEFORE)
    labelled = task(labels={"a": " a", "b": " b", "c": " c"})
    counted = diff._count_answers(labelled, Pair(ours, theirs, ours.ids))
    assert [(one.label, one.rows, one.won, one.lost, one.wrong_otherwise) for one in counted] == [
        ("a", 4, 1, 0, 1),  # the one that is `c` both times is wrong, and not otherwise
        ("b", 2, 1, 1, 0),
        ("c", 1, 0, 0, 0),
    ]
    changed = diff._list_changed(labelled, Pair(ours, theirs, ours.ids))
    assert [(row.id, row.before, row.after) for row in changed] == [
        ("1", "b", "a"),
        ("2", "b", "c"),
        ("4", "b", "a"),
        ("5", "a", "b"),
    ]


def test_texts_are_won_by_the_metric_and_equal_ones_are_neither() -> None:
    free = Task.model_validate(
        a_task().model_dump(mode="json", exclude_unset=True, exclude={"labels"})
        | {
            "generate": {"max_new_tokens": 4},
            "data": {"source": {"path": "rows.csv", "format": "csv"}, "text": "text", "target": "label"},
            "gate": {"metric": "exact_match", "minimum": 0.5},
        }
    )
    ours, theirs = results(exact_match=[1.0, 0.0, 0.5]), results(exact_match=[0.0, 1.0, 0.5])
    [counted] = diff._count_answers(free, Pair(ours, theirs, ours.ids))
    assert (counted.rows, counted.won, counted.lost, counted.wrong_otherwise) == (3, 1, 1, 0)


# ---------------------------------------------------------------- what cannot be looked into


def test_figures_that_the_task_withholds_are_not_shown_by_an_experiment(context: Context) -> None:
    (context.settings.tasks / "mood.yaml").write_text(FILE.replace("gate: {", "gate: {figures: quiet, "))
    number = published(context.registry, a_task(), 1)
    with pytest.raises(DataError, match=r"which gate\.figures: quiet withholds"):
        train_wayward(context, "mood", number, "a text")


def test_a_version_that_was_collected_is_told_so(context: Context) -> None:
    (context.settings.tasks / "mood.yaml").write_text(FILE)
    number = published(context.registry, a_task(), 1)
    assert open_version(context, VersionRef("mood", number)).digest
    version = context.registry.ledger.version("mood", number)
    assert Tombstone(context.registry.ledger.database, "mood", version.digest).bury(lambda _: False)
    with pytest.raises(NotFound, match="garbage collection"):
        open_version(context, VersionRef("mood", number))
