"""What Prefect shows of a task's verdict beside the night's table: a Markdown artifact, of which each night adds one
under the same key.
"""

import re

from prefect.artifacts import create_markdown_artifact

from flows.stages.outcome import Outcome
from ptpipeline.records import Check, PairedDifference, Verdict, title_of


def tell(outcome: Outcome, verdict: Verdict) -> None:
    """Write the artifact `verdict-<task>`."""
    create_markdown_artifact(
        key=f"verdict-{outcome.task}",
        markdown=markdown(outcome, verdict),
        description=f"{outcome.task}: {outcome.status}",
    )


def markdown(outcome: Outcome, verdict: Verdict) -> str:
    """The verdict check by check, behind what the candidate was compared with; no row's text."""
    lines = [
        f"# {outcome.task}@{outcome.version}: {outcome.status}",
        "",
        _escaped(outcome.reason),
        "",
        *_compared(verdict),
        *_budget(verdict),
    ]
    lines += ["## Checks", "", *map(_check, verdict.checks)]
    return "\n".join([*lines, *(["", f"[The version in MLflow]({outcome.page})"] if outcome.page else [])])


def _compared(verdict: Verdict) -> list[str]:
    found = verdict.comparisons()
    if not found:
        return []
    rows = [_difference(name, pair) for name, pair in found.items()]
    return [
        "| candidate minus | metric | difference | bounds | p | test | rows |",
        "|---|---|--:|--:|--:|---|--:|",
        *rows,
        "",
    ]


def _difference(name: str, pair: PairedDifference) -> str:
    p_value = "–" if pair.p_value is None else f"{pair.p_value:.2g}"
    margin = f" (margin {pair.margin:.4f})" if pair.margin else ""
    bounds = f"{pair.lower:+.4f} to {pair.upper:+.4f} at {pair.confidence:.0%}"
    return (
        f"| {name}{margin} | {title_of(pair.metric)} | **{pair.difference:+.4f}** | {bounds} | {p_value} | "
        f"{_escaped(pair.test) or '–'} | {pair.rows} |"
    )


def _budget(verdict: Verdict) -> list[str]:
    look = verdict.look
    if look is None:
        return []
    return [
        f"Look {look.number} at these test rows: it may err with a chance of {look.alpha:.2g}; "
        f"{look.spent:.3f} of {look.budget:.3f} is spent.",
        "",
    ]


def _check(check: Check) -> str:
    """As a bullet: cells of Prefect's tables do not wrap, so the last of them would be out of sight."""
    mark = "✓ pass" if check.passed else "✗ **FAIL**" if check.blocks else "⚠ warning"
    return (
        f"- {mark} **{_escaped(check.name)}**: {_escaped(check.observed)}; required ({check.policy}s): "
        f"{_escaped(check.required)}"
    )


def _escaped(text: str) -> str:
    """As Markdown shows it literally, in one line: labels are a user's own words."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
