"""What a run came to for one task: a line of the night's table."""

import logging
from typing import Any, ClassVar, NamedTuple

from ptpipeline.errors import PtpError
from ptpipeline.gate.decide import metric_of
from ptpipeline.gate.disclosure import describe_failures, disclose, disclose_verdict
from ptpipeline.records.base import Grown
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import PairedDifference, Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION, Promotion, PromptVersion
from ptpipeline.task.task import Task
from registry.registry import Registry
from registry.versions.approval import describe_rejection, find_rejection

GATE_FAILED, AWAITING_APPROVAL = "Gate failed", "Awaiting approval"  # states in which a run may end, beside Prefect's
_REFUSED, _NO_GAIN, _AWAITING = "gate failed", "no gain", "awaiting approval"  # what a task's line says

log = logging.getLogger("ptpipeline.stages")


class Outcome(Grown):
    """One line of the night's table.

    Figures are the task's gate metric on the rows that judge; None if they are withheld. Tokens and seconds are what
    the training of this version took of its gang; None if they were not counted then, or it was imported. `plan` is why
    it trained, or `unchanged`; `rows` are those of the snapshot that it was judged by.
    """

    LATER: ClassVar = frozenset({"tokens", "seconds", "processor_seconds", "plan", "rows"})

    task: str
    metric: str
    status: str
    zero_shot: float | None
    candidate: float | None
    champion: float | None
    delta: float | None
    lower: float | None
    upper: float | None
    verdict: str
    version: int
    bytes: int
    reason: str
    page: str | None
    tokens: int | None = None
    seconds: float | None = None
    processor_seconds: float | None = None
    plan: str | None = None
    rows: int | None = None

    @property
    def refused(self) -> bool:
        """Whether the gate refused the task's newest candidate: `ptp` exits with 4, and Prefect says `Gate failed`."""
        return self.status in (_REFUSED, _NO_GAIN)

    @property
    def awaits_approval(self) -> bool:
        """Whether a candidate waits for a person."""
        return self.status == _AWAITING


_COLUMNS = ("task", "status", "version", "metric", "candidate", "champion", "delta", "lower", "upper", "zero_shot")


def tabulate(outcome: Outcome) -> dict[str, Any]:
    """Return the line as people read it: what decides first, figures rounded, and nothing that is unknown."""
    row = {name: value for name, value in outcome.to_json().items() if value is not None}
    digits = {"seconds": 1, "processor_seconds": 1}
    ordered = {name: row[name] for name in _COLUMNS if name in row} | row
    return {
        name: round(value, digits.get(name, 4)) if isinstance(value, float) else value
        for name, value in ordered.items()
    }


class Candidate(NamedTuple):
    """A prompt that went through all stages; `promotion` is None if it was not promoted."""

    tuned: TunedPrompt
    report: Report
    verdict: Verdict
    version: PromptVersion
    promotion: Promotion | None


def summarise(registry: Registry, task: Task, candidate: Candidate) -> Outcome:
    """Return the task's line of the night's table."""
    verdict, version = disclose_verdict(candidate.verdict), candidate.version
    report = disclose(candidate.report, candidate.verdict).report
    metric, comparison = task.gate.metric, verdict.comparison
    figure = metric_of(report.prompt, metric) if report else None
    status, reason = _find_status(registry, task, candidate)
    cost = candidate.tuned.cost
    return Outcome(
        task=task.name,
        metric=metric,
        status=status,
        zero_shot=metric_of(report.zero_shot, metric) if report else None,
        candidate=figure,
        champion=figure - comparison.difference
        if figure is not None and comparison and _is_of_figures(metric, comparison)
        else None,
        delta=comparison.difference if comparison else None,
        lower=comparison.lower if comparison else None,
        upper=comparison.upper if comparison else None,
        verdict="passed" if verdict.passed else "failed: " + ", ".join(check.name for check in verdict.failures()),
        version=version.number,
        bytes=candidate.tuned.bytes,
        tokens=cost.tokens if cost else None,
        seconds=cost.seconds if cost else None,
        processor_seconds=cost.processor_seconds if cost else None,
        rows=_count_rows(registry, task.name, candidate.report.snapshot),
        reason=reason,
        page=_find_page(registry, task.name, candidate.tuned.digest),
    )


def _count_rows(registry: Registry, task: str, snapshot: str) -> int | None:
    known = registry.ledger.snapshot(task, snapshot)
    return sum(info.rows for info in known.splits().values()) if known else None


def _is_of_figures(metric: str, comparison: PairedDifference) -> bool:
    """Whether candidate minus difference is the champion's figure.

    It is not if rows were left out, or if texts are compared sentence by sentence.
    """
    return comparison.dropped == 0 and metric not in ("bleu", "chrf")


def _find_status(registry: Registry, task: Task, candidate: Candidate) -> tuple[str, str]:
    """Return the status and its reason."""
    verdict, version = candidate.verdict, candidate.version
    history = registry.ledger.history(task.name, PRODUCTION)
    if candidate.promotion is not None:
        return "promoted", f"{task.name}@{PRODUCTION} is version {version.number}"
    if history and history[-1].version == version.number:
        if candidate.tuned.steps == 0:
            return "unchanged", "this prompt was imported before; production stays"
        return "unchanged", "rows, recipe, base model and engine are unchanged: nothing was trained, production stays"
    if version.number in {row.version for row in history}:
        return "rolled back", _explain_return(task, verdict, version)
    if not verdict.passed:
        no_gain = any(check.name == "gain" for check in disclose_verdict(verdict).failures())
        return _NO_GAIN if no_gain else _REFUSED, describe_failures(verdict)
    rejection = find_rejection(registry, version)
    if rejection:
        return "rejected", f"{task.name}@{version.number} {describe_rejection(rejection)}"
    needs = f" ({task.approvals} of people who did not start its run)" if task.approvals else ""
    return (
        _AWAITING,
        f"`ptp approve {task.name}@{version.number}`, or the deployment `approve` in Prefect with verdict "
        f"{verdict.verdict_digest()[:12]}, takes it to production{needs}",
    )


def _explain_return(task: Task, verdict: Verdict, version: PromptVersion) -> str:
    """Return how a version comes back that production was moved away from: as the gate sees it today."""
    name = f"{task.name}@{version.number}"
    command = f"`ptp approve {name}`" if task.approvals else f"`ptp promote {name} --reason ...`"
    way = (
        f"{command} takes it back"
        if verdict.passed
        else f"the gate refuses it today ({describe_failures(verdict)}): correct data or recipe"
    )
    return f"{task.name}@{PRODUCTION} was moved away from version {version.number}; {way}"


def _find_page(registry: Registry, task: str, digest: str) -> str | None:
    if registry.mlflow is None:
        return None
    try:
        number = registry.mlflow.find(task, digest)
    except PtpError as error:  # the promotion stands; only the link is missing
        log.warning("%s: the table gets no link to the MLflow page: %s", task, error)
        return None
    return registry.mlflow.page_url(task, number) if number else None
