"""What a training starts from besides its recipe: another version, the champion, or a file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, BaseModelError, DataError, NotFound
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import KeyValues, SoftPrompt, count_virtual_tokens
from ptpipeline.prompts.initialise import read_tensor
from ptpipeline.prompts.tensors import unpack
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import FileInit
from ptpipeline.task.task import Task
from ptpipeline.tuning.key import digest_start, read_start_version


class Start(NamedTuple):
    """The prompt to start from, if the recipe names one; its part of the training key; the versions behind it."""

    prompt: SoftPrompt | None
    key: str | None
    parents: list[str]


def load_start(base: FrozenBase, task: Task, store: ObjectStore, progress: Callable[[str], None]) -> Start:
    """Return the prompt that `tune.init` names.

    Raises NotFound, ArtifactError or DataError if it is missing or damaged, BaseModelError if it was trained on another
    base. If a champion does not fit, `progress` gets a line and the training starts cold.
    """
    init, version = task.tune.init, read_start_version(task, store)
    if version is not None:
        if version.manifest.members:
            raise DataError(
                f"task {task.name}: tune.init.version: {version.manifest.task} {version.digest[:12]} is an "
                f"ensemble; name a single prompt, or export it as npy and start from {{file: .../0/embeddings.npy}}"
            )
        return Start(unpack(version, *base.known), version.digest, [version.digest])
    if isinstance(init, FileInit):
        return Start(read_tensor(Path(os.path.expanduser(init.file))), digest_start(task, store), [])
    return _load_champion(base, task, store, progress) if init == "champion" else Start(None, None, [])


def _load_champion(base: FrozenBase, task: Task, store: ObjectStore, progress: Callable[[str], None]) -> Start:
    try:
        artifact = resolve(store, f"{task.name}@{PRODUCTION}").artifact
        if artifact.manifest.members:
            raise DataError("the champion is an ensemble of several prompts")
        prompt = unpack(artifact, *base.known)
    except (NotFound, BaseModelError, ArtifactError, DataError) as error:
        progress(f"{task.name}: starts cold: {error}")
        return Start(None, None, [])
    wanted = {variant.num_virtual_tokens for variant in task.tune.variants()}
    fits = wanted == {count_virtual_tokens(prompt)} and isinstance(prompt, KeyValues) <= (task.tune.method == "prefix")
    if not fits:
        progress(
            f"{task.name}: starts cold: the champion has {count_virtual_tokens(prompt)} tokens of "
            f"{artifact.manifest.method}, the recipe asks for another number or method"
        )
        return Start(None, None, [])
    return Start(prompt, None, [artifact.digest])
