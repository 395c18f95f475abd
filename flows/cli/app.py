"""What the verbs of `ptp` share: the application, options, exit codes, and how a verb opens what it works on."""

import codecs
import errno
import io
import os
import platform
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.display import choose_display
from flows.cli.terminal import log_plainly, say, say_progress
from ptpipeline.errors import DataError, NotFound, PreconditionFailed
from ptpipeline.records.versions import VersionRef

if TYPE_CHECKING:
    from flows.stages.context import Context
    from ptpipeline.records.versions import PromptVersion
    from ptpipeline.task.task import Task
    from registry.registry import Registry
    from registry.versions.commit import Cause

FAILED, UNANSWERED, NO = 1, 3, 4  # exit codes; the epilog explains them

app = typer.Typer(
    name="ptp",
    help="Train, gate, register and serve soft prompts: one frozen language model, a few kilobytes per task.",
    epilog="Exit codes: 0 done, 1 refused or bad input, 2 wrong usage, 3 a server does not answer, 4 the answer is no.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        beside = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "prefect", "mlflow"))
        say(f"ptp {version('ptpipeline')} (Python {platform.python_version()}, {beside})")
        raise typer.Exit


@app.callback()
def take_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version, for a report of an error."
        ),
    ] = False,
) -> None:
    """What may stand before a verb."""


TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A task of the tasks folder.")]
OptionalTask = Annotated[str | None, typer.Argument(metavar="TASK", help="One task; by default all.")]
Reference = Annotated[
    str,
    typer.Argument(metavar="TASK[@ALIAS|@N]", help="A task (its production version), alias or version."),
]
MAX_INPUT, MAX_TEXT = 2**30, 2**26  # bytes of standard input, and of a file that holds one text
Json = Annotated[bool, typer.Option("--json", help="Print records as JSON, one object per line.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; the history keeps it forever.")]
Reveal = Annotated[
    bool,
    typer.Option(
        "--reveal",
        help="Show the figures that `gate.figures: quiet` withholds; the test rows serve a look for it.",
    ),
]
Alias = Annotated[str, typer.Option("--alias", help="The alias to move.")]


def open_registry(writing: bool = False) -> "Registry":
    """Open the registry that the settings name; for `writing`, check first what its store guarantees.

    Reading creates nothing.
    """
    from ptpipeline.settings import load_settings
    from registry import registry

    return (registry.open_for_writing if writing else registry.open_for_reading)(load_settings())


def open_context() -> "Context":
    """Open what the stages work with; print what they report on standard error."""
    from flows.stages.context import Context
    from ptpipeline.settings import load_settings

    log_plainly()
    context = Context(load_settings(), open_registry(writing=True), say_progress, choose_display())
    context.started_by = os_user()
    return context


def load_sound_tasks() -> dict[str, "Task"]:
    """Return the tasks whose files are valid, by name."""
    from ptpipeline.settings import load_settings
    from ptpipeline.task.folder import sound_tasks

    return {task.name: task for task in sound_tasks(load_settings().tasks)[0]}


def find_version(registry: "Registry", reference: str) -> VersionRef:
    """Return the version that a reference (`task`, `task@alias` or `task@3`) names in the ledger.

    Raises NotFound if the ledger does not know the task, or no version has the alias.
    """
    from ptpipeline.serving.resolver import split_reference

    task, name = split_reference(reference)
    check_task(registry, task)
    if name.isdigit():
        return VersionRef(task, int(name))
    head = registry.ledger.head(task, name)
    if head is None:
        raise NotFound(f"{task} has no {name} version; `ptp versions {task}` lists what is registered")
    return VersionRef(task, head.version)


def find_kept(registry: "Registry", task: str, number: int) -> "PromptVersion":
    """Return the version of that number; raise NotFound if there is none, or its bytes were collected."""
    from registry.ledger.tombstone import collected_sentence

    version = registry.ledger.version(task, number)
    if version.collected:
        raise NotFound(collected_sentence(task, version.digest))
    return version


def spend_look(version: "PromptVersion") -> None:
    """Reveal the figures of a version that was refused quietly; tell on standard error which look that took."""
    from flows.stages.register import reveal
    from ptpipeline.task.folder import find_task

    context = open_context()
    asked = reveal(context, find_task(context.settings.tasks, version.task), version, os_user())
    name = f"{version.task}@{version.number}"
    if asked is None:
        say(f"{name}: nothing is withheld, so no look was spent", file=sys.stderr)
        return
    look = asked.look
    say(
        f"{name}: look {look.number} at test set {look.test_set} was spent to reveal its figures, by {asked.by}; "
        f"{look.spent:.4f} of the error budget {look.budget:g} is spent",
        file=sys.stderr,
    )


def os_user() -> str:
    """Return the name of the operating system's user who runs this process, by its id: $USER is anybody's to set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, an id may have no name
        return f"uid {os.getuid()}"


def name_cause(registry: "Registry", reason: str, override: bool = False) -> "Cause":
    """Return the cause of a promotion that the person at this terminal asks for, with the key that signs it."""
    from ptpipeline.storage.signed import SignedStore
    from registry.versions.commit import Cause

    signer = registry.store.key if isinstance(registry.store, SignedStore) else None
    actor = f"{os_user()} (key {signer.id})" if signer else os_user()
    return Cause(actor, reason, override, signer)


def check_task(registry: "Registry", task: str | None) -> str | None:
    """Return `task`; raise NotFound if the ledger does not know it.

    Without this check a misspelt name would get an empty answer, which looks like good news.
    """
    known = {*registry.ledger.tasks(), *(intent.task for intent in registry.ledger.intents())}
    if task is not None and task not in known:
        listed = f"it knows {', '.join(sorted(known))}" if known else "nothing is registered yet"
        raise NotFound(f"the ledger knows no task {task!r}; {listed}; `ptp run` registers a task's first version")
    return task


def read_lines() -> list[str]:
    """Return the lines of standard input, each a text: `\\n` alone ends one (`\\r\\n` too), no other character does.

    Raises DataError, which names the line, if one is not UTF-8.
    """
    from ptpipeline.data.files import SAMPLE, find_binary, guess_encoding

    if sys.stdin is None:
        raise DataError("standard input is closed: give the texts as arguments, or one per line")
    body = sys.stdin.buffer.read(MAX_INPUT + 1).removeprefix(codecs.BOM_UTF8)
    if len(body) > MAX_INPUT:
        raise DataError(f"standard input: more than {MAX_INPUT} bytes of texts; give them in parts")
    if (encoding := guess_encoding(body[:SAMPLE])) is not None:
        raise DataError(
            f"standard input: the texts are {encoding.name}; convert them first by `iconv -f {encoding.iconv} -t UTF-8`"
        )
    lines = body.removesuffix(b"\n").split(b"\n") if body else []
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            if (kind := find_binary(body[:SAMPLE], "csv")) is not None:
                raise DataError(
                    f"standard input is {kind.name}, and no lines of text; give a file of rows with --input FILE"
                ) from None
            raise DataError(
                f"standard input, line {number}: not UTF-8 (byte {line[error.start]:#04x} at place {error.start + 1}); "
                "convert the texts first, such as by `iconv -f latin1 -t utf-8`"
            ) from None
    return texts


def write_file(path: Path, body: bytes) -> Path:
    """Write the file that --to names, whole or not at all; return its path.

    Raises PreconditionFailed if it cannot be written.
    """
    from ptpipeline.private import write_private
    from ptpipeline.settings import resolve_path

    given = Path(os.path.expanduser(path))
    try:
        if given.exists() and not given.is_file() and not given.is_dir():
            descriptor = os.open(given, os.O_WRONLY | os.O_NONBLOCK)  # a device or a pipe, such as /dev/stdout
            os.set_blocking(descriptor, True)  # only a pipe that nobody reads must not keep us waiting
            with open(descriptor, "wb") as file:
                file.write(body)
            return given
        path = resolve_path(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        write_private(path, body)
    except OSError as error:
        raise PreconditionFailed(f"{path}: cannot be written ({error.strerror}); name a new file with --to") from None
    return path


def read_text(path: Path) -> str:
    """Return the text of a file, whose lines end with `\\n`; raise NotFound if it cannot be read.

    A pipe or a device is none: who writes it may never end.
    """
    from ptpipeline.foreign import read_file
    from ptpipeline.settings import resolve_path

    try:
        return io.StringIO(read_file(resolve_path(path), MAX_TEXT, NotFound).decode(), newline=None).read()
    except NotFound as error:
        raise NotFound(f"{error}; name a file that holds the row's text") from None
    except UnicodeDecodeError:
        raise NotFound(f"{path}: not UTF-8; name a file that holds the row's text") from None
