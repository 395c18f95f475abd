"""What a verdict is decided on: a candidate beside champion, anchor and baselines, and measures of its data."""

import math
from typing import TYPE_CHECKING, NamedTuple

from flows.stages.compare import Measured, SeenRows, compare, pair_with
from flows.stages.context import Context
from ptpipeline.errors import NotFound
from ptpipeline.gate.decide import Evidence
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.records.reports import PairedDifference, Report, SliceDifference
from ptpipeline.records.verdicts import Look
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.task.task import Task
from registry.ledger.ledger import Ledger
from registry.versions.history import path_of

if TYPE_CHECKING:
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.results import Results


class Challenge(NamedTuple):
    """A measured candidate beside the champion, before anything is compared.

    `champion` is the digest of what production points to, None if it points to nothing. `pair` are the two on the rows
    that neither learnt from; a sentence if they do not compare, None if there is no other version in production.
    """

    tuned: TunedPrompt
    champion: str | None
    measured: Measured
    seen: SeenRows
    rival: SeenRows | None
    pair: "Pair | str | None"


def line_up(context: Context, task: Task, tuned: TunedPrompt, report: Report, champion: str | None) -> Challenge:
    """Bring the candidate and the champion together on the rows of the report; the champion is measured if it was not.

    Raises NotFound or ArtifactError if the candidate's results or training rows are missing or altered.
    """
    from ptpipeline.evaluation.results import Results

    results = Results.of(context.registry.store, report)
    seen = SeenRows(context.registry, task.name, tuned.digest)
    measured = Measured(report, results, seen.select_unseen(results.ids))
    rival = SeenRows(context.registry, task.name, champion) if champion and champion != tuned.digest else None
    pair = pair_with(context, task, measured, rival) if rival else None
    return Challenge(tuned, champion, measured, seen, rival, pair)


def gather(context: Context, task: Task, challenge: Challenge, look: Look | None) -> Evidence:
    """Compare the candidate with all that the policy names, and measure its data."""
    measured, pair = challenge.measured, challenge.pair
    margin = choose_margin(task, len(measured.rows if pair is None or isinstance(pair, str) else pair.rows))
    comparison = compare(task, pair, margin) if pair is not None else None
    compared = None if isinstance(pair, str) or not isinstance(comparison, PairedDifference) else pair
    return Evidence(
        report=measured.report,
        stored_bytes=challenge.tuned.bytes,
        champion=challenge.champion,
        look=look,
        comparison=comparison,
        superior=compared is not None and _is_superior(task, comparison, compared, look),
        anchor=_compare_anchor(context, task, challenge, compared) if compared and margin else None,
        baselines=_compare_baselines(context, task, measured),
        slices=_compare_slices(task, compared) if compared else [],
        measures=measured.report.measures
        | _count_infinite(measured.results)
        | _measure_leakage(context, task, challenge)
        | (_measure_drift(task, challenge.seen, challenge.rival) if compared and challenge.rival else {}),
        rows_needed=_count_rows_needed(task, look, comparison),
    )


# ---------------------------------------------------------------- comparisons


def choose_margin(task: Task, rows: int) -> float:
    """Return by how much a candidate may be worse than the champion on that many rows; 0 under superiority."""
    from ptpipeline.evaluation.power import default_margin

    policy = task.gate.champion
    if policy.rule == "superiority":
        return 0.0
    return policy.margin if policy.margin is not None else default_margin(rows, policy.budget)


def _is_superior(task: Task, comparison: PairedDifference | str | None, pair: "Pair", look: Look | None) -> bool:
    """Whether the challenger is better, and not only no worse: without a margin the comparison says it."""
    from ptpipeline.evaluation.compare import compare_pair
    from ptpipeline.evaluation.paired import Hypothesis

    if not isinstance(comparison, PairedDifference):
        return False
    p_value = (compare_pair(task, pair, Hypothesis(task.gate.metric)) if comparison.margin else comparison).p_value
    return p_value is not None and look is not None and look.alpha > 0 and p_value <= look.alpha


def _compare_baselines(context: Context, task: Task, measured: Measured) -> dict[str, PairedDifference]:
    from ptpipeline.evaluation.compare import Pair
    from ptpipeline.evaluation.results import Results

    differences = {}
    for kind, key in measured.report.baselines.items():
        baseline = context.registry.ledger.report(key)
        if baseline is None:
            raise NotFound(
                f"{task.name}: the ledger lost the report of baseline {kind} ({key[:12]}); `ptp run {task.name}` "
                "measures it again"
            )
        theirs = Results.of(context.registry.store, baseline)
        difference = compare(task, Pair(measured.results, theirs, measured.rows), 0.0)
        if isinstance(difference, PairedDifference):
            differences[kind] = difference
    return differences


def _compare_slices(task: Task, pair: "Pair") -> list[SliceDifference]:
    from ptpipeline.evaluation.compare import compare_slices

    rule = task.gate.checks.slices
    return compare_slices(task, pair, rule.min_rows) if rule.policy != "off" else []


def _compare_anchor(context: Context, task: Task, challenge: Challenge, pair: "Pair") -> PairedDifference | str | None:
    """Return the challenger minus the anchor; None if the anchor is the champion, or the challenger itself."""
    anchor = find_anchor(context.registry.ledger, task)
    if anchor in (None, challenge.tuned.digest, challenge.champion):
        return None
    measured = challenge.measured._replace(rows=pair.rows)
    rival = SeenRows(context.registry, task.name, str(anchor))
    return compare(task, pair_with(context, task, measured, rival), choose_margin(task, len(pair.rows)))


def find_anchor(ledger: Ledger, task: Task) -> str | None:
    """Return the digest of the anchor: the last production version that was proven better than the one before.

    The first version in production counts too, and one that a person promoted by an override; a version that was
    rolled back from does not.
    """
    for row in reversed(path_of(ledger.history(task.name, PRODUCTION))):
        verdict = ledger.verdict(row.verdict) if row.verdict else None
        if row.override or verdict is None or verdict.won != "not inferior":
            return row.digest
    return None


def _count_rows_needed(task: Task, look: Look | None, comparison: PairedDifference | str | None) -> int | None:
    from ptpipeline.evaluation.power import expected_discordance, rows_needed

    if task.gate.checks.test_rows.policy == "off" or (look and look.alpha == 0):  # then no number of rows shows it
        return None
    difference = comparison if isinstance(comparison, PairedDifference) else None
    effect = difference.margin if difference and difference.margin else task.gate.checks.test_rows.effect
    return rows_needed(
        effect,
        look.alpha if look else task.gate.champion.budget,
        expected_discordance((difference.discordant or 0.0) if difference else None),
    )


# ---------------------------------------------------------------- measures of the data


def _count_infinite(results: "Results") -> dict[str, float]:
    """Count the rows that have a likelihood that is not finite."""
    scores = results.log_likelihoods
    return {"finite.bad": sum(not all(math.isfinite(column[row]) for column in scores) for row in results.ids)}


def _measure_leakage(context: Context, task: Task, challenge: Challenge) -> dict[str, float]:
    """Measure how many of the test rows stand, or nearly stand, among the candidate's training rows.

    `leakage.inherited` is the share that only its ancestors learnt from. Comparisons leave these rows out, and they do
    not block: a row may move to another split between two nights.
    """
    from ptpipeline.data.snapshot import load_split
    from ptpipeline.evaluation.leakage import measure_leakage

    if task.gate.checks.leakage.policy == "off":
        return {}
    if challenge.tuned.steps == 0:  # imported: its training rows are not known
        return {"leakage.unknown": 1}
    report, seen = challenge.measured.report, challenge.seen
    test = load_split(context.registry.store, context.snapshot(task.name, report.snapshot), report.split)
    inherited = sum(seen.is_inherited(row.id) for row in test) / len(test)
    return measure_leakage(test, seen.own, task.gate.checks.leakage.fields) | {"leakage.inherited": inherited}


def _measure_drift(task: Task, seen: SeenRows, rival: SeenRows) -> dict[str, float]:
    """Measure how far the candidate's training rows are from the champion's."""
    from ptpipeline.evaluation.drift import measure_drift

    if task.gate.checks.drift.policy == "off" or not rival.own or not seen.own:  # imported: they are not known
        return {}
    return measure_drift(rival.own, seen.own, labelled=task.generate is None)
