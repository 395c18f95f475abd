"""The verbs of `ptp` that work: the local stack, a task's stages, and the prompts that come out of them."""

import getpass
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.app import FAILED, NO, Json, Reference, TaskName, app, open_stages
from ptpipeline.errors import NotFound, PtpError

if TYPE_CHECKING:
    from flows.server.trigger import Finished

Port = Annotated[
    int | None, typer.Option(min=1024, max=55000, help="Take this port, or fail; by default a free one is found.")
]


@app.command()
def up(prefect_port: Port = None, mlflow_port: Port = None, s3_port: Port = None, as_json: Json = False) -> None:
    """Start the local stack (Prefect, MLflow, S3) and deploy the flows; repeat it to deploy changed schedules."""
    from flows.local.stack import Ports
    from flows.local.stack import up as start
    from flows.server.deploy import deploy
    from ptpipeline.settings import load_settings
    from ptpipeline.task.task import load_tasks

    start(load_settings().home, Ports(prefect=prefect_port, mlflow=mlflow_port, storage=s3_port))
    settings = load_settings()
    deploy(settings, load_tasks(settings.tasks))
    status(as_json)


@app.command()
def down() -> None:
    """Stop the local stack; its data stays."""
    from flows.local.stack import down as stop
    from ptpipeline.settings import load_settings

    stop(load_settings().home)


@app.command()
def status(as_json: Json = False) -> None:
    """The servers of the local stack: state, address, memory."""
    from flows.cli.render import show
    from flows.local.stack import status as members
    from ptpipeline.settings import load_settings

    show(members(load_settings().home), as_json)


@app.command()
def tasks(as_json: Json = False) -> None:
    """Validate the task files and list the tasks."""
    from flows.cli.render import show
    from ptpipeline.settings import load_settings
    from ptpipeline.task.task import load_tasks

    found = load_tasks(load_settings().tasks)
    show(
        [
            {
                "task": t.name,
                "base_model": t.base_model,
                "answers": ", ".join(t.labels) or "free text",
                "metric": t.gate.metric,
                "promote": t.promote,
                "schedule": f"{t.schedule.cron} {t.schedule.timezone}" if t.schedule else "-",
            }
            for t in found
        ],
        as_json,
    )


@app.command()
def ingest(task: TaskName, as_json: Json = False) -> None:
    """Read, check and split a task's data into a snapshot."""
    from flows.cli.render import show_record
    from flows.stages.context import ingest as take_snapshot
    from ptpipeline.task.task import find_task

    context = open_stages()
    show_record(take_snapshot(context, find_task(context.settings.tasks, task)), as_json)


@app.command()
def run(task: TaskName, as_json: Json = False) -> None:
    """All stages for one task, here and now: ingest, train, evaluate, gate, register, promote."""
    from flows.cli.render import show
    from flows.stages.chain import run_task
    from ptpipeline.task.task import find_task

    context = open_stages()
    outcome = run_task(context, find_task(context.settings.tasks, task))
    show([outcome], as_json)
    if outcome.verdict != "passed":
        raise typer.Exit(NO)


@app.command()
def trigger(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="nightly, tune or ingest.")] = "nightly",
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the run's log.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end, or only start it.")] = True,
    as_json: Json = False,
) -> None:
    """Start a flow through the Prefect API and follow its log to the end."""
    from flows.cli.render import show
    from flows.requests import IngestRequest, NightlyRequest, TuneRequest
    from flows.server.trigger import trigger as start
    from ptpipeline.settings import load_settings
    from ptpipeline.task.task import find_task

    settings = load_settings()
    named = [find_task(settings.tasks, name).name for name in task] if task else None
    requests = {
        "nightly": NightlyRequest(tasks=named, reason=reason),
        "tune": TuneRequest(tasks=named),
        "ingest": IngestRequest(tasks=named),
    }
    if flow not in requests:
        raise NotFound(
            f"no flow {flow!r} to trigger: there are {', '.join(requests)} (promote and rollback are verbs of "
            "their own)"
        )
    run_id = start(_prefect(settings.prefect), flow, requests[flow])
    print(f"flow run {run_id}", file=sys.stderr)
    if wait:
        finished = followed(str(settings.prefect), run_id)
        show(finished.rows, as_json)
        if finished.state != "COMPLETED":
            print(f"error: flow run {run_id} ended {finished.state}: {finished.message}", file=sys.stderr)
            raise typer.Exit(FAILED)


@app.command()
def webhook(
    port: Annotated[int, typer.Option("--port", min=1024, max=65535, help="Listen here.")] = 8777,
    host: Annotated[str, typer.Option("--host", help="Listen on this address.")] = "127.0.0.1",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="URL", help="How MLflow reaches this process, where it is not http://HOST:PORT/mlflow."
        ),
    ] = None,
) -> None:
    """Listen for edits in the MLflow UI and wake the reconcile; PTP_WEBHOOK_SECRET is what MLflow signs with."""
    from flows.server.webhook import serve
    from ptpipeline.settings import load_settings

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    serve(load_settings(), host, port, address)


@app.command()
def predict(
    reference: Reference,
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help="Texts to answer; `-` reads them from standard input, one per line."),
    ],
    as_json: Json = False,
) -> None:
    """Label texts, or generate from them, with a promoted or numbered version, from the object store alone."""
    from flows.cli.render import answer_row, show
    from ptpipeline.serving.predictor import load

    given = [line for line in sys.stdin.read().splitlines() if line.strip()] if texts == ["-"] else texts
    answers = load(reference).predict(given)
    if as_json:
        show(answers, as_json)
    else:
        show([answer_row(answer, text) for answer, text in zip(answers, given, strict=True)], as_json)


@app.command()
def export(
    reference: Reference,
    to: Annotated[
        Path, typer.Option("--to", metavar="FOLDER", help="A new or empty folder; it is written whole or not at all.")
    ],
    form: Annotated[
        Literal["peft", "npy"],
        typer.Option("--format", help="A PEFT adapter, or NumPy arrays; the manifest lies beside."),
    ] = "peft",
    as_json: Json = False,
) -> None:
    """Write a version for other tools: `PeftModel.from_pretrained` loads the folder and computes the same."""
    from flows.cli.render import show_record
    from flows.on_demand.export import export as write
    from ptpipeline.settings import load_settings

    show_record(write(load_settings(), reference, form, to), as_json)


@app.command("import")
def adopt(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="The folder of a PEFT adapter (safetensors), or a .npy file [tokens, width]."
        ),
    ],
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="The task whose template, labels and base model it is for.")
    ],
    as_json: Json = False,
) -> None:
    """Take in a prompt that something else trained, as a candidate: evaluate, gate, register, promote by the task's
    policy.
    """
    from flows.cli.render import show
    from flows.on_demand.adopt import adopt as take_in
    from ptpipeline.task.task import find_task

    context, path = open_stages(), Path(os.path.expanduser(source))
    outcome = take_in(context, find_task(context.settings.tasks, task), path, getpass.getuser())
    show([outcome], as_json)
    if outcome.verdict != "passed":
        raise typer.Exit(NO)


def followed(prefect: str, run_id: str) -> "Finished":
    """Print what our own code logs in a run as it comes, and everybody's warnings; how it ended."""
    from flows.server.trigger import Finished, follow

    for event in follow(prefect, run_id):
        if isinstance(event, Finished):
            return event
        if event.logger.startswith(("ptpipeline", "registry")) or event.level >= logging.WARNING:
            print(f"{event.at[11:19]} {event.message}", file=sys.stderr, flush=True)
    raise PtpError(f"flow run {run_id}: its log ended without a final state")


def _prefect(address: str | None) -> str:
    if address is None:
        raise NotFound("no Prefect server: `ptp up` starts a local one, or set PTP_PREFECT to the API address of yours")
    return address
