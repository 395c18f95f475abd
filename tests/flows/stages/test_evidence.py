"""What a verdict is decided on, gathered from ledger and store: the look's share, the anchor, what a machine may do."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_report, a_request, a_snapshot, a_task, an_artifact
from flows.stages.compare import Measured, SeenRows, compare, find_mismatch, select_comparable
from flows.stages.context import Context
from flows.stages.evidence import Challenge, choose_margin, find_anchor, gather
from flows.stages.judge import reserve_judges
from ptpipeline.data.rows import Row
from ptpipeline.evaluation.compare import Pair, compare_pair
from ptpipeline.evaluation.paired import Hypothesis
from ptpipeline.evaluation.results import Results
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.data import SplitInfo
from ptpipeline.records.verdicts import Look
from ptpipeline.records.versions import PromptVersion
from ptpipeline.task.task import Task
from registry.versions import promotion
from registry.versions.commit import Cause
from registry.versions.promotion import rollback
from registry.versions.publish import register, stage

ME = Cause("me", "because")
ANYWAY = Cause("me", "because", override=True)
BUDGET = 0.05
OFF = {"leakage": "off", "drift": "off", "slices": "off", "test_rows": "off"}


def a_gated_task(rule: str = "non_inferiority", **fields: Any) -> Task:
    """The task of the registry's tests with that rule for the champion, and checks of the data off."""
    champion = {"rule": rule} | ({"margin": 0.2} if rule == "non_inferiority" else {})
    gate = {"metric": "accuracy", "minimum": 0.8, "champion": champion, "checks": OFF}
    return Task.model_validate(a_task().model_dump(mode="json", exclude_unset=True) | {"gate": gate} | fields)


def results(right: list[bool]) -> Results:
    """Rows of which every other is good, answered right or wrong."""
    ids = [f"{number:016x}" for number in range(len(right))]
    labels = ["good" if number % 2 else "bad" for number in range(len(right))]
    other = {"good": "bad", "bad": "good"}
    answers = [label if correct else other[label] for label, correct in zip(labels, right, strict=True)]
    columns = {"id": ids, "label": labels, "predicted": answers}
    return Results({name: dict(zip(ids, column, strict=True)) for name, column in columns.items()})


def a_pair(better: int = 0, worse: int = 0, rows: int = 100) -> Pair:
    """A challenger that is right on `better` rows where the other is wrong, and wrong on `worse` where it is right."""
    ours = [True] * better + [False] * worse + [True] * (rows - better - worse)
    theirs = [False] * better + [True] * worse + [True] * (rows - better - worse)
    one, two = results(ours), results(theirs)
    return Pair(one, two, one.ids)


def a_challenge(context: Context, task: Task, pair: Pair, champion: str | None = "c" * 64, seed: int = 9) -> Challenge:
    report = a_report(an_artifact(task, seed), 0.9)
    seen = SeenRows(context.registry, task.name, report.digest)
    measured = Measured(report, pair.ours, pair.rows)
    return Challenge(a_request(task, seed).tuned, champion, measured, seen, None, pair)


def p_of(task: Task, pair: Pair) -> float:
    value = compare_pair(task, pair, Hypothesis("accuracy")).p_value
    assert value is not None
    return value


# ---------------------------------------------------------------- superior


@pytest.mark.parametrize("rule", ["non_inferiority", "superiority"])
def test_what_the_budget_allows_and_this_look_does_not_is_not_superior(context: Context, rule: str) -> None:
    task, pair = a_gated_task(rule), a_pair(better=6)
    second = look_at(1, 2, Budget(BUDGET))
    assert second.alpha < p_of(task, pair) < BUDGET
    assert not gather(context, task, a_challenge(context, task, pair), second).superior


@pytest.mark.parametrize("rule", ["non_inferiority", "superiority"])
def test_what_this_look_allows_is_superior(context: Context, rule: str) -> None:
    task, pair, second = a_gated_task(rule), a_pair(better=12), look_at(1, 2, Budget(BUDGET))
    assert p_of(task, pair) < second.alpha
    assert gather(context, task, a_challenge(context, task, pair), second).superior


def test_a_chance_of_exactly_this_looks_share_is_superior(context: Context) -> None:
    task, pair = a_gated_task(), a_pair(better=6)
    p = p_of(task, pair)
    look = Look(test_set=1, number=1, alpha=p, spent=p, budget=BUDGET)
    assert gather(context, task, a_challenge(context, task, pair), look).superior


def test_no_worse_by_the_margin_is_not_superior(context: Context) -> None:
    task, pair, first = a_gated_task(), a_pair(better=1, worse=1), look_at(1, 1, Budget(BUDGET))
    evidence = gather(context, task, a_challenge(context, task, pair), first)
    assert not isinstance(evidence.comparison, str)
    assert evidence.comparison is not None
    assert evidence.comparison.p_value is not None
    assert evidence.comparison.p_value < first.alpha
    assert not evidence.superior


def test_without_a_look_nothing_is_superior(context: Context) -> None:
    task, pair = a_gated_task(), a_pair(better=30)
    assert not gather(context, task, a_challenge(context, task, pair), None).superior


def test_what_does_not_compare_is_not_superior(context: Context) -> None:
    task = a_gated_task()
    challenge = a_challenge(context, task, a_pair(better=30))._replace(pair="they answer other labels")
    evidence = gather(context, task, challenge, look_at(1, 1, Budget(BUDGET)))
    assert (evidence.comparison, evidence.superior, evidence.anchor) == ("they answer other labels", False, None)


def test_without_another_in_production_nothing_is_compared(context: Context) -> None:
    task = a_gated_task()
    challenge = a_challenge(context, task, a_pair(better=30), champion=None)._replace(pair=None)
    evidence = gather(context, task, challenge, look_at(1, 1, Budget(BUDGET)))
    assert (evidence.comparison, evidence.superior, evidence.anchor) == (None, False, None)


def test_the_margin_is_the_policys_else_one_by_the_rows() -> None:
    stated, derived = a_gated_task(), a_gated_task()
    policy = derived.gate.champion.model_copy(update={"margin": None})
    derived = derived.model_copy(update={"gate": derived.gate.model_copy(update={"champion": policy})})
    assert (choose_margin(stated, 100), choose_margin(a_gated_task("superiority"), 100)) == (0.2, 0.0)
    assert choose_margin(derived, 100) > choose_margin(derived, 10_000) > 0


# ---------------------------------------------------------------- the anchor


def judged(context: Context, task: Task, seed: int, champion: int | None, won: str | None = None) -> PromptVersion:
    """A version with a passed verdict over the prompt of the seed `champion`, that says what it won."""
    registry, over = context.registry, an_artifact(task, champion).digest if champion is not None else None
    registry.ledger.save_snapshot(a_snapshot(task))
    stage(registry.ledger, registry.store, an_artifact(task, seed))
    request = a_request(task, seed, over)
    assert request.verdict is not None
    return register(registry, replace(request, verdict=request.verdict.model_copy(update={"won": won})))


def digest(task: Task, seed: int) -> str:
    return an_artifact(task, seed).digest


def anchor_after(context: Context, task: Task, *moves: tuple[int, int | None, str | None, Cause]) -> int | None:
    """The seed of the anchor after those promotions: seed, seed of the judged champion, what was won, by whom."""
    for seed, champion, won, cause in moves:
        version = judged(context, task, seed, champion, won)
        promotion.promote(context.registry, task, version.number, cause)
    found = find_anchor(context.registry.ledger, task)
    return next((seed for seed in range(9) if digest(task, seed) == found), None)


def test_what_is_no_worse_is_no_anchor(context: Context) -> None:
    task = a_task()
    moves = ((1, None, "superior", ME), (2, 1, "not inferior", ME), (3, 2, "not inferior", ME))
    assert anchor_after(context, task, *moves) == 1


def test_what_is_superior_is_the_anchor(context: Context) -> None:
    task = a_task()
    moves = ((1, None, None, ME), (2, 1, "superior", ME), (3, 2, "not inferior", ME))
    assert anchor_after(context, task, *moves) == 2


def test_the_first_in_production_is_an_anchor(context: Context) -> None:
    assert anchor_after(context, a_task(), (1, None, None, ME), (2, 1, "not inferior", ME)) == 1


def test_an_override_is_an_anchor_whatever_its_old_verdict_says(context: Context) -> None:
    """It was found no worse than a champion of before, and a person answers for it over today's."""
    task = a_task()
    moves = ((1, None, "superior", ME), (2, 1, "superior", ME), (3, 1, "not inferior", ANYWAY))
    assert anchor_after(context, task, *moves) == 3


def test_what_was_rolled_back_from_is_no_anchor(context: Context) -> None:
    task = a_task()
    moves = ((1, None, "superior", ME), (2, 1, "not inferior", ME), (3, 2, "superior", ME))
    assert anchor_after(context, task, *moves) == 3
    rollback(context.registry, task.name, ME)
    assert find_anchor(context.registry.ledger, task) == digest(task, 1)


def test_without_a_production_there_is_no_anchor(context: Context) -> None:
    task = a_task()
    version = judged(context, task, 1, None, "superior")
    promotion.promote(context.registry, task, version.number, ME, "canary")
    assert find_anchor(context.registry.ledger, task) is None


def test_the_champion_is_not_compared_with_itself_as_the_anchor(context: Context) -> None:
    task = a_gated_task()
    anchor_after(context, task, (1, None, "superior", ME))
    challenge = a_challenge(context, task, a_pair(better=3), champion=digest(task, 1))
    assert gather(context, task, challenge, look_at(1, 1, Budget(BUDGET))).anchor is None


def test_the_challenger_is_not_compared_with_itself_as_the_anchor(context: Context) -> None:
    task = a_gated_task()
    anchor_after(context, task, (1, None, "superior", ME), (2, 1, "not inferior", ME))
    challenge = a_challenge(context, task, a_pair(better=3), champion=digest(task, 2), seed=1)
    assert gather(context, task, challenge, look_at(1, 1, Budget(BUDGET))).anchor is None


@pytest.mark.parametrize(("rule", "asked"), [("non_inferiority", True), ("superiority", False)])
def test_an_anchor_further_back_is_asked_where_a_margin_could_add_up(context: Context, rule: str, asked: bool) -> None:
    task = a_gated_task(rule)
    anchor_after(context, task, (1, None, "superior", ME), (2, 1, "not inferior", ME))
    challenge = a_challenge(context, task, a_pair(better=3), champion=digest(task, 2))
    anchor = gather(context, task, challenge, look_at(1, 1, Budget(BUDGET))).anchor
    assert isinstance(anchor, str) == asked  # its rows are not stored here, so it says why it does not compare


# ---------------------------------------------------------------- rows that compare


def rival_that_saw(context: Context, rows: list[str]) -> SeenRows:
    seen = SeenRows(context.registry, "mood", "c" * 64)
    seen.__dict__ |= {"own": [Row(row, {"text": "text"}, "good") for row in rows], "inherited": set()}
    return seen


@pytest.mark.parametrize(("seen", "comparable"), [(4, True), (5, True), (6, False)])
def test_a_version_that_learnt_from_more_than_half_of_the_rows_does_not_compare(
    context: Context, seen: int, comparable: bool
) -> None:
    rows = [f"{number:016x}" for number in range(10)]
    found = select_comparable(rival_that_saw(context, rows[:seen]), rows)
    assert found == rows[seen:] if comparable else "was trained on 6 of the 10 rows" in found


@pytest.mark.parametrize(("rows", "comparable"), [(1, False), (2, True)])
def test_two_rows_are_the_fewest_that_compare(rows: int, comparable: bool) -> None:
    pair = a_pair(better=1, rows=10)
    found = compare(a_gated_task(), pair._replace(rows=pair.rows[:rows]), 0.0)
    assert isinstance(found, str) != comparable
    assert isinstance(found, str) or found.dropped == 10 - rows


def test_labels_compare_in_any_order_and_no_others() -> None:
    task = a_task()
    manifest = an_artifact(task, 1).manifest
    turned = manifest.model_copy(update={"labels": dict(reversed(manifest.labels.items()))})
    fewer = manifest.model_copy(update={"labels": {"bad": " bad"}})
    assert find_mismatch(task, turned) is None
    assert "the task now has" in str(find_mismatch(task, fewer))


@pytest.mark.parametrize(("looks", "reserve"), [(1, False), (2, True), (3, True)])
def test_the_reserve_judges_once_the_looks_are_spent(looks: int, reserve: bool) -> None:
    task = a_gated_task()
    champion = task.gate.champion.model_copy(update={"looks": 2})
    task = task.model_copy(update={"gate": task.gate.model_copy(update={"champion": champion})})
    split = SplitInfo(rows=4, labels={"bad": 2, "good": 2}, digest="d" * 64)
    assert reserve_judges(task, a_snapshot(task).model_copy(update={"reserve": split}), looks) == reserve
    assert not reserve_judges(task, a_snapshot(task), looks)
