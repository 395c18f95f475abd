"""A version as a model that MLflow loads and serves: `mlflow.pyfunc.load_model`, `mlflow models serve`.

Nothing is pickled. The file `MLmodel` names this module as what loads the model, from the prompt's own two files beside
it; so the name of this module is in every such file and stays. ptpipeline has to be installed where it is loaded, and
the base model comes from the project there (PTP_TASKS, PTP_HOME).
"""

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from ptpipeline.errors import ArtifactError, NotFound, PtpError, SettingsError
from ptpipeline.foreign import parse_record, read_file
from ptpipeline.prompts.artifact import (
    MAX_MANIFEST_BYTES,
    MAX_TENSOR_BYTES,
    Artifact,
    check_tensors,
    read_artifact,
    read_ensemble,
)
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.serving.predictor import Predictor, open_predictor
from ptpipeline.serving.resolver import Resolved
from ptpipeline.settings import Settings, load_settings
from ptpipeline.storage.keys import MANIFEST_FILE, TENSOR_FILE
from ptpipeline.storage.signed import open_signed_store
from ptpipeline.task.template import read_template
from registry.mlflow.client import connect, log_files, quiet_mlflow, translated_errors
from registry.mlflow.store import MlflowStore

DESCRIPTION, EXAMPLE, SERVING_EXAMPLE = "MLmodel", "input_example.json", "serving_input_example.json"
MEMBERS = "members"
EXAMPLE_TEXT = "an example"


def build_model_files(resolved: Resolved) -> dict[str, bytes]:
    """Return the files of an MLflow model of this version by name, with its schema and an input example."""
    quiet_mlflow()
    import mlflow.pyfunc
    from mlflow.models import Model

    manifest = resolved.artifact.manifest
    names = read_template(manifest).names
    example = {"columns": names, "data": [[EXAMPLE_TEXT] * len(names)]}
    model = Model(
        signature=_describe(manifest),
        saved_input_example_info={
            "artifact_path": EXAMPLE,
            "serving_input_path": SERVING_EXAMPLE,
            "type": "dataframe",
            "pandas_orient": "split",
        },
        metadata={"ptp.task": resolved.task, "ptp.version": resolved.number, "ptp.digest": resolved.artifact.digest},
    )
    mlflow.pyfunc.add_to_model(model, loader_module=__name__)
    files = {
        DESCRIPTION: model.to_yaml().encode(),
        EXAMPLE: json.dumps(example).encode(),
        SERVING_EXAMPLE: json.dumps({"dataframe_split": example}).encode(),
    }
    files |= _write_artifact(resolved.artifact)
    for index, member in enumerate(resolved.members):
        files |= {f"{MEMBERS}/{index}/{name}": body for name, body in _write_artifact(member).items()}
    return files


def log_model_files(mlflow: MlflowStore, resolved: Resolved, files: dict[str, bytes]) -> str:
    """Add the files to the version's logged model in MLflow, and return the address by which MLflow loads it.

    Raises NotFound if MLflow shows no such version, and what `translated_errors` raises.
    """
    number = mlflow.find(resolved.task, resolved.artifact.digest)
    with translated_errors(mlflow.uri), tempfile.TemporaryDirectory() as folder:
        client = connect(mlflow.uri)
        source = str(client.get_model_version(resolved.task, number).source) if number else ""
        if not source.startswith("models:/"):
            raise NotFound(f"MLflow has no logged model of {resolved.name}; `ptp reconcile` brings it")
        for name, body in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        log_files(client, source.removeprefix("models:/"), folder)
    return f"models:/{resolved.task}/{number}"


class ServedPrompt:
    """What MLflow calls: rows in, one answer for each."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()  # MLflow's server asks from several threads

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the answers to the rows of a data frame as `ptp predict --json` gives them.

        Raises MlflowException, which MLflow's server tells its client, for a text that cannot be answered.
        """
        from mlflow.exceptions import MlflowException

        try:
            with self._lock:
                return [answer.to_json() for answer in self._predictor.predict(model_input.to_dict("records"))]
        except PtpError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def _load_pyfunc(folder: str) -> ServedPrompt:
    """Return the model of a folder that `build_model_files` wrote; MLflow calls this by its name.

    Where PTP_TRUSTED_KEYS is set, the prompt is read from the object store, which has the signatures, and not from the
    folder. Raises ArtifactError for files that were altered, BaseModelError for another base than the prompt's.
    """
    settings, place = load_settings(), Path(folder)
    artifact = _read_artifact(place)
    members = [
        _read_artifact(place / MEMBERS / str(index))
        for index in range(len(artifact.manifest.members.digests if artifact.manifest.members else []))
    ]
    resolved = Resolved(artifact.manifest.task, _read_number(place, artifact), artifact, members)
    if artifact.manifest.members and [one.digest for one in members] != artifact.manifest.members.digests:
        raise ArtifactError(f"{place}: its members are not those that {MANIFEST_FILE} lists; export the version again")
    if settings.trusted_keys is not None:
        resolved = _read_signed(settings, resolved)
    return ServedPrompt(open_predictor(resolved, settings))


def _read_signed(settings: Settings, resolved: Resolved) -> Resolved:
    store = open_signed_store(settings)
    try:
        artifact = read_artifact(store, resolved.task, resolved.artifact.digest)
    except NotFound:
        raise SettingsError(
            f"PTP_TRUSTED_KEYS is set, and {store.url} does not hold {resolved.name}, so its signature cannot be "
            "checked; set PTP_STORE to the store that it was published in"
        ) from None
    return resolved._replace(artifact=artifact, members=read_ensemble(store, artifact))


def _read_artifact(folder: Path) -> Artifact:
    """Return the prompt in a folder, verified; raises ArtifactError or NotFound."""
    what = f"{folder / MANIFEST_FILE}: not a prompt's manifest"
    manifest = parse_record(PromptManifest, read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES), what)
    artifact = Artifact(manifest, read_file(folder / TENSOR_FILE, MAX_TENSOR_BYTES))
    check_tensors(artifact.manifest, artifact.tensors)
    return artifact


def _read_number(folder: Path, artifact: Artifact) -> int:
    """Return the version's number; raises ArtifactError if `MLmodel` is of another prompt than the files beside it."""
    from mlflow.models import Model

    stated = Model.load(str(folder / DESCRIPTION)).metadata or {}
    if stated.get("ptp.digest") != artifact.digest or not isinstance(stated.get("ptp.version"), int):
        raise ArtifactError(f"{folder / DESCRIPTION}: is of another prompt than {MANIFEST_FILE}; export it again")
    return int(stated["ptp.version"])


def _write_artifact(artifact: Artifact) -> dict[str, bytes]:
    body = json.dumps(artifact.manifest.to_json(), indent=1, sort_keys=True).encode()
    return {MANIFEST_FILE: body, TENSOR_FILE: artifact.tensors}


def _describe(manifest: PromptManifest) -> Any:
    """Return what a row holds, and an answer to it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Map

    inputs = [ColSpec("string", name) for name in read_template(manifest).names]
    given = [ColSpec("string", "version"), ColSpec("string", "digest")]
    if manifest.generate is not None:
        return ModelSignature(Schema(inputs), Schema([*given, ColSpec("string", "text")]))
    labelled = [ColSpec("string", "label"), ColSpec(Map("double"), "probabilities")]
    return ModelSignature(Schema(inputs), Schema([*labelled, *given]))
