"""Verbs of `ptp` that keep the registry in order: compare and mend, trace rows, delete what nothing needs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import (
    NO,
    Json,
    OptionalTask,
    app,
    check_task,
    find_version,
    load_sound_tasks,
    open_registry,
    read_text,
)
from flows.cli.display import choose_display
from flows.cli.terminal import say

if TYPE_CHECKING:
    from registry.repair.difference import Difference


@app.command()
def reconcile(task: OptionalTask = None, as_json: Json = False) -> None:
    """Bring pointers and MLflow's aliases to what the ledger says."""
    from flows.cli.render import print_table
    from ptpipeline.progress import watch
    from registry.repair.reconcile import reconcile as replay

    registry = open_registry(writing=True)
    check_task(registry, task)
    with watch("reconcile", choose_display()):
        actions = replay(registry, load_sound_tasks(), task)
    print_table(actions, as_json, "nothing to do")


@app.command()
def doctor(
    task: OptionalTask = None,
    mend: Annotated[bool, typer.Option("--fix", help="Mend what needs no decision by a person.")] = False,
    rebuild_ledger: Annotated[
        bool,
        typer.Option("--rebuild-ledger", help="First add to the ledger what the store proves and the ledger lacks."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare ledger, pointers, MLflow, stored bytes and base models.

    Each difference is listed with the command that mends it.
    """
    from flows.cli.render import print_table
    from ptpipeline.progress import watch
    from ptpipeline.settings import load_settings
    from registry.repair.bases import compare_bases
    from registry.repair.doctor import examine
    from registry.repair.mend import fix
    from registry.repair.rebuild import rebuild

    registry = open_registry(writing=mend or rebuild_ledger)
    with watch("doctor", choose_display()):
        actions = rebuild(registry) if rebuild_ledger else []
        differences = examine(registry, task)
        if mend and differences:
            actions += fix(registry, load_sound_tasks(), differences)
            differences = examine(registry, task)
        bases = compare_bases(registry, load_settings(), task)
    differences += bases.differences
    for action in actions:
        say(f"{action.task}: {action.what}", sys.stderr)
    for sentence in bases.absent:
        say(sentence, sys.stderr)
    rows = [difference if as_json else _difference_row(difference) for difference in differences]
    print_table(rows, as_json, "no differences")
    if differences or not all(action.done for action in actions):
        raise typer.Exit(NO)


@app.command()
def lineage(
    reference: Annotated[
        str | None, typer.Argument(metavar="TASK[@ALIAS|@N]", help="From a version to what it was made from.")
    ] = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="ID", help="From a row, by its id, to every version that learnt from it."),
    ] = None,
    text_file: Annotated[
        Path | None,
        typer.Option("--text-file", metavar="FILE", readable=False, help="The same, by the row's text in a file."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=TEXT", help="The same, by each field of a row of several; repeat."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Trace a version to its rows, or a row to the versions.

    For a row it also says what to do if the row must be forgotten.
    """
    from flows.cli.questions import read_pairs
    from flows.cli.render import print_lineage, print_table
    from registry.lineage.trace import plan_erasure, row_id, trace_row, trace_version

    if [reference, row, text_file, field or None].count(None) != 3:
        raise typer.BadParameter("give a version, or --row, or --text-file, or --field for each field of a row")
    registry = open_registry()
    if reference is not None:
        print_lineage(trace_version(registry, *find_version(registry, reference)), as_json)
        return
    fields = {"text": read_text(text_file)} if text_file is not None else read_pairs(field or [])
    exposures = trace_row(registry, row_id(fields) if fields else str(row))
    print_table(exposures, as_json, "nothing that is stored learnt from this row")
    for step in plan_erasure(exposures):
        say(step, sys.stderr)


@app.command()
def gc(
    task: OptionalTask = None,
    keep: Annotated[
        int,
        typer.Option(
            "--keep", min=1, metavar="N", help="Keep this many newest versions of each task beside what is in use."
        ),
    ] = 10,
    grace: Annotated[
        float, typer.Option("--grace", min=0, metavar="HOURS", help="Keep what is younger than this.")
    ] = 24,
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete; without it, only list what would be deleted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List, or delete with --apply, what nothing needs.

    That is old candidates, orphans, snapshots and checkpoints. What an alias has ever named stays.
    """
    from datetime import timedelta

    from flows.cli.render import print_table
    from ptpipeline.progress import watch
    from registry.garbage.collect import collect
    from registry.garbage.roots import Retention

    registry = open_registry(writing=apply)
    retention = Retention(candidates=keep, grace=timedelta(hours=grace))
    check_task(registry, task)
    with watch("gc", choose_display()):
        garbage = collect(registry, retention, apply, task)
    print_table(garbage, as_json, "nothing to collect")
    if not apply and garbage:
        size = sum(item.bytes for item in garbage)
        say(f"{len(garbage)} items would be deleted, {size:,} bytes; `--apply` deletes them", sys.stderr)


BackupFile = Annotated[
    Path, typer.Argument(metavar="FILE", readable=False, help="A backup of the ledger, such as ledger.jsonl.gz.")
]


@app.command()
def backup(file: BackupFile, as_json: Json = False) -> None:
    """Write the whole ledger to a file, while others go on using it.

    The file holds the secret that seals checkpoints: keep it as private as the ledger. Rows, prompts and reports lie in
    the object store.
    """
    from flows.cli.render import print_record
    from ptpipeline.settings import resolve_path
    from registry.ledger.backup import back_up

    print_record(back_up(open_registry().ledger.database, resolve_path(file))._asdict(), as_json)


@app.command()
def restore(file: BackupFile, as_json: Json = False) -> None:
    """Make the ledger of a backup, where PTP_LEDGER names none yet.

    What happened since then is added by `ptp doctor --rebuild-ledger`, from the store, and shown by `ptp reconcile`.
    """
    from flows.cli.render import print_record
    from ptpipeline.settings import load_settings, resolve_path
    from registry.ledger.backup import restore as make_ledger

    print_record(make_ledger(load_settings().ledger, resolve_path(file))._asdict(), as_json)
    say("`ptp doctor --rebuild-ledger` adds what the store knows of the time since, then `ptp reconcile`", sys.stderr)


def _difference_row(difference: "Difference") -> dict[str, object]:
    row: dict[str, object] = difference.to_json()
    return {name: value for name, value in row.items() if name != "safe"} | {"--fix mends it": difference.safe}
