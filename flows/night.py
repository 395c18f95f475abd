"""What Prefect shows of a run over several tasks: its table, its final state, and the verdict of each task."""

from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State

from flows.requests import PREFECT_ACTOR, VERDICT_DIGITS, record_claim
from flows.stages.approve import Approvals
from flows.stages.chain import Night
from flows.stages.context import MACHINE
from flows.stages.outcome import Outcome, tabulate
from flows.states import end_state, outlast, tag_run
from flows.table import escape_words
from ptpipeline.records.reports import PairedDifference, title_of
from ptpipeline.records.verdicts import Check, Verdict
from registry.card.markdown import escape
from registry.ledger.database import outlasting
from registry.registry import Registry

_WIDE = ("reason", "page")  # columns that stand last


def name_starter(actor: str, schedule: str | None) -> str:
    """Return who started a run, as the history names them: the scheduler, unless somebody gives a name."""
    return MACHINE if schedule and actor == PREFECT_ACTOR else record_claim(actor)


def end(night: Night, key: str) -> State[Any]:
    """Write the table under `key`, tag the run, and return its final state."""
    rows = build_table(night)
    lines = [f"- {_render_row(row)}" for row in rows if row["status"] != "unchanged"]
    description = "\n".join([f"**{key}**: {len(rows)} task{'s' * (len(rows) != 1)}", "", *lines])
    outlast(f"the table {key}", lambda: create_table_artifact(key=key, table=rows, description=description))
    tag_run(night)
    return end_state(night)


def build_table(night: Night) -> list[dict[str, Any]]:
    """Return one row per task: its outcome with rounded figures, or `failed` with the reason."""
    outcomes = {task: tabulate(outcome) for task, outcome in night.outcomes.items()}
    errors = {task: {"task": task, "status": "failed", "reason": sentence} for task, sentence in night.errors.items()}
    rows = [row for _, row in sorted((outcomes | errors).items())]
    columns = dict.fromkeys(name for row in rows for name in row)  # Prefect shows those of the first row
    ordered = [*(name for name in columns if name not in _WIDE), *(name for name in _WIDE if name in columns)]
    return [escape_words({name: row.get(name) for name in ordered}) for row in rows]


def _render_row(row: dict[str, Any]) -> str:
    """Render a row of the table with its reason, which the table cuts: cells of Prefect's tables do not wrap."""
    task = f"[{row['task']}]({row['page']})" if row.get("page") else row["task"]
    return f"{task} **{row['status']}**: {row['reason'] or ''}"


def join_errors(errors: dict[str, str]) -> str:
    """Join the tasks' errors into one line."""
    return "; ".join(f"{task}: {sentence}" for task, sentence in errors.items())


# ---------------------------------------------------------------- verdicts


def show_verdict(outcome: Outcome, verdict: Verdict) -> None:
    """Write the Markdown artifact `verdict-<task>`; each night adds one under the same key."""
    key, told = f"verdict-{outcome.task}", f"{outcome.task}: {outcome.status}"
    markdown = render_verdict(outcome, verdict)
    outlast(f"the verdict on {outcome.task}", lambda: create_markdown_artifact(markdown, key, told))


def render_verdict(outcome: Outcome, verdict: Verdict) -> str:
    """Render the verdict as Markdown: the comparisons, then check by check; it holds no text of a row."""
    lines = [
        f"# {outcome.task}@{outcome.version}: {outcome.status}",
        "",
        escape(outcome.reason),
        "",
        *_render_figures(outcome),
        *_render_comparisons(verdict),
        *_render_look(verdict),
    ]
    lines += ["## Checks", "", *map(_render_check, verdict.checks)]
    return "\n".join([*lines, *(["", f"[The version in MLflow]({outcome.page})"] if outcome.page else [])])


def show_approvals(registry: Registry, approvals: Approvals) -> None:
    """Write the Markdown artifact `approval-<task>`: what people decided, over the report that they decided on."""
    key, told = f"approval-{approvals.task}", f"{approvals.task}@{approvals.version}: {approvals.status}"
    markdown = render_approvals(approvals, find_verdict(registry, approvals))
    outlast(f"the approvals of {approvals.task}", lambda: create_markdown_artifact(markdown, key, told))


@outlasting
def find_verdict(registry: Registry, approvals: Approvals) -> Verdict | None:
    """Return the verdict that people decided on, as they may see it."""
    digest = registry.ledger.version(approvals.task, approvals.version).digest
    return registry.ledger.disclosed(approvals.task, digest).verdict


def render_approvals(approvals: Approvals, verdict: Verdict | None) -> str:
    """Render who decided what about a candidate, and its comparisons and checks, as Markdown."""
    lines = [
        f"# {approvals.task}@{approvals.version}: {approvals.status}",
        "",
        f"{approvals.given} of {approvals.needed} approvals; its run was started by {escape(approvals.started_by)}; "
        f"the request ends at {approvals.expires_at}. Verdict {approvals.verdict[:VERDICT_DIGITS]}.",
        "",
        *(f"- {escape(decision)}" for decision in approvals.decisions),
        "",
    ]
    shown = [*_render_comparisons(verdict), "## Checks", "", *map(_render_check, verdict.checks)] if verdict else []
    return "\n".join([*lines, *shown])


def _render_comparisons(verdict: Verdict) -> list[str]:
    comparisons = verdict.comparisons()
    if not comparisons:
        return []
    rows = [_render_difference(name, pair) for name, pair in comparisons.items()]
    return [
        "| candidate minus | metric | difference | bounds | p | test | rows |",
        "|---|---|--:|--:|--:|---|--:|",
        *rows,
        "",
    ]


def _render_difference(name: str, pair: PairedDifference) -> str:
    p_value = "–" if pair.p_value is None else f"{pair.p_value:.2g}"
    margin = f" (margin {pair.margin:.4f})" if pair.margin else ""
    bounds = f"{pair.lower:+.4f} to {pair.upper:+.4f} at {pair.confidence:.0%}"
    return (
        f"| {escape(name)}{margin} | {escape(title_of(pair.metric))} | **{pair.difference:+.4f}** | {bounds} | "
        f"{p_value} | {escape(pair.test) or '–'} | {pair.rows} |"
    )


def _render_figures(outcome: Outcome) -> list[str]:
    """Render the candidate's figure beside those that it is compared with; none if they are withheld."""
    figures = {
        "without a prompt": outcome.zero_shot,
        "champion": outcome.champion,
        "candidate": outcome.candidate,
    }
    known = [f"{name} {value:.4f}" for name, value in figures.items() if value is not None]
    return [f"{escape(title_of(outcome.metric))}: {', '.join(known)}", ""] if known else []


def _render_look(verdict: Verdict) -> list[str]:
    look = verdict.look
    if look is None:
        return []
    return [
        f"Look {look.number} at these test rows: it may err with a chance of {look.alpha:.2g}; "
        f"{look.spent:.3f} of {look.budget:.3f} is spent.",
        "",
    ]


def _render_check(check: Check) -> str:
    """Render a check as a bullet: cells of Prefect's tables do not wrap, so the last of them would be out of sight."""
    mark = "✓ pass" if check.passed else "✗ **FAIL**" if check.blocks else "⚠ warning"
    return (
        f"- {mark} **{escape(check.name)}**: {escape(check.observed)}; required ({check.policy}s): "
        f"{escape(check.required)}"
    )
