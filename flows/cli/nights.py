"""Verbs of `ptp` about past nights: what they came to, and the same as metrics for Prometheus."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.app import Json, app, open_registry
from flows.cli.terminal import say

if TYPE_CHECKING:
    from registry.ledger.nights import NightTask, RecordedNight


@app.command()
def nights(
    last: Annotated[int, typer.Option("--last", min=1, metavar="N", help="Show this many nights.")] = 5,
    as_json: Json = False,
) -> None:
    """List the last nights: tasks, verdicts, rows and seconds.

    Tasks that were unchanged are counted; --json has a line for each of them too.
    """
    from flows.cli.render import print_table
    from registry.ledger.nights import list_nights

    found = list_nights(open_registry().ledger, last)
    if as_json or not found:
        print_table(found, as_json, "no night has run yet: `ptp trigger` starts one")
        return
    for night in found:
        say(_title(night))
        if night.page:
            say(f"  {night.page}")
        changed = [task for task in night.tasks if task.status != "unchanged"]
        if changed:
            print_table([_task_row(task) for task in changed], as_json)
        say("")


@app.command()
def metrics(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE",
            readable=False,
            help="A file for node_exporter's textfile collector, replaced at once.",
        ),
    ] = None,
) -> None:
    """Print metrics of tasks and nights for Prometheus.

    They are read from the ledger each time.
    """
    from flows.on_demand.metrics import render_metrics, write_metrics

    registry = open_registry()
    if to is not None:
        write_metrics(registry.ledger, to)
    else:
        for line in render_metrics(registry.ledger).decode().splitlines():
            say(line)


def _title(night: "RecordedNight") -> str:
    took = f"{_seconds_between(night.started, night.ended):.0f} s" if night.ended else "did not end, or runs still"
    unchanged = sum(task.status == "unchanged" for task in night.tasks)
    tasks = f"{len(night.tasks)} task{'s' * (len(night.tasks) != 1)}"
    counted = f"{tasks}, {unchanged} unchanged" if night.tasks else "no tasks"
    about = f"{night.flow}, {night.cause}: {night.state or 'no end'}"
    return f"{night.started[:16].replace('T', ' ')} UTC  {about}; {counted}; {took}"


def _task_row(task: "NightTask") -> dict[str, Any]:
    return {
        "task": task.task,
        "status": task.status,
        "verdict": task.verdict,
        "version": task.version,
        "rows": task.rows,
        "tokens": None if task.tokens is None else f"{task.tokens:,}",
        "seconds": None if task.seconds is None else f"{task.seconds:.1f}",
        "processor seconds": None if task.processor_seconds is None else f"{task.processor_seconds:.1f}",
    }


def _seconds_between(started: str, ended: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
