"""Verbs of `ptp` by which people decide about candidates that passed their gate."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from flows.cli.app import (
    Json,
    app,
    find_version,
    load_sound_tasks,
    name_cause,
    open_context,
    open_registry,
    os_user,
)
from flows.cli.terminal import is_asking, say
from flows.cli.versions import show
from flows.requests import VERDICT_DIGITS
from ptpipeline.records.versions import PRODUCTION, VersionRef

if TYPE_CHECKING:
    from flows.stages.approve import Approvals
    from flows.stages.context import Context

Waiting = Annotated[
    str | None,
    typer.Argument(metavar="TASK@N", help="The candidate; without one, what waits for approval is listed."),
]
Why = Annotated[str | None, typer.Option("--reason", help="Why; the history keeps it forever. Asked for if missing.")]
Read = Annotated[
    str | None,
    typer.Option(
        "--verdict", help="With --reason: first digits of the verdict that you read, as `ptp show` prints them."
    ),
]


@app.command()
def approve(reference: Waiting = None, reason: Why = None, verdict: Read = None, as_json: Json = False) -> None:
    """Approve a candidate that waits for people.

    It shows report and difference first. If enough people approved it, production names it.
    """
    from flows.stages.approve import approve as approve_version

    if reason is not None and not (verdict and re.fullmatch(f"[0-9a-f]{{{VERDICT_DIGITS},64}}", verdict)):
        raise typer.BadParameter(
            f"--reason needs --verdict, the first {VERDICT_DIGITS} or more digits of the verdict that you read: "
            f"`ptp show {reference or 'TASK@N'}` prints them"
        )
    question = _ask("Approve", reference, reason, as_json)
    if question is None:
        return
    context, (task, number), why, shown = question
    decided = approve_version(context, task, number, name_cause(context.registry, why), verdict or shown)
    _print_decisions(decided.approvals, as_json)
    given, needed = decided.approvals.given, decided.approvals.needed
    more = f"{given} of {needed} approvals; {needed - given} more of somebody else promotes it"
    say(f"{task}@{PRODUCTION} is version {number}" if decided.promotion else more, sys.stderr)


@app.command()
def reject(reference: Waiting = None, reason: Why = None, as_json: Json = False) -> None:
    """Reject a candidate that waits for people.

    Nothing asks for it again. It shows report and difference first.
    """
    from flows.stages.approve import reject as reject_version

    question = _ask("Reject", reference, reason, as_json)
    if question is None:
        return
    context, (task, number), why, _ = question
    _print_decisions(reject_version(context, task, number, name_cause(context.registry, why)), as_json)


def _print_decisions(approvals: "Approvals", as_json: bool) -> None:
    """Print how the request stands: for people, what each of them decided."""
    from flows.cli.render import print_record

    if as_json:
        print_record(approvals, as_json)
        return
    for decision in approvals.decisions:
        say(f"{approvals.task}@{approvals.version}: {decision}")


def _waiting_row(approvals: "Approvals") -> dict[str, str]:
    return {
        "candidate": f"{approvals.task}@{approvals.version}",
        "approvals": f"{approvals.given} of {approvals.needed}",
        "verdict": approvals.verdict[:VERDICT_DIGITS],
        "run started by": approvals.started_by,
        "until (UTC)": approvals.expires_at[:16].replace("T", " "),
    }


class Question(NamedTuple):
    """What a person decides about, and why; `verdict` was the newest when it was shown."""

    context: "Context"
    version: VersionRef
    reason: str
    verdict: str


def _ask(verb: str, reference: str | None, reason: str | None, as_json: bool) -> "Question | None":
    """Show what is decided about and ask for the reason if it is missing; without a reference list what waits."""
    from flows.cli.render import print_table
    from flows.stages.approve import list_waiting

    if reference is None:
        waiting = list_waiting(open_registry(), load_sound_tasks())
        print_table(
            waiting if as_json else [_waiting_row(one) for one in waiting], as_json, "nothing waits for approval"
        )
        return None
    context = open_context()
    version = find_version(context.registry, reference)
    shown = (
        context.registry.ledger.version(version.task, version.number).verdict or ""
    )  # one that comes now is not shown
    if reason is not None:
        return Question(context, version, reason, shown)
    if as_json or not is_asking():
        raise typer.BadParameter("say why with --reason; only on a terminal is it asked for")
    show(reference)
    reason = str(typer.prompt(f"{verb} {version} as {os_user()}, because"))
    return Question(context, version, reason, shown)
