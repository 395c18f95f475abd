"""What a training starts from besides its recipe: another version, the champion, or a file."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, BaseModelError, DataError, NotFound
from ptpipeline.models.frozen import FrozenBase, KeyValues, SoftPrompt, count_virtual_tokens
from ptpipeline.prompts.initialise import read_tensor
from ptpipeline.prompts.tensors import unpack
from ptpipeline.records import PRODUCTION
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import FileInit
from ptpipeline.task.task import Task
from ptpipeline.tuning.key import digest_start, read_start_version

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """The prompt to start from, where the recipe names one; its part of the training key; the versions it descends
    from.
    """

    prompt: SoftPrompt | None
    key: str | None
    parents: list[str]


def load_start(base: FrozenBase, task: Task, store: ObjectStore, report: Callable[[str], None]) -> Start:
    """Read what `tune.init` names.

    Raises NotFound, ArtifactError or DataError where it is not there or damaged, BaseModelError where it was trained on
    another base. A champion that does not fit is reported, and the training starts cold.
    """
    init, version = task.tune.init, read_start_version(task, store)
    if version is not None:
        if version.manifest.members:
            raise DataError(
                f"task {task.name}: tune.init.version: {version.manifest.task} {version.digest[:12]} is an "
                f"ensemble; name a single prompt, or export it as npy and start from {{file: .../0/embeddings.npy}}"
            )
        return Start(unpack(version, base.ref), version.digest, [version.digest])
    if isinstance(init, FileInit):
        return Start(read_tensor(Path(init.file).expanduser()), digest_start(task, store), [])
    return _champion(base, task, store, report) if init == "champion" else Start(None, None, [])


def _champion(base: FrozenBase, task: Task, store: ObjectStore, report: Callable[[str], None]) -> Start:
    try:
        artifact = resolve(store, f"{task.name}@{PRODUCTION}").artifact
        if artifact.manifest.members:
            raise DataError("the champion is an ensemble of several prompts")
        prompt = unpack(artifact, base.ref)
    except (NotFound, BaseModelError, ArtifactError, DataError) as error:
        report(f"{task.name}: starts cold: {error}")
        return Start(None, None, [])
    wanted = {variant.num_virtual_tokens for variant in task.tune.variants()}
    fits = wanted == {count_virtual_tokens(prompt)} and isinstance(prompt, KeyValues) <= (task.tune.method == "prefix")
    if not fits:
        report(
            f"{task.name}: starts cold: the champion has {count_virtual_tokens(prompt)} tokens of "
            f"{artifact.manifest.method}, the recipe asks for others"
        )
        return Start(None, None, [])
    return Start(prompt, None, [artifact.digest])
