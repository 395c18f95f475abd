"""Registered prompts written for other tools: PEFT, NumPy, vLLM, MLflow (`ptp export`)."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from ptpipeline.durable import publish
from ptpipeline.errors import BaseModelError, DataError, PreconditionFailed, SettingsError
from ptpipeline.foreign import parse_json, read_file
from ptpipeline.models.base import prepare_base
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.base import Record
from ptpipeline.serving.resolver import Resolved, resolve
from ptpipeline.serving.seen import Memory
from ptpipeline.settings import Settings, check_place, resolve_path
from ptpipeline.storage.keys import MANIFEST_FILE
from ptpipeline.storage.signed import open_signed_store
from ptpipeline.task.folder import find_base_model

Format = Literal["peft", "npy", "vllm", "mlflow"]

MAX_CONFIG_BYTES = 2**20


class Exported(Record):
    """What was written where; `files` are relative to the folder, which in MLflow is the address of the model."""

    version: str
    digest: str
    method: str
    format: Format
    folder: str
    files: list[str]


def export(settings: Settings, reference: str, form: Format, folder: Path | None) -> Exported:
    """Write the version of a reference into a new folder, whole or not at all; without a folder, into MLflow.

    The members of an ensemble go into folders 0, 1, ... Raises NotFound, ArtifactError or BaseModelError as `resolve`
    and `unpack` do, DataError if the format cannot express the prompt, PreconditionFailed if the folder is not empty or
    cannot be written, SettingsError if it is missing.
    """
    if folder is None and form != "mlflow":
        raise SettingsError("--to: name a new folder; only `--format mlflow` goes without one, into MLflow")
    check_place(settings, "store")
    resolved = resolve(open_signed_store(settings), reference, Memory(settings.home))
    files = _build_files(settings, resolved, form)
    if folder is None:
        place = _log(settings, resolved, files)
    else:
        _write(folder, files)
        place = str(folder)
    return Exported(
        version=resolved.name,
        digest=resolved.artifact.digest,
        method=resolved.artifact.manifest.method,
        format=form,
        folder=place,
        files=sorted(files),
    )


def _build_files(settings: Settings, resolved: Resolved, form: Format) -> dict[str, bytes]:
    """Return the files of a version by name."""
    if form == "mlflow":
        from registry.mlflow.pyfunc import build_model_files

        return build_model_files(resolved)
    files = {MANIFEST_FILE: json.dumps(resolved.artifact.manifest.to_json(), indent=1, sort_keys=True).encode()}
    if not resolved.members:
        return files | _convert(settings, resolved.artifact, form)
    for index, member in enumerate(resolved.members):
        files |= {f"{index}/{name}": body for name, body in _convert(settings, member, form).items()}
    return files


def _log(settings: Settings, resolved: Resolved, files: dict[str, bytes]) -> str:
    """Add the files to the version in MLflow; return its address there."""
    from registry.mlflow.pyfunc import log_model_files
    from registry.mlflow.store import MlflowStore

    if settings.mlflow is None:
        raise SettingsError("PTP_MLFLOW: no MLflow server is named; set it, start `ptp up`, or name a folder with --to")
    return log_model_files(MlflowStore(settings.mlflow), resolved, files)


def _convert(settings: Settings, artifact: Artifact, form: Format) -> dict[str, bytes]:
    """Return the files of one prompt by name."""
    from ptpipeline.prompts.peft import AdapterBase, build_npy_files, build_peft_files
    from ptpipeline.prompts.tensors import unpack

    manifest = artifact.manifest
    if form == "npy":
        return build_npy_files(unpack(artifact, manifest.base_model))
    if form == "peft" and manifest.placement == "after_bos":
        raise DataError(
            f"{manifest.task} {artifact.digest[:12]}: its prompt stands behind BOS (placement after_bos), and "
            "PEFT puts prompts only in front of it; export it with `--format npy` or `--format vllm`, or train the "
            "task with `placement: before_bos`"
        )
    prepared = prepare_base(manifest.base_model.name, settings)
    source = find_base_model(settings.tasks, manifest.base_model.name)
    name, revision = source.hub or str(prepared.folder.resolve()), source.revision if source.hub else None
    if form == "vllm":
        from flows.on_demand.vllm import build_vllm_files
        from ptpipeline.models.load import load_vocabulary

        return build_vllm_files(load_vocabulary(prepared), artifact, AdapterBase(name, revision, False))
    path = prepared.folder / "config.json"
    config = parse_json(read_file(path, MAX_CONFIG_BYTES), str(path), "fetch the base model again", BaseModelError)
    base = AdapterBase(name, revision, bool(config.get("is_encoder_decoder")))
    return build_peft_files(unpack(artifact, *prepared.known), base)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write into a sibling folder, then rename it: a reader never sees half of the files.

    Nobody can know its name before: who may write there too could else have put a link in its place.
    """
    folder, partial = resolve_path(folder), None
    try:
        if folder.exists() and any(folder.iterdir()):
            raise PreconditionFailed(f"{folder}: not empty; name a new folder with --to")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, body in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        publish(partial, folder)
    except OSError as error:
        raise PreconditionFailed(
            f"{folder}: cannot be written ({error.strerror}); name a new folder with --to"
        ) from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
