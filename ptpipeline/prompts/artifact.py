"""The stored prompt: `prompt.safetensors` + `manifest.json`; the one writer and the one reader. Imports no torch.

The manifest is written last, so its presence means that the artifact is complete. Every bound is checked on the
safetensors header (8 bytes of length, then JSON) before any tensor is allocated.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed
from ptpipeline.records import PromptManifest, TensorInfo
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import MANIFEST_FILE, TENSOR_FILE, manifest_key, prompt_prefix, tensors_key

MAX_TENSOR_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
MAX_MANIFEST_BYTES = 2**20
MAX_VIRTUAL_TOKENS = 1000
EMBEDDINGS = ("embeddings",)
PREFIX = ("prefix.key", "prefix.value")

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
    try:
        store.create(tensors_key(task, digest), artifact.tensors)
        store.create(
            manifest_key(task, digest), json.dumps(artifact.manifest.to_json(), indent=1, sort_keys=True).encode()
        )
    except PreconditionFailed:
        raise ArtifactError(
            f"{store.url}/{prompt_prefix(task, digest)}: other bytes lie there already; `ptp doctor` shows which "
            "object is altered"
        ) from None
    read_artifact(store, task, digest)
    return digest


def read_artifact(store: ObjectStore, task: str, digest: str) -> Artifact:
    """The verified artifact of that digest.

    Raises NotFound where there is no complete one, ArtifactError where its bytes are truncated or altered, or where the
    store (signature.SignedStore) finds no trusted signature for the manifest.
    """
    where = f"{store.url}/{prompt_prefix(task, digest)}"
    body = store.read(manifest_key(task, digest)).body
    if len(body) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{where}/{MANIFEST_FILE}: {len(body)} bytes, at most {MAX_MANIFEST_BYTES} allowed")
    try:
        manifest = PromptManifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(
            f"{where}/{MANIFEST_FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}; the manifest is "
            "altered or from a newer ptpipeline"
        ) from None
    if manifest.digest() != digest or manifest.task != task:
        raise ArtifactError(
            f"{where}/{MANIFEST_FILE}: hashes to {manifest.digest()[:12]}, expected {digest[:12]}; the "
            "manifest was altered"
        )
    try:
        tensors = store.read(tensors_key(task, digest)).body
    except NotFound:
        raise ArtifactError(
            f"{where}/{TENSOR_FILE}: missing although the manifest is there; the tensor file was deleted"
        ) from None
    try:
        check_tensors(manifest, tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{where}/{TENSOR_FILE}: {error}") from None
    return Artifact(manifest, tensors)


def read_ensemble(store: ObjectStore, artifact: Artifact) -> list[Artifact]:
    """The verified prompts of an ensemble, in order; none for any other prompt. Raises ArtifactError where one is
    missing or altered.
    """
    found = []
    for digest in artifact.manifest.members.digests if artifact.manifest.members else []:
        try:
            found.append(read_artifact(store, artifact.manifest.task, digest))
        except NotFound:
            what = f"{artifact.manifest.task} {artifact.digest[:12]}"
            raise ArtifactError(
                f"{what}: its member {digest[:12]} is missing in {store.url}; train the ensemble anew"
            ) from None
    return found


def check_tensors(manifest: PromptManifest, body: bytes) -> None:
    """ArtifactError unless `body` is the safetensors file that the manifest states: size, hash, names, shapes,
    types.
    """
    if len(body) > MAX_TENSOR_BYTES:
        raise ArtifactError(f"{len(body)} bytes, at most {MAX_TENSOR_BYTES} allowed")
    actual = hashlib.sha256(body).hexdigest()
    if actual != manifest.tensor_sha256:
        raise ArtifactError(
            f"{len(body)} bytes hash to {actual[:12]}, the manifest states {manifest.tensor_sha256[:12]}; the "
            "file is truncated or altered"
        )
    if not 1 <= manifest.num_virtual_tokens <= MAX_VIRTUAL_TOKENS:
        raise ArtifactError(
            f"num_virtual_tokens is {manifest.num_virtual_tokens}, allowed are 1 to {MAX_VIRTUAL_TOKENS}"
        )
    header, names = _header(body), list_tensor_names(manifest.method)
    if set(header) != set(names) or set(manifest.tensors) != set(names):
        raise ArtifactError(f"holds tensors {sorted(header)}, expected {sorted(names)}")
    if (manifest.method == "ensemble") != (manifest.members is not None):
        raise ArtifactError("an ensemble lists its members and no other prompt does; the manifest is malformed")
    _check_shapes(manifest)
    ends = sorted(_check_tensor(name, header[name], manifest.tensors[name]) for name in names)
    payload = len(body) - 8 - struct.unpack("<Q", body[:8])[0]
    if [begin for begin, _ in ends] != [0, *(end for _, end in ends[:-1])][: len(ends)] or payload != (
        ends[-1][1] if ends else 0
    ):
        raise ArtifactError(f"holds {payload} bytes of tensors at {ends}, expected them one behind another")


def list_tensor_names(method: str) -> tuple[str, ...]:
    """What a prompt of that method stores: its embeddings, keys and values, or nothing of its own."""
    return {"prefix": PREFIX, "ensemble": ()}.get(method, EMBEDDINGS)


def compute_file_bytes(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Bytes of the safetensors file that holds tensors of these names and shapes in the stored type: header, then
    payload.

    The header is compact JSON, padded to a multiple of 8 (the format's own page, `Format`).
    """
    header: dict[str, dict[str, object]] = {}
    end, (code, width) = 0, _DTYPES[dtype]
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + end


def _check_shapes(manifest: PromptManifest) -> None:
    """Embeddings are [P, H]; keys and values [L, heads_kv, P, d] alike."""
    count, shapes = manifest.num_virtual_tokens, [info.shape for info in manifest.tensors.values()]
    if manifest.method == "prefix":
        sound = all(len(shape) == 4 and min(shape) > 0 and shape[2] == count and shape == shapes[0] for shape in shapes)
        expected = f"twice [layers, heads, {count}, size]"
    else:
        sound = all(shape == [count, manifest.base_model.hidden_size] for shape in shapes)
        expected = str([count, manifest.base_model.hidden_size])
    if not sound:
        raise ArtifactError(f"{', '.join(manifest.tensors)} are {shapes}, expected {expected}")


def _check_tensor(name: str, found: dict[str, Any], stated: TensorInfo) -> tuple[int, int]:
    """Where the tensor lies; ArtifactError unless type and shape are as stated, and the place has that size."""
    dtype, width = _DTYPES[stated.dtype]
    if found.get("dtype") != dtype or found.get("shape") != stated.shape:
        raise ArtifactError(f"{name} are {found.get('dtype')} {found.get('shape')}, expected {dtype} {stated.shape}")
    offsets, size = found.get("data_offsets"), math.prod(stated.shape) * width
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(isinstance(o, int) for o in offsets)
        and offsets[1] - offsets[0] == size
    ):
        raise ArtifactError(f"{name} lie at {offsets}, expected {size} bytes")
    return offsets[0], offsets[1]


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
