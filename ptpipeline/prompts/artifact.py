"""The stored prompt: `prompt.safetensors` + `manifest.json`; the one writer and the one reader. Imports no torch.

The manifest is written last, so its presence means that the artifact is complete. Every bound is checked on the
safetensors header (8 bytes of length, then JSON) before any tensor is allocated.
"""

import hashlib
import json
import struct
from typing import Any, NamedTuple

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed
from ptpipeline.records import PromptManifest, prompt_prefix
from ptpipeline.storage import ObjectStore

TENSOR_FILE = "prompt.safetensors"
MANIFEST_FILE = "manifest.json"
MAX_TENSOR_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
MAX_MANIFEST_BYTES = 2**20
MAX_VIRTUAL_TOKENS = 1000

_DTYPES = {"float16": ("F16", 2), "bfloat16": ("BF16", 2), "float32": ("F32", 4)}


class Artifact(NamedTuple):
    """A verified prompt: its manifest and the bytes of its safetensors file."""

    manifest: PromptManifest
    tensors: bytes

    @property
    def digest(self) -> str:
        """The prompt's identity, as it is stored and registered."""
        return self.manifest.digest()


def write_artifact(store: ObjectStore, artifact: Artifact) -> str:
    """Store tensors, then manifest, read both back and verify them; returns the digest.

    Idempotent: a repeat finds what is there and finishes it. Raises ArtifactError where other bytes lie at the place.
    """
    task, digest = artifact.manifest.task, artifact.digest
    check_tensors(artifact.manifest, artifact.tensors)
    folder = prompt_prefix(task, digest)
    try:
        store.create(f"{folder}/{TENSOR_FILE}", artifact.tensors)
        store.create(f"{folder}/{MANIFEST_FILE}", json.dumps(artifact.manifest.to_json(), indent=1, sort_keys=True).encode())
    except PreconditionFailed:
        raise ArtifactError(f"{store.url}/{folder}: other bytes lie there already; `ptp doctor` shows which object is altered") from None
    read_artifact(store, task, digest)
    return digest


def read_artifact(store: ObjectStore, task: str, digest: str) -> Artifact:
    """The verified artifact of that digest.

    Raises NotFound where there is no complete one, ArtifactError where its bytes are truncated or altered.
    """
    folder = prompt_prefix(task, digest)
    where = f"{store.url}/{folder}"
    body = store.read(f"{folder}/{MANIFEST_FILE}").body
    if len(body) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{where}/{MANIFEST_FILE}: {len(body)} bytes, at most {MAX_MANIFEST_BYTES} allowed")
    try:
        manifest = PromptManifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(f"{where}/{MANIFEST_FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}; the manifest is altered or from a newer ptpipeline") from None
    if manifest.digest() != digest or manifest.task != task:
        raise ArtifactError(f"{where}/{MANIFEST_FILE}: hashes to {manifest.digest()[:12]}, expected {digest[:12]}; the manifest was altered")
    try:
        tensors = store.read(f"{folder}/{TENSOR_FILE}").body
    except NotFound:
        raise ArtifactError(f"{where}/{TENSOR_FILE}: missing although the manifest is there; the tensor file was deleted") from None
    try:
        check_tensors(manifest, tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{where}/{TENSOR_FILE}: {error}") from None
    return Artifact(manifest, tensors)


def check_tensors(manifest: PromptManifest, body: bytes) -> None:
    """ArtifactError unless `body` is the safetensors file that the manifest states: size, hash, names, shapes, types."""
    if len(body) > MAX_TENSOR_BYTES:
        raise ArtifactError(f"{len(body)} bytes, at most {MAX_TENSOR_BYTES} allowed")
    actual = hashlib.sha256(body).hexdigest()
    if actual != manifest.tensor_sha256:
        raise ArtifactError(f"{len(body)} bytes hash to {actual[:12]}, the manifest states {manifest.tensor_sha256[:12]}; the file is truncated or altered")
    header = _header(body)
    if set(header) != set(manifest.tensors) or set(header) != {"embeddings"}:
        raise ArtifactError(f"holds tensors {sorted(header)}, expected ['embeddings']")
    stated, found = manifest.tensors["embeddings"], header["embeddings"]
    expected_shape = [manifest.num_virtual_tokens, manifest.base_model.hidden_size]
    name, width = _DTYPES[stated.dtype]
    if not 1 <= manifest.num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
        raise ArtifactError(f"num_virtual_tokens is {manifest.num_virtual_tokens}, allowed are 1 to {MAX_VIRTUAL_TOKENS}")
    if found.get("dtype") != name or found.get("shape") != expected_shape or stated.shape != expected_shape:
        raise ArtifactError(f"embeddings are {found.get('dtype')} {found.get('shape')}, expected {name} {expected_shape}")
    payload = len(body) - 8 - struct.unpack("<Q", body[:8])[0]
    size = expected_shape[0] * expected_shape[1] * width
    if found.get("data_offsets") != [0, size] or payload != size:
        raise ArtifactError(f"embeddings take {payload} bytes at {found.get('data_offsets')}, expected {size}")


def _header(body: bytes) -> dict[str, dict[str, Any]]:
    if len(body) < 8:
        raise ArtifactError(f"{len(body)} bytes are no safetensors file")
    (length,) = struct.unpack("<Q", body[:8])
    if length > MAX_HEADER_BYTES or 8 + length > len(body):
        raise ArtifactError(f"states a header of {length} bytes in a file of {len(body)}")
    try:
        header = json.loads(body[8 : 8 + length])
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ArtifactError("its safetensors header is not JSON") from None
    if not isinstance(header, dict) or not all(isinstance(value, dict) for value in header.values()):
        raise ArtifactError("its safetensors header is not a map of tensors")
    header.pop("__metadata__", None)
    return header
