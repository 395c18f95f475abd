"""Verbs of `ptp`: a task's stages, and the use of the prompts that they make."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.app import FAILED, NO, Json, Reference, TaskName, app, open_context, os_user
from flows.cli.display import choose_display
from flows.cli.terminal import indent, log_plainly, say
from ptpipeline.errors import NotFound, PtpError

if TYPE_CHECKING:
    from flows.server.trigger import Finished
    from ptpipeline.settings import Settings


@app.command()
def tasks(as_json: Json = False) -> None:
    """Check the task files and list the tasks.

    It checks all that needs no data: also base models, shared prompts, and settings that work against each other.
    """
    from flows.cli.render import print_table
    from flows.on_demand.inspection import inspect_folder
    from ptpipeline.settings import load_settings

    inspection = inspect_folder(load_settings().tasks)
    rows = [
        {
            "task": task.name,
            "base_model": task.base_model,
            "answers": ", ".join(task.labels) or "free text",
            "metric": task.gate.metric,
            "promote": task.promote,
            "schedule": f"{task.schedule.cron} {task.schedule.timezone}" if task.schedule else "-",
        }
        for task in inspection.tasks
    ]
    print_table(rows, as_json)
    for sentence in inspection.advice:
        say(f"note: {sentence}", sys.stderr)
    for sentence in inspection.problems:
        say(f"error: {sentence}", sys.stderr)
    if inspection.problems:
        raise typer.Exit(FAILED)


@app.command()
def ingest(task: TaskName, as_json: Json = False) -> None:
    """Read, check and split a task's data into a snapshot.

    It shows the rows of each label and split, and which rows the checks found.
    """
    from flows.cli.render import print_snapshot
    from flows.stages.ingest import ingest as bring_up
    from ptpipeline.task.folder import find_task

    context, log = open_context(), logging.getLogger("ptpipeline.data")
    before = log.level
    if not as_json:
        log.setLevel(logging.ERROR)  # the table tells what the checks found
    try:
        snapshot = bring_up(context, find_task(context.settings.tasks, task))
    finally:
        log.setLevel(before)
    print_snapshot(snapshot, as_json)


@app.command()
def run(task: TaskName, as_json: Json = False) -> None:
    """Run all stages of one task, here and now.

    The stages are ingest, train, evaluate, gate, register and promote. No server is needed.
    """
    from flows.cli.outcomes import print_outcome
    from flows.stages.chain import run_task
    from ptpipeline.task.folder import find_task

    context = open_context()
    outcome = run_task(context, find_task(context.settings.tasks, task))
    raise typer.Exit(print_outcome(outcome, as_json))


@app.command()
def trigger(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="nightly, tune or ingest.")] = "nightly",
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; the run's log shows it.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end, or only start it.")] = True,
    once: Annotated[
        bool,
        typer.Option("--once", help="Follow the run of today for the same tasks and data, if there was one already."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a flow in Prefect and follow its log to the end.

    The exit code is that of `ptp run`: 4 if the gate refused a candidate.
    """
    from flows.cli.outcomes import print_outcomes
    from flows.requests import IngestRequest, NightlyRequest, TuneRequest
    from flows.server.trigger import trigger as start
    from flows.stages.outcome import GATE_FAILED
    from ptpipeline.settings import load_settings
    from ptpipeline.task.folder import find_task

    settings = load_settings()
    names = [find_task(settings.tasks, name).name for name in task] if task else None
    requests = {
        "nightly": NightlyRequest(tasks=names, reason=reason, actor=os_user()),
        "tune": TuneRequest(tasks=names),
        "ingest": IngestRequest(tasks=names),
    }
    if flow not in requests:
        raise NotFound(
            f"no flow {flow!r} to trigger: choose {', '.join(requests)}; to promote or roll back, use `ptp promote` "
            "or `ptp rollback`"
        )
    key = _key_of_today(settings, flow, names) if once else None
    run_id = start(_require_prefect(settings), flow, requests[flow], key)
    say(f"flow run {run_id}", sys.stderr)
    if wait:
        finished = follow_to_end(str(settings.prefect), run_id)
        if finished.rows or as_json:
            print_outcomes(finished.rows, as_json)
        elif finished.state == "COMPLETED":
            say(finished.message)
        if finished.name == GATE_FAILED:
            raise typer.Exit(NO)
        if finished.state != "COMPLETED":
            say(f"error: flow run {run_id} ended {finished.state}: {finished.message}", sys.stderr)
            raise typer.Exit(FAILED)


@app.command()
def webhook(
    port: Annotated[int, typer.Option("--port", min=1024, max=65535, help="Listen on this port.")] = 8777,
    host: Annotated[str, typer.Option("--host", help="Listen on this address.")] = "127.0.0.1",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="URL", help="MLflow reaches this process here; by default http://HOST:PORT/mlflow."
        ),
    ] = None,
) -> None:
    """Listen for edits in MLflow and for new data, and judge them.

    MLflow signs its requests with the secret in PTP_WEBHOOK_SECRET. Object stores post to /data with the token in
    PTP_WEBHOOK_TOKEN.
    """
    from flows.server.webhook import serve
    from ptpipeline.settings import load_settings

    log_plainly(logging.INFO)
    serve(load_settings(), host, port, address)


@app.command()
def predict(
    reference: Reference,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts to answer; `-` reads standard input: one answer per line, none for a blank one."
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=TEXT", help="A field of one text, if the template has several; repeat."),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            readable=False,
            help="Rows to answer: csv, tsv, jsonl or parquet, a column a field.",
        ),
    ] = None,
    form: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet"] | None,
        typer.Option("--format", help="Of --input; by default the ending of the file's name."),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(metavar="CHARACTER", help="Between the fields of a csv file of --input; by default a comma."),
    ] = None,
    allow_older: Annotated[
        bool,
        typer.Option("--allow-older", help="Accept a signed pointer that is older than the one seen here last."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Label texts with a version, or generate answers to them.

    With --json, `index` is the place of the text: 0 for the first argument, line or row; each answer is printed as soon
    as it is known. It reads from the object store alone; no other server is needed.
    """
    from flows.cli.questions import read_questions, read_rows
    from flows.cli.render import answer_row, print_record, print_table
    from ptpipeline.progress import watch
    from ptpipeline.serving.predictor import load

    given = read_questions(texts or [], field or [], rows)
    predictor = load(reference, allow_older=allow_older)
    if rows is not None:
        given = read_rows(rows, form, delimiter, predictor.fields)
    with watch(predictor.resolved.name, choose_display()):
        answers = predictor.answer_lines(given.texts, given.place)
        if as_json:
            for index, answer in enumerate(answers):
                print_record({"index": index, **answer.to_json()}, as_json)
                sys.stdout.flush()
            return
        table = [answer_row(answer, text) for answer, text in zip(answers, given.texts, strict=True)]
    print_table(table, as_json)


@app.command()
def export(
    reference: Reference,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FOLDER",
            readable=False,
            help="A new or empty folder; all files are written, or none. Only MLflow goes without: into the server.",
        ),
    ] = None,
    form: Annotated[
        Literal["peft", "npy", "vllm", "mlflow"],
        typer.Option(
            "--format",
            help="A PEFT adapter, NumPy arrays, a tensor with a client for vLLM, or a model for MLflow.",
        ),
    ] = "peft",
    as_json: Json = False,
) -> None:
    """Write a version for PEFT, NumPy, vLLM or MLflow.

    `PeftModel.from_pretrained` loads the folder of an adapter and computes the same. README.md in a folder for vLLM
    says how to start and to ask it. `mlflow.pyfunc.load_model` and `mlflow models serve` take what is for MLflow.
    """
    from flows.cli.render import print_record
    from flows.on_demand.export import export as write
    from ptpipeline.settings import load_settings

    print_record(write(load_settings(), reference, form, to), as_json)


@app.command("import")
def adopt(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            readable=False,
            help="The folder of a PEFT adapter (safetensors), or a .npy file [tokens, width].",
        ),
    ],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="The task that it is for.")],
    as_json: Json = False,
) -> None:
    """Take in a prompt that was trained elsewhere.

    It becomes a candidate of the task: it is evaluated, gated, registered and, by the task's policy, promoted.
    """
    from flows.cli.outcomes import print_outcome
    from flows.on_demand.adopt import adopt as take_in
    from ptpipeline.task.folder import find_task

    context, path = open_context(), Path(os.path.expanduser(source))
    outcome = take_in(context, find_task(context.settings.tasks, task), path, os_user())
    raise typer.Exit(print_outcome(outcome, as_json))


def follow_to_end(prefect: str, run_id: str) -> "Finished":
    """Print ptpipeline's log lines of a run, and all warnings, as they arrive; return how the run ended."""
    from flows.server.trigger import Finished, follow

    for event in follow(prefect, run_id):
        if isinstance(event, Finished):
            return event
        if event.logger.startswith(("ptpipeline", "registry")) or event.level >= logging.WARNING:
            for line in indent(f"{event.at[11:19]} {event.message}"):
                say(line, sys.stderr)
    raise PtpError(f"flow run {run_id}: its log ended without a final state; look at the run's page in Prefect")


def _key_of_today(settings: "Settings", flow: str, names: list[str] | None) -> str:
    """Return the idempotency key of a run for these tasks, what their sources hold now, and today."""
    from datetime import UTC, datetime

    from flows.requests import key_run
    from flows.stages.context import select_tasks
    from flows.stages.ingest import find_source_key

    tasks = select_tasks(settings, names).tasks
    return key_run(flow, {task.name: find_source_key(settings, task) for task in tasks}, datetime.now(UTC))


def _require_prefect(settings: "Settings") -> str:
    if settings.prefect is None:
        raise NotFound(
            f"no Prefect server: no stack is in {settings.home} (PTP_HOME); `ptp up` starts a local one, or set "
            "PTP_PREFECT to the API address of yours"
        )
    return settings.prefect
