"""Artifacts as tensors: packing a trained prompt into bytes, unpacking verified bytes for one base model."""

import hashlib
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ptpipeline.errors import ArtifactError, BaseModelError, TrainingError
from ptpipeline.models.causal import DTYPES
from ptpipeline.prompts.artifact import Artifact, check_tensors
from ptpipeline.records import BaseModelRef, PromptManifest, TensorInfo


def pack(prompt: Tensor, dtype: str, fields: dict[str, Any]) -> Artifact:
    """A trained prompt [P, H] as an artifact; `fields` are the manifest's other identity fields.

    Raises TrainingError where a value is not finite in the stored type.
    """
    stored = stored_value(prompt, dtype)
    body = save({"embeddings": stored})
    info = TensorInfo(shape=list(stored.shape), dtype=dtype)
    manifest = PromptManifest(**fields, num_virtual_tokens=len(stored), tensors={"embeddings": info}, tensor_sha256=hashlib.sha256(body).hexdigest())
    return Artifact(manifest, body)


def stored_value(prompt: Tensor, dtype: str) -> Tensor:
    """The prompt as it is stored: detached, on the CPU, rounded to the stored type; finite, or TrainingError."""
    stored = prompt.detach().cpu().to(DTYPES[dtype]).contiguous()
    if not torch.isfinite(stored).all():
        raise TrainingError(f"the prompt has values that are not finite in {dtype}; lower tune.learning_rate or store it in float32")
    return stored


def unpack(artifact: Artifact, base: BaseModelRef) -> Tensor:
    """The prompt [P, H] of a verified artifact, for the base model that it was trained on and no other.

    Raises BaseModelError where base or tokenizer differ, ArtifactError where a value is not finite.
    """
    check_tensors(artifact.manifest, artifact.tensors)
    trained_on = artifact.manifest.base_model
    for what, found, expected in (
        ("base model", base.fingerprint, trained_on.fingerprint),
        ("tokenizer", base.tokenizer_fingerprint, trained_on.tokenizer_fingerprint),
    ):
        if found != expected:
            raise BaseModelError(
                f"{artifact.manifest.task} {artifact.digest[:12]}: trained on {what} {trained_on.name} {expected[:12]}, "
                f"but {base.name} {found[:12]} is loaded; serve it on {trained_on.name}, or train the task anew on this base"
            )
    prompt: Tensor = load(artifact.tensors)["embeddings"]
    if not torch.isfinite(prompt).all():
        raise ArtifactError(f"{artifact.manifest.task} {artifact.digest[:12]}: embeddings hold values that are not finite")
    return prompt
