"""The folder of task files: tasks, base models and shared prompts by name."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.foreign import escape_controls
from ptpipeline.records.base import DIGEST_PATTERN, is_name
from ptpipeline.task.document import Section, line_of, load_section, parse_yaml, validate
from ptpipeline.task.recipe import SHARED_FILE, SharedPrompt
from ptpipeline.task.task import Task

BASES_FILE = "base_models.yaml"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BaseModelSource(Section):
    """Where a base model comes from: a folder, a GGUF `member` of a pinned wheel, or a hub id at a revision.

    `sha256` pins the archive of the package, `fingerprint` what is loaded of the model.
    """

    path: str | None = None
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+$")] | None = None
    member: str | None = None
    sha256: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = None
    hub: str | None = None
    revision: str | None = None
    fingerprint: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "BaseModelSource":
        if sum(place is not None for place in (self.path, self.package, self.hub)) != 1:
            raise ValueError("give exactly one of `path`, `package` (with `member`), `hub` (with `revision`)")
        if (self.package is None) != (self.member is None):
            raise ValueError("`member` names the GGUF file inside `package`: give both or neither")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("`revision` pins the commit of the `hub` model: give both or neither")
        if self.sha256 is not None and self.package is None:
            raise ValueError("`sha256` is that of the archive of a `package`: leave it out")
        if self.revision is not None and self.fingerprint is None and not _COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"`revision: {self.revision}` may name another model tomorrow: give the commit (40 hexadecimal "
                "digits), or pin the `fingerprint`"
            )
        return self


def load_task(path: Path) -> Task:
    """Return the task in a file. Raises TaskFileError, which names file, line, field, value and what is allowed."""
    document = parse_yaml(path)
    task = validate(path, document, Task)
    if task.name != path.stem:
        raise TaskFileError(
            f"{path}:{line_of(document, ('name',))}: name: found {task.name!r}, expected the file's own name "
            f"{path.stem!r}"
        )
    return task


def find_task(folder: Path, name: str) -> Task:
    """Return the task with that name. Raises NotFound, which lists the existing names, or TaskFileError."""
    if not is_name(name):
        raise NotFound(f"task {name!r}: a task name has lower-case letters, digits and dashes, such as movie-sentiment")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in task_files(folder))) or "none"
        raise NotFound(f"no task {name!r} in {folder}: there are {known}")
    return load_task(path)


def task_files(folder: Path) -> list[Path]:
    """Return the task files of a folder, sorted by name: all that end in .yaml, but the hidden ones that editors leave.

    Raises NotFound if there is no such folder, or it cannot be read.
    """
    return [path for path in _visible(folder) if path.suffix == ".yaml" and path.name not in (BASES_FILE, SHARED_FILE)]


def sound_tasks(folder: Path) -> tuple[list[Task], dict[str, str]]:
    """Return all tasks with valid files, and one sentence per other file: none of them stops another task."""
    sound, broken = [], {}
    for path in _visible(folder):
        if path.suffix != ".yaml" and path.suffix.lower() in (".yaml", ".yml"):
            broken[escape_controls(path.name)] = escape_controls(
                f"{path}: is not read, because files of tasks end in .yaml: rename it to {path.stem}.yaml, or move it"
            )
    for path in task_files(folder):
        try:
            sound.append(load_task(path))
        except (TaskFileError, NotFound) as error:
            broken[escape_controls(path.stem)] = escape_controls(str(error))
    return sound, broken


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        reason = "no folder" if isinstance(error, FileNotFoundError | NotADirectoryError) else "cannot read the folder"
        raise NotFound(
            f"PTP_TASKS: {reason} {folder}; start in the project's folder, or name the folder of the task files"
        ) from None


def find_base_model(folder: Path, name: str) -> BaseModelSource:
    """Return a base model of `base_models.yaml` beside the tasks. Raises NotFound, which lists the existing names."""
    return load_section(folder / BASES_FILE, name, BaseModelSource, "base model", "{path|package|hub: ...}")


def find_shared_prompt(folder: Path, name: str) -> SharedPrompt:
    """Return a shared prompt of `shared_prompts.yaml` beside the tasks. Raises NotFound, which lists the names."""
    path = folder / SHARED_FILE
    shared = load_section(path, name, SharedPrompt, "shared prompt", "{base_model, sources, tune}")
    if (folder / f"{name}.yaml").is_file():
        raise TaskFileError(
            f"{path}: {name!r} is also the name of a task, and both would share one numbering of versions: rename one"
        )
    return shared


def load_sources(folder: Path, name: str) -> tuple[SharedPrompt, list[Task]]:
    """Return a shared prompt and its source tasks.

    Raises NotFound or TaskFileError if one is missing, invalid, or for another base model.
    """
    shared = find_shared_prompt(folder, name)
    tasks = [find_task(folder, source) for source in shared.sources]
    for task in tasks:
        if task.base_model != shared.base_model:
            raise TaskFileError(
                f"{folder / SHARED_FILE}: {name}: its source {task.name} is for base model {task.base_model}, "
                f"not {shared.base_model}; use sources of one base model"
            )
    return shared, tasks
