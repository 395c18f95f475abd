"""What is wrong with a folder of task files, as far as it can be told without data (`ptp tasks`)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ptpipeline.errors import BaseModelError, NotFound, TaskFileError
from ptpipeline.foreign import parsing
from ptpipeline.task.advice import advise_task
from ptpipeline.task.document import line_of, parse_yaml
from ptpipeline.task.folder import find_base_model, load_sources, sound_tasks
from ptpipeline.task.recipe import FileInit
from ptpipeline.task.task import Task


class Inspection(NamedTuple):
    """The tasks whose files are valid; what stops a task; what works against itself. Sentences with file and line."""

    tasks: list[Task]
    problems: list[str]
    advice: list[str]


class _Finding(NamedTuple):
    place: tuple[str, ...]
    sentence: str


def inspect_folder(folder: Path) -> Inspection:
    """Check all that can be checked without data: the files, their base models and shared prompts, settings against
    each other, and, if the base lies in a folder of this machine, its chat template and the words of labels.

    Raises NotFound if there is no such folder.
    """
    tasks, broken = sound_tasks(folder)
    found = [inspect_task(folder, task) for task in tasks]
    problems = [*broken.values(), *(problem for one in found for problem in one.problems)]
    return Inspection(tasks, problems, [advice for one in found for advice in one.advice])


def inspect_task(folder: Path, task: Task) -> Inspection:
    """Check the same of one task of the folder, whose file is valid."""
    path = folder / f"{task.name}.yaml"
    document = parse_yaml(path)

    def tell(findings: Iterable[_Finding]) -> list[str]:
        return [f"{path}:{line_of(document, place)}: {'.'.join(place)}: {sentence}" for place, sentence in findings]

    problems = [*_check_base(folder, task), *_check_sources(folder, task)]
    return Inspection([task], tell(problems), tell(_Finding(*one) for one in advise_task(task).items()))


def _check_base(folder: Path, task: Task) -> list[_Finding]:
    try:
        source = find_base_model(folder, task.base_model)
    except (NotFound, TaskFileError) as error:
        return [_Finding(("base_model",), str(error))]
    if source.path is None:
        return []
    base = Path(os.path.expanduser(source.path))
    if not (base / "config.json").is_file():
        return [
            _Finding(
                ("base_model",),
                f"{task.base_model} of {folder / 'base_models.yaml'} is the folder {base}, which holds no config.json; "
                "expected the folder of a transformers model",
            )
        ]
    return [*_check_chat(task, base), *_check_words(task, base)]


def _check_chat(task: Task, base: Path) -> list[_Finding]:
    """Tell if the base has no chat template for a task that is a chat."""
    if task.chat is None:
        return []
    from ptpipeline.models.chat import require_chat
    from ptpipeline.models.files import BaseFiles

    try:
        require_chat(task.base_model, BaseFiles.look_at(base).read_chat_template())
    except (BaseModelError, NotFound) as error:
        return [_Finding(("template",), str(error))]
    return []


def _check_words(task: Task, base: Path) -> list[_Finding]:
    """Tell what training would refuse of the labels' words, by the tokenizer's own file."""
    file = base / "tokenizer.json"
    if not task.labels or not file.is_file():
        return []
    from tokenizers import Tokenizer

    from ptpipeline.data.tokens import label_tokens

    try:
        with parsing(str(file), "it is no tokenizer", TaskFileError):
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.encode_special_tokens = True  # text is text, as training reads it
        label_tokens(
            task.name, task.labels, lambda text, special: list(tokenizer.encode(text, add_special_tokens=special).ids)
        )
    except TaskFileError as error:
        return [_Finding(("labels",), str(error))]
    return []


def _check_sources(folder: Path, task: Task) -> list[_Finding]:
    """Tell which files that the recipe starts from are missing or wrong."""
    if task.tune.shared is not None:
        try:
            load_sources(folder, task.tune.shared)
        except (NotFound, TaskFileError) as error:
            return [_Finding(("tune", "shared"), str(error))]
    if isinstance(task.tune.init, FileInit) and not os.path.isfile(os.path.expanduser(task.tune.init.file)):
        return [_Finding(("tune", "init"), f"no file {task.tune.init.file}; name a .npy or .safetensors file")]
    return []
