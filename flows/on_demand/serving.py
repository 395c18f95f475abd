"""What servers answer with, against what the ledger says: by their own reports, one a server."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

from ptpipeline.records.base import Record, read_clock
from ptpipeline.records.serving import CanaryTally, ServerReport, Tally
from ptpipeline.records.versions import Promotion
from ptpipeline.serving.live import REPORT
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.serving.trials import describe_canary, describe_shadow
from registry.registry import Registry

AnyTally = TypeVar("AnyTally", Tally, CanaryTally)

NAMING: Final = 5  # first fields of a tally, which name what was compared; all behind them are counts, which add up
SETTLED = timedelta(seconds=30)  # in which servers take a promotion over and report it
SILENT = timedelta(seconds=3 * REPORT)


class Standing(Record):
    """One server: when it reported last, how many prompts it holds, how many aliases it answers by as the ledger says.

    behind: what it answers otherwise, and why; one sentence each. silent: it did not report for three minutes. trials,
    canaries: how its shadows and canaries compare.
    """

    server: str
    at: str
    holds: int
    current: int
    behind: list[str]
    silent: bool
    trials: list[Tally]
    canaries: list[CanaryTally]


def compare_servers(registry: Registry) -> list[Standing]:
    """Return the standing of every server that reports that it holds something, by name.

    Raises ArtifactError if a report cannot be read, and what store and ledger raise.
    """
    reports = [report for report in read_server_reports(registry.store) if report.holds]
    heads = registry.ledger.heads() if reports else []
    return [_compare(report, heads) for report in reports]


def _compare(report: ServerReport, heads: Sequence[Promotion]) -> Standing:
    observed = {(row.task, row.alias): row for row in report.observed}
    refused = {(row.task, row.alias): row.reason for row in report.refused}
    behind, current = [], 0
    for head in heads:
        place = (head.task, head.alias)
        row, why = observed.get(place), refused.get(place)
        if row is not None and row.seq >= head.seq:
            current += 1
        if why is None and (row is None or row.seq >= head.seq or _age(head.at) < SETTLED):
            continue  # a server of some tasks observes no others
        answers = f"answers with version {row.version}" if row else "answers with none"
        behind.append(
            f"{head.task}@{head.alias}: the ledger says version {head.version} (promotion {head.seq}), and this server "
            f"{answers}: {f'refused: {why}' if why else 'it did not see it yet'}"
        )
    return Standing(
        server=report.server,
        at=report.at,
        holds=len(report.holds),
        current=current,
        behind=behind,
        silent=_age(report.at) > SILENT,
        trials=report.trials,
        canaries=report.canaries,
    )


def describe_trials(servers: Sequence[Standing]) -> list[str]:
    """Return a sentence for each shadow and canary: what the tallies of all servers together say of it.

    The evidence depends on the counts alone, so those of several servers add up.
    """
    shadows = _add_up(tally for server in servers for tally in server.trials)
    canaries = _add_up(tally for server in servers for tally in server.canaries)
    return [*map(describe_shadow, shadows), *map(describe_canary, canaries)]


def _add_up(tallies: Iterable[AnyTally]) -> list[AnyTally]:
    """Return one tally for each promotion, whose counts are the sums of all servers'."""
    total: dict[tuple[str, str, int], AnyTally] = {}
    for tally in tallies:
        place = (tally.task, tally.alias, tally.seq)
        before = total.get(place)
        counts = [sum(pair) for pair in zip(tally[NAMING:], before[NAMING:], strict=True)] if before else tally[NAMING:]
        total[place] = type(tally)(*tally[:NAMING], *counts)
    return [tally for _, tally in sorted(total.items())]


def _age(at: str) -> timedelta:
    return read_clock() - datetime.fromisoformat(at)
