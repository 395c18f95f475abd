"""The training key, which decides whether anything has to be trained. Imports no torch."""

import hashlib
import os
from pathlib import Path

from ptpipeline.errors import DataError, NotFound, TaskFileError
from ptpipeline.foreign import read_file
from ptpipeline.prompts.artifact import MAX_FOREIGN_BYTES, Artifact
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import Snapshot
from ptpipeline.serving.resolver import resolve, split_reference
from ptpipeline.storage import ObjectStore
from ptpipeline.task.recipe import CURRENT, FileInit, VersionInit
from ptpipeline.task.task import Task

# Raise it by one if the same rows, recipe and base would train to other numbers; a golden-number test notices.
ENGINE_VERSION = 3


def compute_training_key(
    task: Task, snapshot: Snapshot, base_fingerprint: str, start: str | None = None, chat: str | None = None
) -> str:
    """Return the digest of train and dev rows, recipe, base model, engine and `start` (what `digest_start` returns).

    chat: the digest of the base's chat template, which counts if the task's template is a chat.

    The recipe's `dev_rows` is a part of its own if it leaves rows out.

    Equal keys train to the same prompt.
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
    if snapshot.dev.rows > task.tune.dev_rows:  # else all rows are evaluated, as before there was a limit
        parts["dev_rows"] = task.tune.dev_rows
    if task.chat is not None:
        parts["chat"] = chat
    return digest_of(parts | ({"start": start} if start else {}))


def digest_start(task: Task, store: ObjectStore) -> str | None:
    """Return the digest of what the recipe starts from now: of a version, a shared prompt or a file; else None.

    A champion as the start is not part of the key: every promotion would train the task again. Raises what
    `read_start_version` raises, and DataError for a file that cannot be read.
    """
    version, init = read_start_version(task, store), task.tune.init
    if version is not None:
        return version.digest
    if isinstance(init, FileInit):
        try:
            return hashlib.sha256(
                read_file(Path(os.path.expanduser(init.file)), MAX_FOREIGN_BYTES, DataError)
            ).hexdigest()
        except NotFound as error:
            raise DataError(f"task {task.name}: tune.init.file: {error}; give the path of the tensor") from None
    return None


def read_start_version(task: Task, store: ObjectStore) -> Artifact | None:
    """Return the version or shared prompt that the recipe starts from; None if it names neither.

    Raises NotFound if it is missing, ArtifactError if it is altered, TaskFileError if a task starts from its own alias.
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
