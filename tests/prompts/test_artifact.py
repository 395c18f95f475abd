"""Stored prompts: written once, read back verified, refused when altered in any byte or asked for on another base."""

import hashlib
import json
import struct
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ptpipeline.errors import ArtifactError, BaseModelError, NotFound, TrainingError
from ptpipeline.models.inputs import KeyValues
from ptpipeline.prompts.artifact import (
    MAX_HEADER_BYTES,
    MAX_VIRTUAL_TOKENS,
    PREFIX,
    Artifact,
    check_tensors,
    compute_file_bytes,
    parse_header,
    read_artifact,
    read_ensemble,
    write_artifact,
)
from ptpipeline.prompts.tensors import name_tensors, pack, pack_ensemble, round_to_stored, unpack
from ptpipeline.records.prompts import BaseModelRef, Members, TensorInfo
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.storage.keys import prompt_prefix

BASE = BaseModelRef(name="tiny", fingerprint="a" * 64, tokenizer_fingerprint="b" * 64, hidden_size=6)


def artifact(dtype: str = "float16", value: float = 0.5) -> Artifact:
    fields = {
        "task": "movies",
        "method": "prompt",
        "placement": "before_bos",
        "base_model": BASE,
        "template": "{text}",
        "labels": {"a": " a", "b": " b"},
        "max_input_tokens": 50,
        "snapshot": "c" * 64,
        "recipe": "d" * 64,
        "training_key": "e" * 64,
        "seed": 0,
        "engine_version": 1,
    }
    return pack(torch.linspace(-1, value, 24).reshape(4, 6), dtype, fields)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_written_is_read(store: ObjectStore, dtype: str) -> None:
    made = artifact(dtype)
    digest = write_artifact(store, made)
    prompt = unpack(read_artifact(store, "movies", digest), BASE)
    assert prompt.dtype == getattr(torch, dtype)
    torch.testing.assert_close(prompt.float(), torch.linspace(-1, 0.5, 24).reshape(4, 6), rtol=1e-2, atol=1e-2)


@given(
    tokens=st.integers(1, 300),
    width=st.integers(1, 40),
    layers=st.integers(1, 30),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
@settings(max_examples=50)
def test_the_size_of_a_file_is_known_before_there_is_one(tokens: int, width: int, layers: int, dtype: str) -> None:
    for prompt in (torch.zeros(tokens, width), KeyValues(*torch.zeros(2, layers, 2, tokens, width))):
        tensors = name_tensors(round_to_stored(prompt, dtype))
        assert compute_file_bytes({name: tensor.shape for name, tensor in tensors.items()}, dtype) == len(save(tensors))


def test_writing_twice_is_writing_once(store: ObjectStore) -> None:
    assert write_artifact(store, artifact()) == write_artifact(store, artifact())


def test_a_tensor_file_without_manifest_is_no_artifact(store: ObjectStore) -> None:
    made = artifact()
    store.create(f"{prompt_prefix('movies', made.digest)}/prompt.safetensors", made.tensors)
    with pytest.raises(NotFound):
        read_artifact(store, "movies", made.digest)
    assert read_artifact(store, "movies", write_artifact(store, made)) == made


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda b: b[:-3], "truncated or altered"),
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "truncated or altered"),
        (lambda b: b"", "truncated or altered"),
    ],
)
def test_altered_tensors_are_refused(tmp_path: Path, alter, sentence: str) -> None:  # type: ignore[no-untyped-def]
    store = FolderStore(tmp_path)
    digest = write_artifact(store, artifact())
    path = tmp_path / prompt_prefix("movies", digest) / "prompt.safetensors"
    path.write_bytes(alter(path.read_bytes()))
    with pytest.raises(ArtifactError, match=sentence):
        read_artifact(store, "movies", digest)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = write_artifact(store, artifact())
    path = tmp_path / prompt_prefix("movies", digest) / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_artifact(store, "movies", digest)


def test_a_prompt_copied_under_another_task_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = write_artifact(store, artifact())
    for name in ("prompt.safetensors", "manifest.json"):
        body = store.read(f"{prompt_prefix('movies', digest)}/{name}").body
        store.create(f"{prompt_prefix('books', digest)}/{name}", body)
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_artifact(store, "books", digest)
    assert read_artifact(store, "movies", digest) == artifact()


def test_a_prompt_copied_under_another_digest_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = write_artifact(store, artifact())
    for name in ("prompt.safetensors", "manifest.json"):
        body = store.read(f"{prompt_prefix('movies', digest)}/{name}").body
        store.create(f"{prompt_prefix('movies', '0' * 64)}/{name}", body)
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_artifact(store, "movies", "0" * 64)


def test_other_bytes_at_the_place_are_not_written_over(tmp_path: Path) -> None:
    store, made = FolderStore(tmp_path), artifact()
    key = f"{prompt_prefix('movies', made.digest)}/prompt.safetensors"
    store.create(key, b"of somebody")
    with pytest.raises(ArtifactError, match="holds other bytes already"):
        write_artifact(store, made)
    assert store.read(key).body == b"of somebody"


def test_bytes_that_the_manifest_does_not_state_are_not_stored(tmp_path: Path) -> None:
    made = artifact()
    with pytest.raises(ArtifactError, match="truncated or altered"):
        write_artifact(FolderStore(tmp_path), Artifact(made.manifest, made.tensors[:-1]))
    assert list(FolderStore(tmp_path).keys("prompts")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"num_virtual_tokens": 3},
        {"method": "ensemble"},
        {"members": Members(digests=["a" * 64], combine="average")},
        {"method": "prefix"},
        {"base_model": BASE.model_copy(update={"hidden_size": 7})},
        {"tensors": {}},
        {"tensors": {"embeddings": TensorInfo(shape=[4, 6], dtype="float32")}},
        {"tensors": {"embeddings": TensorInfo(shape=[6, 4], dtype="float16")}},
    ],
)
def test_a_manifest_that_states_other_than_its_tensors_is_refused(change: dict[str, object]) -> None:
    made = artifact()
    check_tensors(made.manifest, made.tensors)
    with pytest.raises(ArtifactError):
        check_tensors(made.manifest.model_copy(update=change), made.tensors)


@pytest.mark.parametrize(
    ("count", "allowed"), [(0, False), (1, True), (MAX_VIRTUAL_TOKENS, True), (MAX_VIRTUAL_TOKENS + 1, False)]
)
def test_the_number_of_virtual_tokens_is_bounded(count: int, allowed: bool) -> None:
    made = artifact()
    with pytest.raises(ArtifactError) as refused:
        check_tensors(made.manifest.model_copy(update={"num_virtual_tokens": count}), made.tensors)
    assert ("allowed are 1 to" in str(refused.value)) != allowed  # one that is allowed differs from the tensors' shape


def test_a_deleted_tensor_file_is_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = write_artifact(store, artifact())
    (tmp_path / prompt_prefix("movies", digest) / "prompt.safetensors").unlink()
    with pytest.raises(ArtifactError, match="deleted"):
        read_artifact(store, "movies", digest)


def test_another_base_is_refused() -> None:
    other = BASE.model_copy(update={"name": "other", "fingerprint": "f" * 64})
    with pytest.raises(
        BaseModelError, match="trained on base model tiny aaaaaaaaaaaa, but other ffffffffffff is loaded"
    ):
        unpack(artifact(), other)


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(BaseModelError, match="trained on tokenizer"):
        unpack(artifact(), BASE.model_copy(update={"tokenizer_fingerprint": "f" * 64}))


def test_values_that_overflow_the_stored_type_are_refused() -> None:
    with pytest.raises(TrainingError, match="not finite in float16"):
        artifact("float16", 1e6)


def forged(header: object, payload: bytes) -> Artifact:
    """An artifact whose manifest was made to fit a hostile file."""
    encoded = json.dumps(header).encode()
    body = struct.pack("<Q", len(encoded)) + encoded + payload
    made = artifact()
    return Artifact(made.manifest.model_copy(update={"tensor_sha256": hashlib.sha256(body).hexdigest()}), body)


@pytest.mark.parametrize(
    "header",
    [
        {"embeddings": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 1 << 40]}},
        {"embeddings": {"dtype": "F16", "shape": [1 << 30, 6], "data_offsets": [0, 48]}},
        {"embeddings": {"dtype": "F64", "shape": [4, 6], "data_offsets": [0, 48]}},
        {"other": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 48]}},
        {
            "embeddings": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 48]},
            "more": {"dtype": "F16", "shape": [0], "data_offsets": [48, 48]},
        },
        {"embeddings": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0.0, 48]}},
        {"embeddings": {"dtype": "F16", "shape": [4, 6], "data_offsets": [False, 48]}},
        {"embeddings": {"dtype": "F16", "shape": [4, 6]}},
        {"__metadata__": {"by": 1}, "embeddings": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 48]}},
        {"embeddings": 3},
        [1, 2],
    ],
)
def test_hostile_headers_are_refused_before_allocation(header: object) -> None:
    with pytest.raises(ArtifactError):
        check_tensors(*forged(header, b"\0" * 48))


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_too_short_for_the_length_of_its_header_is_none(size: int) -> None:
    with pytest.raises(ArtifactError, match=f"{size} bytes are not a safetensors file"):
        parse_header(bytes(size), size)


@pytest.mark.parametrize("size", [47, 49])
def test_bytes_that_belong_to_no_tensor_are_refused(size: int) -> None:
    header = {"embeddings": {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 48]}}
    check_tensors(*forged(header, b"\0" * 48))
    with pytest.raises(ArtifactError, match=f"holds {size} bytes of tensors at"):
        check_tensors(*forged(header, b"\0" * size))


def forged_prefix(key: list[int], value: list[int], places: list[list[int]]) -> Artifact:
    """A prefix of 3 tokens with tensors of these shapes at these places of 96 bytes."""
    tensors = {name: TensorInfo(shape=shape, dtype="float16") for name, shape in zip(PREFIX, (key, value), strict=True)}
    header = json.dumps(
        {
            name: {"dtype": "F16", "shape": info.shape, "data_offsets": place}
            for (name, info), place in zip(tensors.items(), places, strict=True)
        }
    ).encode()
    body = struct.pack("<Q", len(header)) + header + bytes(96)
    changes = {"tensors": tensors, "tensor_sha256": hashlib.sha256(body).hexdigest(), "num_virtual_tokens": 3}
    return Artifact(artifact().manifest.model_copy(update={"method": "prefix", **changes}), body)


SOUND, BEHIND = [2, 1, 3, 4], [[0, 48], [48, 96]]


@pytest.mark.parametrize(
    ("key", "value", "places", "sentence"),
    [
        (SOUND, [1, 2, 3, 4], BEHIND, "expected twice"),
        (SOUND, [2, 1, 4, 3], BEHIND, "expected twice"),
        ([2, 1, 4, 3], [2, 1, 4, 3], BEHIND, "expected twice"),
        ([2, 3, 4], [2, 3, 4], BEHIND, "expected twice"),
        ([2, 0, 3, 4], [2, 0, 3, 4], [[0, 0], [0, 0]], "expected twice"),
        (SOUND, SOUND, [[48, 96], [48, 96]], "one behind another"),
        (SOUND, SOUND, [[0, 48], [0, 48]], "one behind another"),
    ],
)
def test_keys_and_values_are_alike_and_one_behind_another(
    key: list[int], value: list[int], places: list[list[int]], sentence: str
) -> None:
    check_tensors(*forged_prefix(SOUND, SOUND, BEHIND))
    with pytest.raises(ArtifactError, match=sentence):
        check_tensors(*forged_prefix(key, value, places))


@pytest.mark.parametrize(("more", "sentence"), [(0, "hash to"), (1, "at most 112 allowed")])
def test_a_file_may_have_as_many_bytes_as_are_allowed(
    monkeypatch: pytest.MonkeyPatch, more: int, sentence: str
) -> None:
    monkeypatch.setattr("ptpipeline.prompts.artifact.MAX_TENSOR_BYTES", 112)
    with pytest.raises(ArtifactError, match=sentence):
        check_tensors(artifact().manifest, bytes(112 + more))


def test_a_member_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    members, store = [artifact(value=value) for value in (0.5, 0.7)], FolderStore(tmp_path)
    fields = artifact().manifest.model_dump(exclude={"tensors", "tensor_sha256", "num_virtual_tokens", "members"})
    whole = pack_ensemble(members, "average", fields | {"method": "ensemble"})
    write_artifact(store, members[0])
    with pytest.raises(
        ArtifactError, match=f"its member {members[1].digest[:12]} is missing in .*; train the ensemble"
    ):
        read_ensemble(store, whole)
    write_artifact(store, members[1])
    assert read_ensemble(store, whole) == members


@given(position=st.integers(0, 10_000), value=st.integers(1, 255))
@settings(max_examples=200)
def test_no_flipped_byte_goes_unnoticed(position: int, value: int) -> None:
    made = artifact()
    body = bytearray(made.tensors)
    body[position % len(body)] ^= value
    with pytest.raises(ArtifactError):
        check_tensors(made.manifest, bytes(body))


@pytest.mark.parametrize("more", [0, 1])
def test_a_header_may_be_as_long_as_is_allowed(more: int) -> None:
    body = struct.pack("<Q", MAX_HEADER_BYTES + more) + b"{}".ljust(MAX_HEADER_BYTES + more)
    with pytest.raises(ArtifactError, match="states a header of 65537 bytes") if more else nullcontext():
        assert parse_header(body, len(body)) == {}
