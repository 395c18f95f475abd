"""The training key: what decides whether anything has to be trained. Imports no torch."""

from ptpipeline.records import Snapshot, digest_of
from ptpipeline.task import Task

# Raise by one whenever the same rows, recipe and base would train to other numbers; a golden-number test notices.
ENGINE_VERSION = 1


def training_key(task: Task, snapshot: Snapshot, base_fingerprint: str) -> str:
    """Digest of train and dev rows, recipe, base model and engine: equal keys train to the same prompt."""
    return digest_of(
        {
            "task": task.name,
            "train": snapshot.train.digest,
            "dev": snapshot.dev.digest,
            "metric": task.gate.metric,
            "recipe": task.recipe_digest(),
            "base": base_fingerprint,
            "engine": ENGINE_VERSION,
        }
    )
