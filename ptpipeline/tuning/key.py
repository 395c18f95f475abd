"""The training key: what decides whether anything has to be trained. Imports no torch."""

import hashlib
from pathlib import Path

from ptpipeline.errors import DataError, TaskFileError
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records import Snapshot, digest_of
from ptpipeline.serving.resolver import resolve, split_reference
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import CURRENT, FileInit, VersionInit
from ptpipeline.task.task import Task

# Raise by one whenever the same rows, recipe and base would train to other numbers; a golden-number test notices.
ENGINE_VERSION = 2


def compute_training_key(task: Task, snapshot: Snapshot, base_fingerprint: str, start: str | None = None) -> str:
    """Digest of train and dev rows, recipe, base model, engine and `start_digest`: equal keys train to the same
    prompt.
    """
    parts = {
        "task": task.name,
        "train": snapshot.train.digest,
        "dev": snapshot.dev.digest,
        "metric": task.gate.metric,
        "recipe": task.recipe_digest(),
        "base": base_fingerprint,
        "engine": ENGINE_VERSION,
    }
    return digest_of(parts | ({"start": start} if start else {}))


def digest_start(task: Task, store: ObjectStore) -> str | None:
    """What the recipe names at this moment to start from: the digest of a version or shared prompt, a file's sha256,
    else None.

    A champion that is the start is no part of the key: every promotion would train the task anew. Raises what
    `start_version` raises, DataError for a file that cannot be read.
    """
    version, init = read_start_version(task, store), task.tune.init
    if version is not None:
        return version.digest
    if isinstance(init, FileInit):
        try:
            return hashlib.sha256(Path(init.file).expanduser().read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"task {task.name}: tune.init.file: {init.file} cannot be read ({error.strerror}); give the "
                "path of the tensor"
            ) from None
    return None


def read_start_version(task: Task, store: ObjectStore) -> Artifact | None:
    """The version or shared prompt that the recipe starts from, None where it names neither.

    Raises NotFound or ArtifactError where it is not there or altered, TaskFileError where a task starts from its own
    alias.
    """
    init = task.tune.init
    if task.tune.shared is not None:
        return resolve(store, f"{task.tune.shared}@{CURRENT}").artifact
    if not isinstance(init, VersionInit):
        return None
    name, at = split_reference(init.version)
    if name == task.name and not at.isdigit():
        raise TaskFileError(
            f"task {task.name}: tune.init.version: {init.version} moves with each promotion of this task; "
            "write `init: champion`"
        )
    return resolve(store, init.version).artifact
