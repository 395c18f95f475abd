"""Artifacts as tensors: packs a trained prompt into bytes, and unpacks verified bytes for one base model."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor

from ptpipeline.errors import ArtifactError, BaseModelError, TrainingError
from ptpipeline.foreign import parsing
from ptpipeline.models.inputs import KeyValues, SoftPrompt, count_virtual_tokens, list_tensors, rebuild
from ptpipeline.models.load import DTYPES
from ptpipeline.prompts.artifact import EMBEDDINGS, PREFIX, Artifact, check_tensors
from ptpipeline.records.prompts import BaseModelRef, Members, PromptManifest, TensorInfo


def pack(prompt: SoftPrompt, dtype: str, fields: dict[str, Any]) -> Artifact:
    """Return a trained prompt as an artifact; `fields` are the manifest's other identity fields.

    Raises TrainingError if a value is not finite in the stored type.
    """
    stored = name_tensors(round_to_stored(prompt, dtype))
    body = save(stored)
    infos = {name: TensorInfo(shape=list(tensor.shape), dtype=dtype) for name, tensor in stored.items()}
    manifest = PromptManifest(
        **fields,
        num_virtual_tokens=count_virtual_tokens(prompt),
        tensors=infos,
        tensor_sha256=hashlib.sha256(body).hexdigest(),
    )
    return Artifact(manifest, body)


def pack_ensemble(members: Sequence[Artifact], combine: Literal["average", "vote"], fields: dict[str, Any]) -> Artifact:
    """Return an ensemble of these prompts: a manifest that lists them, and no tensors of its own."""
    body = save({})
    digest = hashlib.sha256(body).hexdigest()
    listed = Members(digests=[member.digest for member in members], combine=combine)
    count = members[0].manifest.num_virtual_tokens
    return Artifact(
        PromptManifest(**fields, num_virtual_tokens=count, tensors={}, tensor_sha256=digest, members=listed), body
    )


def name_tensors(prompt: SoftPrompt) -> dict[str, Tensor]:
    """Return the prompt's tensors under their stored names."""
    return dict(zip(PREFIX if isinstance(prompt, KeyValues) else EMBEDDINGS, list_tensors(prompt), strict=True))


def round_to_stored(prompt: SoftPrompt, dtype: str) -> SoftPrompt:
    """Return the prompt as it is stored: detached, on the CPU, rounded to the stored type.

    Raises TrainingError if a value is not finite in that type.
    """
    # always a copy: in float32 the tensors would be views of the parameters, which train on
    stored = rebuild(
        prompt, [tensor.detach().to("cpu", DTYPES[dtype], copy=True).contiguous() for tensor in list_tensors(prompt)]
    )
    if not all(torch.isfinite(tensor).all() for tensor in list_tensors(stored)):
        raise TrainingError(
            f"the prompt has values that are not finite in {dtype}; lower tune.learning_rate or store it in float32"
        )
    return stored


def unpack(artifact: Artifact, *base: BaseModelRef) -> SoftPrompt:
    """Return the prompt of a verified artifact, for the base model that it was trained on and no other.

    base: the base model by each of its fingerprints, today's first.

    Raises BaseModelError if base or tokenizer differ, ArtifactError if a value is not finite.
    """
    check_tensors(artifact.manifest, artifact.tensors)
    check_base(artifact, *base)
    with parsing(f"{artifact.manifest.task} {artifact.digest[:12]}"):
        tensors: dict[str, Tensor] = load(artifact.tensors)
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ArtifactError(
            f"{artifact.manifest.task} {artifact.digest[:12]}: {', '.join(tensors)} hold values that are not finite"
        )
    if artifact.manifest.method == "prefix":
        return KeyValues(*(tensors[name] for name in PREFIX))
    return tensors[EMBEDDINGS[0]]


def check_base(artifact: Artifact, *base: BaseModelRef) -> None:
    """Raise BaseModelError unless the artifact was trained on this base model and tokenizer.

    base: the base model by each of its fingerprints, today's first.
    """
    trained_on, loaded = artifact.manifest.base_model, base[0]
    if any(
        (trained_on.fingerprint, trained_on.tokenizer_fingerprint) == (one.fingerprint, one.tokenizer_fingerprint)
        for one in base
    ):
        return
    what, expected, actual = "base model", trained_on.fingerprint, loaded.fingerprint
    if any(one.fingerprint == trained_on.fingerprint for one in base):
        what, expected, actual = "tokenizer", trained_on.tokenizer_fingerprint, loaded.tokenizer_fingerprint
    raise BaseModelError(
        f"{artifact.manifest.task} {artifact.digest[:12]}: trained on {what} {trained_on.name} "
        f"{expected[:12]}, but {loaded.name} {actual[:12]} is loaded; serve it on {trained_on.name}, or train "
        "the task on this base"
    )
