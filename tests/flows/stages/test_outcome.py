"""How a line of the night's table tells what became of a candidate."""

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, published
from flows.stages.context import Context
from flows.stages.outcome import Candidate, summarise
from ptpipeline.errors import PromotionRefused
from ptpipeline.records.prompts import Cost
from ptpipeline.records.reports import TextScores
from ptpipeline.records.verdicts import Check, Verdict
from ptpipeline.records.versions import PromptVersion
from ptpipeline.task.task import Task
from registry.versions import promotion
from registry.versions.commit import Cause
from tests.flows.stages.test_approve import approve, declare, ends
from tests.flows.stages.test_evidence import digest
from tests.flows.stages.test_promote import ME, candidate


def status(context: Context, task: Task, version: PromptVersion, verdict: Verdict) -> str:
    request = a_request(task, 1)
    assert request.report is not None
    return summarise(context.registry, task, Candidate(request.tuned, request.report, verdict, version, None)).status


def test_a_failed_candidate_is_told_by_what_it_failed(context: Context) -> None:
    task = a_task()
    version, verdict = candidate(context, task, passed=False)
    failed = [Check(name=name, passed=False, observed="0.1", required="0.2") for name in ("minimum", "gain")]
    for checks, expected in (([failed[0]], "gate failed"), ([failed[1]], "no gain"), (failed, "no gain")):
        assert status(context, task, version, verdict.model_copy(update={"checks": checks})) == expected


def test_a_passed_candidate_that_nobody_promoted_awaits_approval(context: Context) -> None:
    assert status(context, a_task(), *candidate(context, a_task())) == "awaiting approval"


def test_what_stands_in_production_is_unchanged_and_what_stood_there_was_rolled_back(context: Context) -> None:
    task = a_task()
    version, verdict = candidate(context, task)
    promotion.promote(context.registry, task, version.number, ME)
    assert status(context, task, version, verdict) == "unchanged"
    promotion.promote(context.registry, task, published(context.registry, task, 2, digest(task, 1)), ME)
    assert status(context, task, version, verdict) == "rolled back"


def test_after_a_rollback_only_what_the_gate_takes_is_offered_again(context: Context) -> None:
    task = a_task()
    version, verdict = candidate(context, task)
    promotion.promote(context.registry, task, version.number, ME)
    promotion.promote(context.registry, task, published(context.registry, task, 2, digest(task, 1)), ME)
    request = a_request(task, 1)
    assert request.report is not None

    def reason(verdict: Verdict) -> str:
        made = Candidate(request.tuned, request.report, verdict, version, None)  # type: ignore[arg-type]
        return summarise(context.registry, task, made).reason

    assert f"`ptp promote {task.name}@{version.number} --reason ...` takes it back" in reason(verdict)
    failed = verdict.model_copy(
        update={"passed": False, "checks": [Check(name="minimum", passed=False, observed="0.1", required="0.2")]}
    )
    assert "the gate refuses it today (minimum: 0.1" in reason(failed)
    assert "ptp promote" not in reason(failed)


def test_where_people_approve_an_approval_is_what_brings_a_version_back(context: Context) -> None:
    """`ptp promote` would be refused: it asks for approvals of today's verdict."""
    task = declare(context, "approvals: 1")
    for seed in (1, 2):
        ends(context, task, seed)
        approve(context, "mood", seed, Cause("ann", "right"))
    assert ends(context, task, 1) == (
        "rolled back",
        "mood@production was moved away from version 1; `ptp approve mood@1` takes it back",
    )
    with pytest.raises(PromotionRefused, match="asks for 1 approval of its newest verdict"):
        promotion.promote(context.registry, task, 1, ME)
    with pytest.raises(PromotionRefused, match="was judged again since people were asked"):
        approve(context, "mood", 1, Cause("ann", "back"))
    assert approve(context, "mood", 1, Cause("ann", "back")).promotion


@pytest.mark.parametrize(("dropped", "known"), [(0, True), (1, False)])
def test_the_champions_figure_is_told_where_no_row_was_left_out(context: Context, dropped: int, known: bool) -> None:
    task = a_task()
    version, verdict = candidate(context, task)
    request = a_request(task, 1, champion="c" * 64)
    assert request.verdict is not None
    assert request.verdict.comparison is not None
    assert request.report is not None
    comparison = request.verdict.comparison.model_copy(update={"dropped": dropped})
    told = verdict.model_copy(update={"comparison": comparison})
    line = summarise(context.registry, task, Candidate(request.tuned, request.report, told, version, None))
    assert (line.champion is not None) == known
    assert line.delta == comparison.difference


def test_a_line_tells_bounds_figures_cost_and_rows_apart(context: Context) -> None:
    task = a_task()
    version, _ = candidate(context, task)
    request = a_request(task, 1, champion="c" * 64)
    assert request.verdict is not None
    assert request.report is not None
    cost = Cost(tokens=900, seconds=2.0, processor_seconds=3.5)
    made = Candidate(request.tuned.model_copy(update={"cost": cost}), request.report, request.verdict, version, None)
    line = summarise(context.registry, task, made)
    assert (line.lower, line.delta, line.upper) == (-0.01, 0.02, 0.05)
    assert (line.zero_shot, line.candidate, line.champion) == (0.6, 0.9, 0.9 - 0.02)
    assert (line.tokens, line.seconds, line.processor_seconds, line.rows) == (900, 2.0, 3.5, 110)


def test_texts_are_compared_by_sentences_so_the_champions_figure_is_not_told(context: Context) -> None:
    task = a_task()
    version, _ = candidate(context, task)
    request = a_request(task, 1, champion="c" * 64)
    assert request.verdict is not None
    assert request.verdict.comparison is not None
    assert request.report is not None
    texts = TextScores(exact_match=0.0, token_f1=0.1, rouge_l=0.1, bleu=0.2, most_frequent_share=0.1)
    report = request.report.model_copy(update={"prompt": texts, "zero_shot": texts})
    gate = task.gate.model_copy(update={"metric": "bleu"})
    made = Candidate(request.tuned, report, request.verdict, version, None)
    line = summarise(context.registry, task.model_copy(update={"gate": gate}), made)
    assert (line.candidate, line.champion) == (0.2, None)


@pytest.mark.parametrize(("steps", "reason"), [(0, "was imported before"), (10, "nothing was trained")])
def test_an_import_that_is_repeated_is_told_from_a_training(context: Context, steps: int, reason: str) -> None:
    task = a_task()
    version, verdict = candidate(context, task)
    promotion.promote(context.registry, task, version.number, ME)
    request = a_request(task, 1)
    assert request.report is not None
    tuned = request.tuned.model_copy(update={"steps": steps})
    line = summarise(context.registry, task, Candidate(tuned, request.report, verdict, version, None))
    assert (line.status, reason in line.reason) == ("unchanged", True)
