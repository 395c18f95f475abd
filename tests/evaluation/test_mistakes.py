"""The rows that a prompt gets wrong: the surest first, the worst of the texts first."""

import math

import pytest

from benchmarks.fixtures.prompts import a_task
from ptpipeline.data.rows import Row
from ptpipeline.evaluation.mistakes import LONGEST, SHOWN, find_mistakes
from ptpipeline.evaluation.results import Results
from ptpipeline.records.prompts import Generation
from ptpipeline.task.task import Task

ROWS = [
    Row(id=f"{number:016x}", fields={"text": f"text {number}"}, label="good" if number % 2 else "bad")
    for number in range(60)
]


def results(**columns: list[object]) -> Results:
    ids = [row.id for row in ROWS]
    return Results(
        {"id": dict(zip(ids, ids, strict=True))}
        | {name.replace("__", "."): dict(zip(ids, values, strict=True)) for name, values in columns.items()}
    )


@pytest.fixture
def labels() -> Task:
    return a_task("mood")


def test_the_surest_wrong_answers_come_first(labels: Task) -> None:
    """Every third answer is wrong; the later the row, the surer."""
    answered = [
        ("bad" if row.label == "good" else "good") if number % 3 == 0 else row.label for number, row in enumerate(ROWS)
    ]
    good = [number / 10 if label == "good" else 0.0 for number, label in enumerate(answered)]
    bad = [number / 10 if label == "bad" else 0.0 for number, label in enumerate(answered)]
    found = find_mistakes(
        labels,
        results(
            label=[row.label for row in ROWS], predicted=answered, log_likelihood__bad=bad, log_likelihood__good=good
        ),
        ROWS,
    )
    assert (found.wrong, found.rows, found.figure) == (20, 60, "probability")
    assert [row.text for row in found.shown] == [f"text {number}" for number in range(57, -1, -3)][:SHOWN]
    assert found.shown[0].figure == pytest.approx(1 / (1 + math.exp(-5.7)))
    assert (found.shown[0].wanted, found.shown[0].answered) == ("good", "bad")


def test_answers_without_likelihoods_go_by_their_ids(labels: Task) -> None:
    found = find_mistakes(labels, results(label=[row.label for row in ROWS], predicted=["good"] * 60), ROWS)
    assert (found.wrong, len(found.shown)) == (30, SHOWN)
    assert [row.text for row in found.shown] == [f"text {number}" for number in range(0, 2 * SHOWN, 2)]
    assert {row.figure for row in found.shown} == {1}


@pytest.mark.parametrize("writes", [False, True])
def test_of_equal_answers_the_first_ids_come_first_in_whatever_order_they_were_measured(
    labels: Task, writes: bool
) -> None:
    gate = labels.gate.model_copy(update={"metric": "rouge_l"})
    texts = labels.model_copy(update={"labels": {}, "generate": Generation(max_new_tokens=4), "gate": gate})
    columns = results(label=[row.label for row in ROWS], predicted=["neither"] * 60, rouge_l=[0.5] * 60).columns
    turned = Results({name: dict(reversed(values.items())) for name, values in columns.items()})
    found = find_mistakes(texts if writes else labels, turned, ROWS)
    assert [row.text for row in found.shown] == [f"text {number}" for number in range(SHOWN)]


def test_an_answer_that_is_no_number_comes_last(labels: Task) -> None:
    bad = [math.nan if number == 1 else 1.0 for number in range(60)]
    found = find_mistakes(
        labels,
        results(
            label=[row.label for row in ROWS],
            predicted=["bad"] * 60,
            log_likelihood__bad=bad,
            log_likelihood__good=[0.0] * 60,
        ),
        ROWS,
    )
    assert (found.wrong, found.shown[0].text) == (30, "text 3")
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert all(math.isfinite(row.figure) for row in found.shown)


def test_right_answers_are_no_mistakes(labels: Task) -> None:
    found = find_mistakes(
        labels, results(label=[row.label for row in ROWS], predicted=[row.label for row in ROWS]), ROWS
    )
    assert (found.wrong, found.shown) == (0, [])


def test_of_free_texts_the_worst_come_first(labels: Task) -> None:
    gate = labels.gate.model_copy(update={"metric": "rouge_l"})
    task = labels.model_copy(update={"labels": {}, "generate": Generation(max_new_tokens=4), "gate": gate})
    figures = [1.0 if number < 30 else (90 - number) / 100 for number in range(60)]
    found = find_mistakes(task, results(rouge_l=figures, token_f1=[0.0] * 60), ROWS)
    assert (found.wrong, found.figure) == (30, "ROUGE-L")
    assert [row.figure for row in found.shown] == [number / 100 for number in range(31, 51)]
    assert found.shown[0].answered is None


@pytest.mark.parametrize(("letters", "shown"), [(LONGEST, "x" * LONGEST), (LONGEST + 1, "x" * LONGEST + "…")])
def test_a_long_text_is_cut_and_a_long_target_too(labels: Task, letters: int, shown: str) -> None:
    rows = [row._replace(fields={"text": "x" * letters}, label="x" * letters) for row in ROWS]
    found = find_mistakes(labels, results(label=[row.label for row in rows], predicted=["good"] * 60), rows)
    assert (found.shown[0].text, found.shown[0].wanted) == (shown, shown)
