"""Verbs of `ptp` by which people decide about candidates that passed their gate."""

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
from flows.cli.terminal import say
from flows.cli.versions import show
from ptpipeline.records.versions import PRODUCTION

if TYPE_CHECKING:
    from flows.cli.app import VersionId
    from flows.stages.context import Context

Waiting = Annotated[
    str | None,
    typer.Argument(metavar="[TASK@N]", help="The candidate; without one, what waits for approval is listed."),
]
Why = Annotated[str | None, typer.Option("--reason", help="Why; the history keeps it forever. Asked for if missing.")]


@app.command()
def approve(reference: Waiting = None, reason: Why = None, as_json: Json = False) -> None:
    """Approve a candidate that waits for people.

    It shows report and difference first. If enough people approved it, production names it.
    """
    from flows.cli.render import print_record
    from flows.stages.approve import approve as approve_version

    question = _ask("Approve", reference, reason, as_json)
    if question is None:
        return
    context, (task, number), why = question
    decided = approve_version(context, task, number, name_cause(context.registry, why))
    print_record(decided.approvals, as_json)
    given, needed = decided.approvals.given, decided.approvals.needed
    more = f"{given} of {needed} approvals; {needed - given} more of somebody else promotes it"
    say(f"{task}@{PRODUCTION} is version {number}" if decided.promotion else more, sys.stderr)


@app.command()
def reject(reference: Waiting = None, reason: Why = None, as_json: Json = False) -> None:
    """Reject a candidate that waits for people; nothing asks for it again.

    It shows report and difference first.
    """
    from flows.cli.render import print_record
    from flows.stages.approve import reject as reject_version

    question = _ask("Reject", reference, reason, as_json)
    if question is None:
        return
    context, (task, number), why = question
    print_record(reject_version(context, task, number, name_cause(context.registry, why)), as_json)


class Question(NamedTuple):
    """What a person decides about, and why."""

    context: "Context"
    version: "VersionId"
    reason: str


def _ask(verb: str, reference: str | None, reason: str | None, as_json: bool) -> "Question | None":
    """Show what is decided about and ask for the reason if it is missing; without a reference list what waits."""
    from flows.cli.render import print_table
    from flows.stages.approve import list_waiting

    if reference is None:
        rows = list_waiting(open_registry(), load_sound_tasks())
        print_table(rows, as_json, "nothing waits for approval")
        return None
    context = open_context()
    version = find_version(context.registry, reference)
    if reason is not None:
        return Question(context, version, reason)
    if as_json or not sys.stdin.isatty():
        raise typer.BadParameter("say why with --reason; only on a terminal is it asked for")
    show(reference)
    reason = str(typer.prompt(f"{verb} {version.task}@{version.number} as {os_user()}, because"))
    return Question(context, version, reason)
