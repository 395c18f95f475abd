"""Verbs of `ptp` for the local stack: start it, stop it, show its state, and sign a browser in at its pages."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.alarms import say_pauses, say_servers, say_silence
from flows.cli.app import NO, Json, app
from flows.cli.terminal import say

if TYPE_CHECKING:
    from flows.local.stack import ServerStatus
    from ptpipeline.settings import Settings
    from ptpipeline.task.task import Task

Port = Annotated[
    int | None, typer.Option(min=1024, max=55000, help="Use this port, or fail; by default a free one is found.")
]


@app.command()
def up(prefect_port: Port = None, mlflow_port: Port = None, s3_port: Port = None, as_json: Json = False) -> None:
    """Start the local stack and deploy the flows.

    The stack is Prefect, MLflow and S3 on this machine. Run it again to deploy changed schedules.
    """
    from flows.cli.render import print_table
    from flows.local.ports import Ports
    from flows.local.stack import status as read_status
    from flows.local.stack import up as start
    from flows.server.deploy import deploy
    from ptpipeline.settings import load_settings
    from ptpipeline.task.folder import sound_tasks

    here = load_settings(starting=True)
    sound, broken = sound_tasks(here.tasks)  # first: in a wrong folder nothing starts
    start(here.home, Ports(prefect=prefect_port, mlflow=mlflow_port, storage=s3_port))
    settings = load_settings()
    deploy(settings, sound)
    for sentence in broken.values():
        say(f"{sentence}; until then no schedule runs it", sys.stderr)
    if as_json:
        print_table(read_status(settings.home), as_json)
    else:
        for line in _describe_stack(settings, sound):
            say(line)
    say_pauses()


@app.command()
def down() -> None:
    """Stop the local stack; its data stays."""
    from flows.local.stack import down as stop
    from ptpipeline.settings import load_settings

    settings = load_settings()
    stop(settings.home)
    _tell_absence(settings)


@app.command()
def status(as_json: Json = False) -> None:
    """Show what runs, what is overdue, and what servers answer.

    State, address and memory of the local stack's servers, what is overdue, what somebody paused or removed in Prefect,
    and which versions servers of prompts answer with.

    Exit code 4 if a task has no fresh verdict, a night did not start or end, a target of events takes none, or a server
    answers with another version than the ledger says.
    """
    from flows.cli.render import print_table
    from flows.local.stack import read
    from flows.local.stack import status as read_status
    from ptpipeline.settings import load_settings

    settings = load_settings()
    servers, stack = read_status(settings.home), read(settings.home)
    if as_json:
        print_table(servers, as_json)
    elif stack or not _list_elsewhere(settings):
        print_table([_server_row(server) for server in servers], as_json)
    _tell_absence(settings)
    overdue = say_silence()
    is_up = all(server.state == "up" for server in servers)
    if stack is None or is_up or settings.prefect != stack.settings.get("prefect"):  # one that is stopped is not asked
        say_pauses()
    if stack is None or is_up or settings.store != stack.settings.get("store"):
        overdue += say_servers(as_json)
    if overdue:
        raise typer.Exit(NO)


@app.command("open")
def open_pages(
    page: Annotated[
        str, typer.Argument(metavar="PAGE", help="mlflow, prefect, or the address of one of their pages.")
    ] = "mlflow",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Start the browser, or only print the link.")
    ] = True,
) -> None:
    """Open a page of MLflow or Prefect in the browser and sign in.

    The printed link signs a browser in once, within five minutes; after that every page opens for twelve hours.
    """
    from flows.local.sign_in import open_page, sign_in_link
    from ptpipeline.settings import load_settings

    settings = load_settings()
    if not (browser and open_page(settings, page)):
        say(sign_in_link(settings, page))


def _describe_stack(settings: "Settings", tasks: Sequence["Task"]) -> list[str]:
    """Return where to look, and what will run by itself."""
    from flows.server.schedules import distinct_schedules, find_scheduled
    from ptpipeline.settings import without_stack
    from ptpipeline.storage.keys import PROMPTS

    lines = [
        f"Prefect  {(settings.prefect or '').removesuffix('/api')}  runs, schedules and forms",
        f"MLflow   {settings.mlflow}  versions, figures and reports",
        "`ptp open` and `ptp open prefect` sign your browser in there; `ptp status` shows the servers",
    ]
    for slug, schedule in distinct_schedules(tasks).items():
        names = ", ".join(task.name for task in find_scheduled(tasks, slug))
        lines.append(f"nightly at `{schedule.cron}` {schedule.timezone}: {names}")
    other = ", ".join(task.name for task in tasks if task.schedule is None)
    if other:
        lines.append(f"without a schedule, by `ptp trigger nightly --task TASK`: {other}")
    before = without_stack(settings.home)
    if settings.store != before["store"] and (settings.home / "store" / PROMPTS).is_dir():
        named = " ".join(shlex.quote(f"PTP_{name.upper()}={value}") for name, value in before.items())
        lines.append(
            f"what was registered before there was a stack stays where it was, and is not seen here: `env {named} ptp "
            "versions` shows it"
        )
    return lines if tasks else [*lines, f"no task is in {settings.tasks}: `ptp init FILE` makes one of a file of rows"]


def _server_row(server: "ServerStatus") -> dict[str, Any]:
    row: dict[str, Any] = server.to_json()
    return row | {"memory": f"{server.memory / 2**20:.0f} MiB" if server.memory else None}


def _tell_absence(settings: "Settings") -> None:
    """Say on standard error if there is no stack in the home folder: its servers are not down, they never were up."""
    from flows.local.stack import read

    if read(settings.home) is not None:
        return
    if elsewhere := _list_elsewhere(settings):
        say(
            f"no local stack is in {settings.home}: the settings name servers elsewhere ({', '.join(elsewhere)}); "
            "`ptp bootstrap --dry-run` tells whether they answer",
            sys.stderr,
        )
    else:
        say(
            f"no stack is in {settings.home}: `ptp up` starts one; to name another folder's, set PTP_HOME to it",
            sys.stderr,
        )


def _list_elsewhere(settings: "Settings") -> list[str]:
    """Return the addresses of Prefect and MLflow if the settings name any."""
    return [address for address in (settings.prefect, settings.mlflow) if address]
