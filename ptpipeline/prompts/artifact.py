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

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed
from ptpipeline.foreign import parse_json, parse_record, shorten
from ptpipeline.records.prompts import PromptManifest, TensorInfo
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import MANIFEST_FILE, TENSOR_FILE, manifest_key, prompt_prefix, tensors_key

MAX_TENSOR_BYTES = 64 * 2**20
MAX_FOREIGN_BYTES = 2 * MAX_TENSOR_BYTES  # of a tensor to start from: others store float32, we store 16 bit
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
    """Store tensors, then manifest, read both back, verify them and return the digest.

    Idempotent: a repeat finishes what is there. Raises ArtifactError if the place holds other bytes.
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
            f"{store.url}/{prompt_prefix(task, digest)} holds other bytes already; `ptp doctor` shows which "
            "object is altered"
        ) from None
    read_artifact(store, task, digest)
    return digest


def read_artifact(store: ObjectStore, task: str, digest: str) -> Artifact:
    """Return the verified artifact of that digest.

    Raises NotFound if there is no complete one, ArtifactError if its bytes are truncated or altered, or if the store
    (storage.signed) finds no trusted signature for the manifest.
    """
    where = f"{store.url}/{prompt_prefix(task, digest)}"
    body = store.read(manifest_key(task, digest)).body
    manifest = parse_record(PromptManifest, body, f"{where}/{MANIFEST_FILE}")
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
    """Return the verified prompts of an ensemble, in order; none for any other prompt.

    Raises ArtifactError if one is missing or altered.
    """
    prompts = []
    for digest in artifact.manifest.members.digests if artifact.manifest.members else []:
        try:
            prompts.append(read_artifact(store, artifact.manifest.task, digest))
        except NotFound:
            what = f"{artifact.manifest.task} {artifact.digest[:12]}"
            raise ArtifactError(
                f"{what}: its member {digest[:12]} is missing in {store.url}; train the ensemble again"
            ) from None
    return prompts


def check_tensors(manifest: PromptManifest, body: bytes) -> None:
    """Raise ArtifactError unless `body` is the safetensors file that the manifest states.

    Size, hash, names, shapes and types are checked before any tensor is allocated.
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
    header, names = parse_header(body, len(body)), list_tensor_names(manifest.method)
    if set(header) != set(names) or set(manifest.tensors) != set(names):
        raise ArtifactError(f"holds tensors {shorten(sorted(header))}, expected {sorted(names)}")
    if (manifest.method == "ensemble") != (manifest.members is not None):
        raise ArtifactError("the manifest is malformed: an ensemble lists its members, and no other prompt does")
    _check_shapes(manifest)
    places = sorted(_check_tensor(name, header[name], manifest.tensors[name]) for name in names)
    payload = len(body) - 8 - struct.unpack("<Q", body[:8])[0]
    begins, ends = [begin for begin, _ in places], [0, *(end for _, end in places)]
    if begins != ends[:-1] or payload != ends[-1]:
        raise ArtifactError(f"holds {payload} bytes of tensors at {shorten(places)}, expected them one behind another")


def list_tensor_names(method: str) -> tuple[str, ...]:
    """Return the names of the tensors that a prompt of that method stores: an ensemble stores none of its own."""
    return {"prefix": PREFIX, "ensemble": ()}.get(method, EMBEDDINGS)


def compute_file_bytes(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Return the bytes of a safetensors file with tensors of these names and shapes in the stored type.

    Its header is compact JSON, padded to a multiple of 8 (safetensors' documentation, `Format`); the payload follows.
    """
    header: dict[str, dict[str, object]] = {}
    end, (code, width) = 0, _DTYPES[dtype]
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + end


def _check_shapes(manifest: PromptManifest) -> None:
    """Raise ArtifactError unless embeddings are [P, H], or keys and values alike [L, kv, P, d]."""
    count, shapes = manifest.num_virtual_tokens, [info.shape for info in manifest.tensors.values()]
    if manifest.method == "prefix":
        sound = all(len(shape) == 4 and min(shape) > 0 and shape[2] == count and shape == shapes[0] for shape in shapes)
        expected = f"twice [layers, heads, {count}, size]"
    else:
        sound = all(shape == [count, manifest.base_model.hidden_size] for shape in shapes)
        expected = str([count, manifest.base_model.hidden_size])
    if not sound:
        raise ArtifactError(f"{', '.join(manifest.tensors)} are {shorten(shapes)}, expected {expected}")


def _check_tensor(name: str, entry: dict[str, Any], stated: TensorInfo) -> tuple[int, int]:
    """Return where the tensor lies; raise ArtifactError unless type, shape and size are as stated."""
    dtype, width = _DTYPES[stated.dtype]
    found, expected = {**entry, "data_offsets": None}, {"dtype": dtype, "shape": stated.shape, "data_offsets": None}
    if found != expected or not _are_integers(found["shape"]):
        raise ArtifactError(f"{name} are {shorten(found)}, expected {shorten(expected)}")
    offsets: Any = entry.get("data_offsets")
    size = math.prod(stated.shape) * width
    if not (_are_integers(offsets) and len(offsets) == 2 and offsets[0] >= 0 and offsets[1] - offsets[0] == size):
        raise ArtifactError(f"{name} lie at {shorten(offsets)}, expected {size} bytes")
    return offsets[0], offsets[1]


def _are_integers(values: Any) -> bool:
    """Whether it is a list of integers: in Python `true` is 1 and 4.0 is 4, for the parser of tensors they are not."""
    return isinstance(values, list) and all(type(value) is int for value in values)


def parse_header(start: bytes, size: int) -> dict[str, dict[str, Any]]:
    """Return the entries of the tensors in a safetensors file of `size` bytes, which begins with `start`.

    Raises ArtifactError if its header is longer than MAX_HEADER_BYTES or malformed.
    """
    if len(start) < 8:
        raise ArtifactError(f"{size} bytes are not a safetensors file")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER_BYTES or 8 + length > size:
        raise ArtifactError(f"states a header of {length} bytes in a file of {size}")
    header = parse_json(start[8 : 8 + length], "its safetensors header")
    if not isinstance(header, dict) or not all(isinstance(value, dict) for value in header.values()):
        raise ArtifactError("its safetensors header is not a map of tensors")
    if not all(isinstance(value, str) for value in header.pop("__metadata__", {}).values()):
        raise ArtifactError("its safetensors header has metadata that is not a map of texts")
    return header
