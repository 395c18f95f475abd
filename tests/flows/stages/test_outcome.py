"""How a line of the night's table tells what became of a candidate."""

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, published
from flows.stages.context import Context
from flows.stages.outcome import Candidate, summarise
from ptpipeline.records.verdicts import Check, Verdict
from ptpipeline.records.versions import PromptVersion
from ptpipeline.task.task import Task
from registry.versions import promotion
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
