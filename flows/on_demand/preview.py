"""What the gate will ask of a task's next candidate, before there is one (`ptp gate explain`)."""

from collections.abc import Sequence
from typing import NamedTuple

from flows.on_demand.explanation import Champion, Explanation, Judges, Power
from flows.stages.compare import INCOMPARABLE, SeenRows, find_obstacle, select_comparable
from flows.stages.context import Context
from flows.stages.evidence import choose_margin, find_anchor
from flows.stages.ingest import find_source_key
from flows.stages.judge import budget_of, count_looks, reserve_judges
from ptpipeline.errors import BaseModelError, DataError, ServiceUnavailable, SettingsError
from ptpipeline.gate.explain import Opponents, list_requirements
from ptpipeline.records.data import Snapshot, Split
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Look
from ptpipeline.records.versions import PRODUCTION, Promotion
from ptpipeline.task.task import Task
from registry.ledger import looks as ledger_looks

RECENT = 20  # how many versions are searched for the last comparison with the champion


class _JudgingRows(NamedTuple):
    snapshot: Snapshot
    split: Split
    ids: list[str]
    served: int


def explain(context: Context, task: Task) -> Explanation:
    """Say what a candidate with a new question would face now; trains nothing, measures nothing, takes no look."""
    ledger, unknown = context.registry.ledger, list[str]()
    head = ledger.head(task.name, PRODUCTION)
    snapshot = _find_snapshot(context, task, unknown)
    rows = _find_rows(context, task, snapshot) if snapshot else None
    seen = SeenRows(context.registry, task.name, head.digest) if head else None
    champion = _describe_champion(context, task, head, seen, rows.ids if rows else []) if head and seen else None
    rival = seen if champion and not champion.incomparable else None
    judges = _describe_judges(task, rows, rival) if rows else None
    look = _find_look(context, task, rows) if rows else None
    margin = _find_margin(task, judges)
    anchor = find_anchor(ledger, task) if rival and task.gate.champion.rule == "non_inferiority" else None
    anchored = ledger.version_of(task.name, anchor).number if anchor and rival and anchor != rival.digest else None
    named = Opponents(f"version {head.version}" if head else None, f"version {anchored}" if anchored else None, margin)
    return Explanation(
        task=task.name,
        metric=task.gate.metric,
        rule=task.gate.champion.rule,
        promote=task.promote,
        champion=champion,
        anchor=anchored,
        margin=margin,
        judges=judges,
        look=look,
        power=_estimate_power(context, task, judges, look, rival) if judges and look and look.alpha else None,
        requirements=list_requirements(task, named),
        unknown=unknown,
    )


def _find_snapshot(context: Context, task: Task, unknown: list[str]) -> Snapshot | None:
    """Return the snapshot of today's source, else the newest that judged a version; the reason goes to `unknown`."""
    try:
        key = find_source_key(context.settings, task)
        snapshot = context.registry.ledger.snapshot_for(task.name, key)
        reason = f"today's rows are not ingested yet; `ptp ingest {task.name}` does it"
    except (BaseModelError, DataError, SettingsError, ServiceUnavailable) as error:  # its server's, or its base's
        snapshot, reason = None, str(error)
    if snapshot is not None and context.has_rows(snapshot):
        return snapshot
    last = _find_last_snapshot(context, task)
    consequence = (
        f"what follows is by the last snapshot, {last.digest[:12]}"
        if last
        else "so which rows judge, and at which look, is not known"
    )
    unknown.append(f"{reason}; {consequence}")
    return last


def _find_last_snapshot(context: Context, task: Task) -> Snapshot | None:
    ledger = context.registry.ledger
    newest = next(iter(ledger.versions(task.name, limit=1)), None)
    report = ledger.report_of(task.name, newest.digest) if newest else None
    snapshot = ledger.snapshot(task.name, report.snapshot) if report else None
    return snapshot if snapshot and context.has_rows(snapshot) else None


def _find_rows(context: Context, task: Task, snapshot: Snapshot) -> _JudgingRows:
    """Return the rows that will judge."""
    served = count_looks(context, task, snapshot)
    split: Split = "reserve" if reserve_judges(task, snapshot, served) else "test"
    return _JudgingRows(snapshot, split, context.row_ids(snapshot, split), served)


def _find_look(context: Context, task: Task, rows: _JudgingRows) -> Look:
    """Return the look that a new question would take."""
    budget = budget_of(task, rows.snapshot, rows.split)
    return ledger_looks.next_look(context.registry.ledger, task.name, rows.ids, budget)


def _describe_champion(context: Context, task: Task, head: Promotion, seen: SeenRows, ids: Sequence[str]) -> Champion:
    ledger = context.registry.ledger
    reason = find_obstacle(context, task, seen)
    rows = [] if reason else select_comparable(seen, ids)
    champion = Champion(version=head.version, incomparable=rows if isinstance(rows, str) else reason)
    report = ledger.disclosed(task.name, seen.digest).report
    if report is None:
        return champion
    figure, looks = report.prompt.figures().get(task.gate.metric), _count_looks_at(context, task, report)
    return champion.model_copy(update={"figure": figure, "split": report.split, "rows": report.rows, "looks": looks})


def _count_looks_at(context: Context, task: Task, report: Report) -> int | None:
    """Count the looks at the report's rows; None if they were collected, because looks are counted by the rows' ids."""
    try:
        ids = context.row_ids(context.snapshot(task.name, report.snapshot), report.split)
    except INCOMPARABLE:
        return None
    return ledger_looks.count_looks(context.registry.ledger, task.name, ids)


def _describe_judges(task: Task, rows: _JudgingRows, rival: SeenRows | None) -> Judges:
    snapshot = rows.snapshot
    return Judges(
        snapshot=snapshot.digest,
        split=rows.split,
        rows=len(rows.ids),
        comparable=len(rival.select_unseen(rows.ids)) if rival else len(rows.ids),
        served=rows.served,
        limit=task.gate.champion.looks,
        reserve=snapshot.reserve.rows if snapshot.reserve else None,
    )


def _find_margin(task: Task, judges: Judges | None) -> float | None:
    """Return the margin; None if the number of rows decides it, and the rows are not known."""
    policy = task.gate.champion
    if judges is None or policy.rule != "non_inferiority":
        return policy.margin
    return choose_margin(task, judges.comparable)


def _estimate_power(context: Context, task: Task, judges: Judges, look: Look, rival: SeenRows | None) -> Power:
    from ptpipeline.evaluation.power import expected_discordance, rows_needed, smallest_gain

    margin = _find_margin(task, judges)
    measured = _find_discordance(context, task, rival) if rival else None
    discordant = expected_discordance(measured)
    effect = margin if rival and margin else task.gate.checks.test_rows.effect
    return Power(
        effect=effect,
        rows_needed=rows_needed(effect, look.alpha, discordant),
        smallest_gain=smallest_gain(judges.comparable, look.alpha, discordant),
        discordant=discordant,
        measured=measured is not None,
    )


def _find_discordance(context: Context, task: Task, rival: SeenRows) -> float | None:
    """Return the share of rows on which the last candidate differed that was compared with this champion."""
    ledger = context.registry.ledger
    for version in ledger.versions(task.name, limit=RECENT):
        verdict = ledger.disclosed(task.name, version.digest).verdict
        comparison = verdict.comparison if verdict and verdict.champion == rival.digest else None
        if comparison and comparison.discordant is not None:
            return comparison.discordant
    return None
