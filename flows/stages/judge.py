"""The stages that judge a candidate: a report on the rows that judge, a look at them, and a verdict."""

from flows.stages.context import Context
from flows.stages.evidence import Challenge, gather, line_up
from flows.stages.measure import measure, probe
from ptpipeline.gate.decide import decide, gate_key, needs_a_person
from ptpipeline.gate.disclosure import disclose_verdict
from ptpipeline.gate.spending import Budget, question_digest, reveal_digest
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Look, Verdict
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.task.task import Task
from registry.ledger import looks as ledger_looks


def evaluate(context: Context, task: Task, tuned: TunedPrompt, snapshot_digest: str) -> Report:
    """Measure and probe a candidate's stored bytes on the test rows of the snapshot of that digest.

    The snapshot may be another than that of training, because test rows change nothing in training. Once the test rows
    have served their looks, the reserve judges.
    """
    snapshot = context.snapshot(task.name, snapshot_digest)
    with context.watch(task.name, context.tracker, tuned.tracking_run):
        report = measure(context, task, tuned.digest, snapshot, _choose_split(context, task, tuned.digest, snapshot))
        return probe(context, task, report, snapshot)


def gate(context: Context, task: Task, tuned: TunedPrompt, report: Report) -> Verdict:
    """Return the verdict over the candidate against today's champion; an equal question is decided once."""
    champion = _find_champion(context, task)
    verdict = context.registry.ledger.verdict_for(gate_key(task, report, champion))
    if verdict is None or needs_a_person(verdict):  # what could not be compared may be mended by now
        with context.watch(f"{task.name}: comparison", context.tracker, tuned.tracking_run):
            challenge = line_up(context, task, tuned, report, champion)
            look = _take_look(context, task, challenge)  # it is noted before anything is compared
            verdict = decide(task, gather(context, task, challenge, look))
    for check in disclose_verdict(verdict).checks:
        result = "pass" if check.passed else "FAIL" if check.blocks else "warning:"
        context.report(f"{task.name}: {result} {check.name}: {check.observed}; required {check.required}")
    return verdict


def count_looks(context: Context, task: Task, snapshot: Snapshot) -> int:
    """Count the looks that the snapshot's test rows have served."""
    return ledger_looks.count_looks(context.registry.ledger, task.name, context.row_ids(snapshot, "test"))


def reserve_judges(task: Task, snapshot: Snapshot, looks: int) -> bool:
    """Whether a new question goes to the reserve: the test rows have served all the looks that the policy allows."""
    return snapshot.reserve is not None and looks >= task.gate.champion.looks


def take_reveal(context: Context, task: Task, report: Report, verdict: Verdict) -> Look:
    """Note the look that shows a person the figures of a verdict; asked again, it is the same look."""
    snapshot = context.snapshot(task.name, report.snapshot)
    rows, budget = context.row_ids(snapshot, report.split), budget_of(task, snapshot, report.split)
    return ledger_looks.take_look(context.registry.ledger, task.name, reveal_digest(verdict), rows, budget)


def budget_of(task: Task, snapshot: Snapshot, split: Split) -> Budget:
    """Return the error budget of all looks at a split; it is spent over `looks` of them if a reserve follows."""
    followed = split == "test" and snapshot.reserve is not None
    return Budget(task.gate.champion.budget, task.gate.champion.looks if followed else None)


def _choose_split(context: Context, task: Task, digest: str, snapshot: Snapshot) -> Split:
    """Return which rows judge; the test rows go on answering the questions that they answered before."""
    champion = _find_champion(context, task)
    if snapshot.reserve is None or champion == digest:
        return "test"
    looks = count_looks(context, task, snapshot)
    question = question_digest(digest, champion, snapshot.test.digest, task.policy_digest())
    if not reserve_judges(task, snapshot, looks) or ledger_looks.is_answered(
        context.registry.ledger, task.name, question
    ):
        return "test"
    context.report(
        f"{task.name}: the test rows have served {looks} looks; the reserve of {snapshot.reserve.rows} rows judges"
    )
    return "reserve"


def _take_look(context: Context, task: Task, challenge: Challenge) -> Look | None:
    """Note the look at the rows that judge; None if the candidate is the champion, which nothing can promote."""
    if challenge.champion == challenge.tuned.digest:
        return None
    report, results, _ = challenge.measured
    question = question_digest(report.digest, challenge.champion, report.test_digest, task.policy_digest())
    budget = budget_of(task, context.snapshot(task.name, report.snapshot), report.split)
    return ledger_looks.take_look(context.registry.ledger, task.name, question, results.ids, budget)


def _find_champion(context: Context, task: Task) -> str | None:
    head = context.registry.ledger.head(task.name, PRODUCTION)
    return head.digest if head else None
