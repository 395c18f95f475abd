"""What the verbs of `ptp` share: the application, its options and exit codes, and how a verb opens what it works on."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptpipeline.errors import NotFound

if TYPE_CHECKING:
    from flows.stages.context import Context
    from ptpipeline.task.task import Task
    from registry.registry import Registry

FAILED, UNANSWERED, NO = 1, 3, 4  # exit codes, as the epilog tells them

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


def open_registry(writing: bool = False) -> "Registry":
    """The registry that the settings name; for `writing`, its store is probed first."""
    from ptpipeline.settings import load_settings
    from registry.registry import open_for_writing
    from registry.registry import open_registry as opened

    return (open_for_writing if writing else opened)(load_settings())


def open_stages() -> "Context":
    """The context of the stages over it; what they report goes to standard error."""
    from flows.stages.context import Context
    from ptpipeline.settings import load_settings

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    return Context(load_settings(), open_registry(writing=True), lambda line: print(line, file=sys.stderr, flush=True))


def sound() -> dict[str, "Task"]:
    """The tasks whose files are sound, by name."""
    from ptpipeline.settings import load_settings
    from ptpipeline.task.task import sound_tasks

    return {task.name: task for task in sound_tasks(load_settings().tasks)[0]}


def numbered(registry: "Registry", reference: str) -> tuple[str, int]:
    """Task and version number of a reference, by the ledger."""
    from ptpipeline.serving.resolver import split_reference

    task, name = split_reference(reference)
    if name.isdigit():
        return task, int(name)
    head = registry.ledger.head(task, name)
    if head is None:
        raise NotFound(f"{task} has no {name} version; `ptp versions {task}` lists what is registered")
    return task, head.version


def known_task(registry: "Registry", task: str | None) -> str | None:
    """`task` where the ledger knows it, or no task is named: an answer of nothing about a misspelt one would
    reassure.
    """
    known = {*registry.ledger.tasks(), *(intent.task for intent in registry.ledger.intents())}
    if task is not None and task not in known:
        raise NotFound(f"the ledger knows no task {task!r}: there are {', '.join(sorted(known)) or 'none'}")
    return task


def read_text(path: Path) -> str:
    """The text in a file; NotFound where it cannot be read."""
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"{path}: cannot be read as text ({getattr(error, 'strerror', None) or 'not UTF-8'}); name a file "
            "that holds the row's text"
        ) from None
