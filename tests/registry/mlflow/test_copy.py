"""The copy of a prompt that MLflow keeps: it is the prompt's bytes, or none."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.storage.keys import MANIFEST_FILE, TENSOR_FILE
from ptpipeline.task.task import Task
from registry.mlflow.copy import load_copy
from registry.registry import Registry

pytestmark = pytest.mark.servers


def copied(registry: Registry, task: Task, seed: int = 1) -> Artifact | None:
    """What MLflow keeps of the prompt with that seed."""
    assert registry.mlflow is not None
    return load_copy(registry.mlflow, task.name, an_artifact(task, seed).digest)


def test_a_copy_is_the_bytes_that_were_published_and_of_others_there_is_none(shown: Registry, task: Task) -> None:
    published(shown, task, 1)
    assert (copied(shown, task), copied(shown, task, 2)) == (an_artifact(task, 1), None)


def test_a_prompt_under_the_digest_of_another_is_no_copy_of_that(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    published(shown, task, 1)
    client.set_model_version_tag(task.name, "1", "ptp.digest", an_artifact(task, 2).digest)
    assert copied(shown, task, 2) is None


@pytest.mark.parametrize("name", [MANIFEST_FILE, TENSOR_FILE])
def test_an_altered_copy_is_none(shown: Registry, task: Task, client: MlflowClient, tmp_path: Path, name: str) -> None:
    published(shown, task, 1)
    sound = an_artifact(task, 1).tensors
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / name).write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]) if name == TENSOR_FILE else b"{}")
    model = client.get_model_version(task.name, "1").source.removeprefix("models:/")
    client.log_model_artifacts(model, str(tmp_path / "files"))
    assert copied(shown, task) is None


def test_a_version_without_files_hides_no_copy_behind_it(shown: Registry, task: Task, client: MlflowClient) -> None:
    """Whichever of the two MLflow names first."""
    published(shown, task, 1)
    tags = {"ptp.digest": an_artifact(task, 1).digest}
    client.create_model_version(task.name, "s3://somewhere/else", tags=tags, await_creation_for=0)
    for touched in ("1", "2"):
        client.update_model_version(task.name, touched, "touched")
        assert copied(shown, task) == an_artifact(task, 1)
