"""`ptp`: parse, call, print. Heavy imports stay inside the verbs, so that `--help` answers at once.

Exit codes: 0 done; 1 the input or the state of things forbids it; 2 wrong usage; 3 a server does not answer, try again;
4 the answer is no (a candidate failed its gate, doctor found differences).
"""

import getpass
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ptpipeline.errors import NotFound, PtpError, Transient
from ptpipeline.records import PRODUCTION

if TYPE_CHECKING:
    from flows.stages import Stages
    from flows.trigger import Finished
    from registry.registry import Registry

FAILED, UNANSWERED, NO = 1, 3, 4

app = typer.Typer(
    name="ptp",
    help="Train, gate, register and serve soft prompts: one frozen language model, a few kilobytes per task.",
    epilog="Exit codes: 0 done, 1 refused or bad input, 2 wrong usage, 3 a server does not answer, 4 the answer is no.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task of the tasks folder.")]
SomeTask = Annotated[str | None, typer.Argument(metavar="[TASK]", help="One task; all where none is named.")]
Reference = Annotated[str, typer.Argument(metavar="TASK[@ALIAS|@N]", help="A task, one of its aliases or versions.")]
Json = Annotated[bool, typer.Option("--json", help="Print records as JSON, one object per line.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the history for ever.")]
Alias = Annotated[str, typer.Option("--alias", help="The alias to move.")]
Port = Annotated[int | None, typer.Option(min=1024, max=55000, help="Take this port, or fail; by default a free one is found.")]


@app.command()
def up(prefect_port: Port = None, mlflow_port: Port = None, s3_port: Port = None, as_json: Json = False) -> None:
    """Start the local stack (Prefect, MLflow, S3) and deploy the flows; repeat it to deploy changed schedules."""
    from flows.deploy import deploy
    from flows.stack import Ports
    from flows.stack import up as start
    from ptpipeline.settings import load_settings
    from ptpipeline.task import load_tasks

    start(load_settings().home, Ports(prefect=prefect_port, mlflow=mlflow_port, storage=s3_port))
    settings = load_settings()
    deploy(settings, load_tasks(settings.tasks))
    status(as_json)


@app.command()
def down() -> None:
    """Stop the local stack; its data stays."""
    from flows.stack import down as stop
    from ptpipeline.settings import load_settings

    stop(load_settings().home)


@app.command()
def status(as_json: Json = False) -> None:
    """The servers of the local stack: state, address, memory."""
    from flows.render import show
    from flows.stack import status as members
    from ptpipeline.settings import load_settings

    show(members(load_settings().home), as_json)


@app.command()
def tasks(as_json: Json = False) -> None:
    """Validate the task files and list the tasks."""
    from flows.render import show
    from ptpipeline.settings import load_settings
    from ptpipeline.task import load_tasks

    found = load_tasks(load_settings().tasks)
    show([{"task": t.name, "base_model": t.base_model, "answers": ", ".join(t.labels) or "free text", "metric": t.gate.metric, "promote": t.promote,
           "schedule": f"{t.schedule.cron} {t.schedule.timezone}" if t.schedule else "-"} for t in found], as_json)  # fmt: skip


@app.command()
def ingest(task: TaskName, as_json: Json = False) -> None:
    """Read, check and split a task's data into a snapshot."""
    from flows.render import show_record

    stages = _stages()
    show_record(stages.ingest(stages.tasks([task])[0]), as_json)


@app.command()
def run(task: TaskName, as_json: Json = False) -> None:
    """All stages for one task, here and now: ingest, train, evaluate, gate, register, promote."""
    from flows.render import show

    stages = _stages()
    outcome = stages.run(stages.tasks([task])[0])
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
    from flows.render import show
    from flows.requests import IngestRequest, NightlyRequest, TuneRequest
    from flows.trigger import trigger as start
    from ptpipeline.settings import load_settings
    from ptpipeline.task import find_task

    settings = load_settings()
    named = [find_task(settings.tasks, name).name for name in task] if task else None
    requests = {"nightly": NightlyRequest(tasks=named, reason=reason), "tune": TuneRequest(tasks=named), "ingest": IngestRequest(tasks=named)}
    if flow not in requests:
        raise NotFound(f"no flow {flow!r} to trigger: there are {', '.join(requests)} (promote and rollback are verbs of their own)")
    run_id = start(_prefect(settings.prefect), flow, requests[flow])
    print(f"flow run {run_id}", file=sys.stderr)
    if wait:
        finished = followed(str(settings.prefect), run_id)
        show(finished.rows, as_json)
        if finished.state != "COMPLETED":
            print(f"error: flow run {run_id} ended {finished.state}: {finished.message}", file=sys.stderr)
            raise typer.Exit(FAILED)


@app.command()
def versions(
    task: SomeTask = None,
    limit: Annotated[int, typer.Option(min=1, max=10**9, help="At most so many.")] = 100,
    offset: Annotated[int, typer.Option(min=0, max=10**9, help="Leave out the first ones.")] = 0,
    as_json: Json = False,
) -> None:
    """The registered versions, newest first, with verdict and aliases."""
    from flows.render import show

    registry = _registry()
    task = _known(registry, task)
    aliases: dict[tuple[str, int], list[str]] = {}
    for head in registry.ledger.heads(task):
        aliases.setdefault((head.task, head.version), []).append(head.alias)
    show([{"task": v.task, "version": v.number, "digest": v.digest if as_json else v.digest[:12], "verdict": _verdict(v.passed),
           "aliases": ", ".join(aliases.get((v.task, v.number), [])), "registered": v.registered_at} for v in registry.ledger.versions(task, limit, offset)], as_json)  # fmt: skip


@app.command()
def show(reference: Reference, as_json: Json = False) -> None:
    """One version: manifest, training, report and verdict, check by check."""
    from flows.render import show_version
    from ptpipeline.prompts.artifact import read_artifact

    registry = _registry()
    task, number = _numbered(registry, reference)
    version = registry.ledger.version(task, number)
    manifest = read_artifact(registry.store, task, version.digest).manifest
    publication = registry.ledger.publication(task, version.digest)
    judged = registry.ledger.report_of(task, version.digest), registry.ledger.latest_verdict(task, version.digest)
    show_version(version, manifest, publication.tuned if publication else None, judged, as_json)


@app.command()
def history(task: TaskName, alias: Annotated[str | None, typer.Option("--alias", help="Only this alias.")] = None, as_json: Json = False) -> None:
    """Who moved an alias when, from what to what, why, and on which verdict."""
    from flows.render import show

    registry = _registry()
    rows = registry.ledger.history(str(_known(registry, task)), alias)
    show([{"alias": p.alias, "seq": p.seq, "version": p.version, "previous": p.previous, "actor": p.actor, "at": p.at, "reason": p.reason,
           "verdict": (p.verdict if as_json else p.verdict[:12]) if p.verdict else None} for p in rows], as_json)  # fmt: skip


@app.command()
def promote(reference: Annotated[str, typer.Argument(metavar="TASK@N")], reason: Reason, alias: Alias = PRODUCTION, as_json: Json = False) -> None:
    """Let an alias name a version; `production` takes only what passed today's gate."""
    from flows.render import show_record

    stages = _stages()
    task, number = _numbered(stages.registry, reference)
    show_record(stages.move(task, alias, number, getpass.getuser(), reason), as_json)


@app.command()
def rollback(
    task: TaskName,
    reason: Reason,
    to: Annotated[int | None, typer.Option("--to", min=1, max=10**9, help="A version that the alias named once; the previous by default.")] = None,
    alias: Alias = PRODUCTION,
    as_json: Json = False,
) -> None:
    """Let an alias name again what it named before."""
    from flows.render import show_record

    show_record(_stages().roll_back(task, alias, to, getpass.getuser(), reason), as_json)


@app.command()
def predict(
    reference: Reference,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to answer; `-` reads them from standard input, one per line.")],
    as_json: Json = False,
) -> None:
    """Label texts, or generate from them, with a promoted or numbered version, from the object store alone."""
    from flows.render import answer_row, show
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
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new or empty folder; it is written whole or not at all.")],
    form: Annotated[Literal["peft", "npy"], typer.Option("--format", help="A PEFT adapter, or NumPy arrays; the manifest lies beside.")] = "peft",
    as_json: Json = False,
) -> None:
    """Write a version for other tools: `PeftModel.from_pretrained` loads the folder and computes the same."""
    from flows.exchange import export as write
    from flows.render import show_record
    from ptpipeline.settings import load_settings

    show_record(write(load_settings(), reference, form, to), as_json)


@app.command("import")
def adopt(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a PEFT adapter (safetensors), or a .npy file [tokens, width].")],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="The task whose template, labels and base model it is for.")],
    as_json: Json = False,
) -> None:
    """Take in a prompt that something else trained, as a candidate: evaluate, gate, register, promote by the task's policy."""
    from flows.render import show

    stages = _stages()
    outcome = stages.adopt(stages.tasks([task])[0], Path(os.path.expanduser(source)))
    show([outcome], as_json)
    if outcome.verdict != "passed":
        raise typer.Exit(NO)


@app.command()
def reconcile(task: SomeTask = None, as_json: Json = False) -> None:
    """Bring pointers and MLflow to what the ledger says."""
    from flows.render import show
    from registry.reconcile import reconcile as replay

    registry = _registry()
    show(replay(registry, _known(registry, task)), as_json)


@app.command()
def doctor(task: SomeTask = None, as_json: Json = False) -> None:
    """Compare ledger, pointers, MLflow and stored bytes; each difference comes with the command that mends it."""
    from flows.render import show
    from registry.doctor import examine

    registry = _registry()
    found = examine(registry, _known(registry, task))
    show(found, as_json)
    if found:
        raise typer.Exit(NO)


def followed(prefect: str, run_id: str) -> "Finished":
    """Print what our own code logs in a run as it comes, and everybody's warnings; how it ended."""
    from flows.trigger import Finished, follow

    for event in follow(prefect, run_id):
        if isinstance(event, Finished):
            return event
        if event.logger.startswith(("ptpipeline", "registry")) or event.level >= logging.WARNING:
            print(f"{event.at[11:19]} {event.message}", file=sys.stderr, flush=True)
    raise PtpError(f"flow run {run_id}: its log ended without a final state")


def _registry() -> "Registry":
    from ptpipeline.settings import load_settings
    from registry.registry import open_registry

    return open_registry(load_settings())


def _stages() -> "Stages":
    from flows.stages import Stages
    from ptpipeline.settings import load_settings

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    return Stages(load_settings(), _registry(), lambda line: print(line, file=sys.stderr, flush=True))


def _numbered(registry: "Registry", reference: str) -> tuple[str, int]:
    """Task and version number of a reference, by the ledger."""
    from ptpipeline.serving.resolver import split_reference

    task, name = split_reference(reference)
    if name.isdigit():
        return task, int(name)
    head = registry.ledger.head(task, name)
    if head is None:
        raise NotFound(f"{task} has no {name} version; `ptp versions {task}` lists what is registered")
    return task, head.version


def _known(registry: "Registry", task: str | None) -> str | None:
    """`task` where the ledger knows it, or no task is named: an answer of nothing about a misspelt one would reassure."""
    known = {*registry.ledger.tasks(), *(intent.task for intent in registry.ledger.intents())}
    if task is not None and task not in known:
        raise NotFound(f"the ledger knows no task {task!r}: there are {', '.join(sorted(known)) or 'none'}")
    return task


def _prefect(address: str | None) -> str:
    if address is None:
        raise NotFound("no Prefect server: `ptp up` starts a local one, or set PTP_PREFECT to the API address of yours")
    return address


def _verdict(passed: bool | None) -> str:
    return {None: "not gated", True: "passed", False: "failed"}[passed]


def main(arguments: Iterable[str] | None = None) -> None:
    """The command line: an error of ours is one line on standard error, and an exit code."""
    try:
        app(list(arguments) if arguments is not None else None)
    except PtpError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNANSWERED if isinstance(error, Transient) else FAILED)


if __name__ == "__main__":
    main()
