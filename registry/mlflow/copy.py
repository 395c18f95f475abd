"""The copy of a prompt's bytes that MLflow keeps as a logged model, in case the store's bytes are damaged."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ptpipeline.errors import Terminal
from ptpipeline.foreign import parse_record, read_file
from ptpipeline.prompts.artifact import MAX_TENSOR_BYTES, Artifact, check_tensors
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.storage.keys import MANIFEST_FILE, TENSOR_FILE
from registry.mlflow.client import connect, translated_errors
from registry.mlflow.store import MlflowStore

if TYPE_CHECKING:
    from mlflow import MlflowClient


def load_copy(mlflow: MlflowStore, task: str, digest: str) -> Artifact | None:
    """Return the prompt's bytes as MLflow keeps them, verified; None if it has no intact copy."""
    with translated_errors(mlflow.uri), tempfile.TemporaryDirectory() as folder:
        client = connect(mlflow.uri)
        for version in client.search_model_versions(f"name='{task}' and tags.`ptp.digest`='{digest}'"):
            artifact = _download(client, mlflow, str(version.source), Path(folder))
            if artifact and artifact.digest == digest:  # which covers the task
                return artifact
    return None


def _download(client: "MlflowClient", mlflow: MlflowStore, source: str, folder: Path) -> Artifact | None:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        with translated_errors(mlflow.uri):
            place = client.get_logged_model(source.removeprefix("models:/")).artifact_location
            files = [
                download_artifacts(f"{place}/{name}", dst_path=str(folder), tracking_uri=mlflow.uri)
                for name in (MANIFEST_FILE, TENSOR_FILE)
            ]
        manifest, tensors = (read_file(Path(file), MAX_TENSOR_BYTES) for file in files)
        artifact = Artifact(parse_record(PromptManifest, manifest, MANIFEST_FILE), tensors)
        check_tensors(artifact.manifest, tensors)
    except (Terminal, MlflowException, OSError):
        return None  # no copy there, or not an intact one
    return artifact
