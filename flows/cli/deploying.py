"""Verbs of `ptp` for servers of your own."""

import sys
from typing import Annotated, Literal

import typer

from flows.cli.app import FAILED, Json, app
from flows.cli.terminal import log_plainly, say


@app.command()
def bootstrap(
    pool: Annotated[
        Literal["process", "docker", "kubernetes"],
        typer.Option("--pool", help="What a worker makes of each flow run: a process, a container, or a job."),
    ] = "process",
    gpus: Annotated[
        int, typer.Option("--gpus", min=0, help="GPUs of each job that trains; needs --pool kubernetes.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what is missing; make nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make what servers of your own need to run the flows.

    That is buckets, policies, the ledger's tables, work pool and deployments: what `ptp up` makes for the local stack.
    To repeat it changes nothing; a schedule that somebody paused stays paused.
    """
    from flows.cli.render import print_table
    from flows.server.bootstrap import Wanted
    from flows.server.bootstrap import bootstrap as bring
    from ptpipeline.settings import load_settings
    from ptpipeline.task.folder import sound_tasks

    if gpus and pool != "kubernetes":
        raise typer.BadParameter("only a job of Kubernetes is given GPUs: a process has those of its machine")
    log_plainly()
    settings = load_settings()
    sound, broken = sound_tasks(settings.tasks)
    outcomes = bring(settings, sound, Wanted(pool, gpus), dry_run)
    print_table(outcomes, as_json)
    for sentence in broken.values():
        say(f"{sentence}; until then no schedule runs it", sys.stderr)
    if any(outcome.state == "cannot" for outcome in outcomes):
        raise typer.Exit(FAILED)
