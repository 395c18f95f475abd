"""What a run came to for one task: a line of the night's table."""

import logging
from typing import ClassVar, NamedTuple

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

log = logging.getLogger("ptpipeline.stages")


class Outcome(Grown):
    """One line of the night's table.

    Figures are the task's gate metric on the rows that judge; None if they are withheld. Tokens and seconds are what
    the training of this version took of its gang; None if they were not counted then, or it was imported. `plan` is why
    it trained, or `unchanged`.
    """

    LATER: ClassVar = frozenset({"tokens", "seconds", "processor_seconds", "plan"})

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
        reason=reason,
        page=_find_page(registry, task.name, candidate.tuned.digest),
    )


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
        return (
            "rolled back",
            f"{task.name}@{PRODUCTION} was moved away from version {version.number}; `ptp promote "
            f"{task.name}@{version.number} --reason ...` takes it back",
        )
    if not verdict.passed:
        no_gain = any(check.name == "gain" for check in disclose_verdict(verdict).failures())
        return "no gain" if no_gain else "gate failed", describe_failures(verdict)
    return "awaiting approval", f"`ptp promote {task.name}@{version.number} --reason ...` takes it to production"


def _find_page(registry: Registry, task: str, digest: str) -> str | None:
    if registry.mlflow is None:
        return None
    try:
        number = registry.mlflow.find(task, digest)
    except PtpError as error:  # the promotion stands; only the link is missing
        log.warning("%s: the table gets no link to the MLflow page: %s", task, error)
        return None
    return registry.mlflow.page_url(task, number) if number else None
