"""Whoever may write to the bucket may write anything: a server never ends, never holds it, and always says why."""

import hashlib
import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ptpipeline.errors import ArtifactError
from ptpipeline.prompts.artifact import MAX_HEADER_BYTES, Artifact
from ptpipeline.prompts.tensors import pack
from ptpipeline.records.prompts import TensorInfo
from ptpipeline.records.versions import Promotion
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import manifest_key, pointer_key, tensors_key, version_key
from ptpipeline.storage.signed import SignedStore
from tests.evaluation.probed import fields, tiny
from tests.registry.signed import WORKER, trust
from tests.serving.registered import TASK, a_prompt, add_version, point, put
from tests.serving.test_live import Server

GOOD, NEXT = a_prompt(" yes"), a_prompt(" bad")
KEYS = {
    "pointer": pointer_key(TASK, "production"),
    "name": version_key(TASK, 2),
    "manifest": manifest_key(TASK, NEXT.digest),
    "tensors": tensors_key(TASK, NEXT.digest),
}


class World:
    """A server that answers with version 1, in front of whose store an attacker stands."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = FolderStore(self.folder / "store")
        add_version(self.store, GOOD, 1)
        add_version(self.store, NEXT, 2)
        point(self.store, 1, GOOD.digest, 1)
        self.server = Server(self.store, self.folder / "home")
        self.server.poll()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def write(self, key: str, body: bytes) -> None:
        """Write as somebody who minds no bound."""
        path = self.store.root / key
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    def check_refused(self) -> str:
        """Assert that the server goes on with version 1, and holds nothing else; return the reason that it names."""
        self.server.poll()
        assert self.server.live.find(TASK).digest == GOOD.digest
        assert set(self.server.holder.engine._loaded) == {GOOD.digest}
        [reason] = self.server.reasons()
        assert "unexpected" not in reason
        return reason


def changed(body: bytes, data: st.DataObject) -> bytes:
    """The bytes cut, overwritten, extended or replaced."""
    kind = data.draw(st.sampled_from(["cut", "overwrite", "insert", "replace"]))
    if kind == "replace":
        return data.draw(st.binary(max_size=300))
    place = data.draw(st.integers(0, len(body) - 1))
    if kind == "cut":
        return body[:place]
    some = data.draw(st.binary(min_size=1, max_size=40))
    return body[:place] + some + body[place + (len(some) if kind == "overwrite" else 0) :]


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(["name", "manifest", "tensors"]), data=st.data())
def test_altered_bytes_of_a_promoted_version_are_refused(kind: str, data: st.DataObject) -> None:
    with World() as world:
        point(world.store, 2, NEXT.digest, 2)
        before = world.store.read(KEYS[kind]).body
        after = changed(before, data)
        assume(after != before)
        world.write(KEYS[kind], after)
        world.server.poll()
        served = world.server.live.find(TASK).digest
        if served == NEXT.digest:  # the same value in other bytes: white space of JSON, a time
            assert kind != "tensors"
            assert world.server.reasons() == []
        else:
            world.check_refused()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_altered_bytes_of_a_pointer_are_refused_or_name_what_holds(data: st.DataObject) -> None:
    """Without keys anybody may write a pointer; what it names has to hold in any case."""
    with World() as world:
        point(world.store, 1, GOOD.digest, 2)
        world.write(KEYS["pointer"], changed(world.store.read(KEYS["pointer"]).body, data))
        world.server.poll()
        assert world.server.live.find(TASK).digest == GOOD.digest
        assert not any("unexpected" in reason for reason in world.server.reasons())


TRICKS: dict[str, Any] = {
    "path": "../../etc/passwd",
    "absolute": "/etc/passwd",
    "another task's": f"../books/{GOOD.digest}",
    "empty": "",
    "upper case": GOOD.digest.upper(),
    "short": GOOD.digest[:63],
    "null": None,
    "number": 7,
    "list": [GOOD.digest],
    "long": "a" * 100_000,
    "control": GOOD.digest[:-1] + "\n",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("field", ["digest", "task", "alias", "version"])
def test_a_pointer_whose_names_are_tricks_is_refused(field: str, trick: str) -> None:
    with World() as world:
        point(world.store, 2, NEXT.digest, 2)
        pointer = json.loads(world.store.read(KEYS["pointer"]).body)
        pointer["promotion"][field] = TRICKS[trick]
        if field == "digest":  # else the name of the version would contradict it
            (world.store.root / KEYS["name"]).unlink()
        world.write(KEYS["pointer"], json.dumps(pointer).encode())
        if (field, trick) != ("version", "number"):
            world.check_refused()
            return
        world.server.poll()  # any number is one, and the digest says what is served
        assert world.server.live.find(TASK).digest == NEXT.digest


@pytest.mark.parametrize("kind", KEYS)
def test_an_object_of_a_gigabyte_is_refused_unread(kind: str) -> None:
    with World() as world:
        if kind != "pointer":
            point(world.store, 2, NEXT.digest, 2)
        with (world.store.root / KEYS[kind]).open("r+b") as file:
            file.truncate(2**30)
        assert "at most" in world.check_refused()


@pytest.mark.parametrize("kind", KEYS)
def test_a_link_is_not_followed(kind: str) -> None:
    with World() as world:
        if kind != "pointer":
            point(world.store, 2, NEXT.digest, 2)
        target = world.folder / "elsewhere"
        shutil.move(world.store.root / KEYS[kind], target)
        (world.store.root / KEYS[kind]).symlink_to(target)
        assert "symbolic link" in world.check_refused()


# ---------------------------------------------------------------- tensors that their manifest vouches for


def forged(body: bytes, **manifest: Any) -> Artifact:
    """A prompt whose manifest states the hash of these bytes: only what they hold can be wrong."""
    made = NEXT.manifest.model_copy(update={"tensor_sha256": hashlib.sha256(body).hexdigest(), **manifest})
    return Artifact(made, body)


def with_header(entries: dict[str, Any], payload: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + payload


WIDTH = tiny().ref.hidden_size
COUNT = NEXT.manifest.num_virtual_tokens
FORGED = {
    "not a number": lambda: forged(save({"embeddings": torch.full((COUNT, WIDTH), float("nan"))})),
    "infinite": lambda: forged(save({"embeddings": torch.full((COUNT, WIDTH), float("inf"))})),
    "of another type": lambda: forged(save({"embeddings": torch.zeros(COUNT, WIDTH, dtype=torch.float16)})),
    "of integers": lambda: forged(save({"embeddings": torch.zeros(COUNT, WIDTH, dtype=torch.int32)})),
    "of another width": lambda: forged(save({"embeddings": torch.zeros(COUNT, WIDTH + 1)})),
    "of another name": lambda: forged(save({"weights": torch.zeros(COUNT, WIDTH)})),
    "one too many": lambda: forged(save({"embeddings": torch.zeros(COUNT, WIDTH), "more": torch.zeros(1)})),
    "truncated": lambda: forged(save({"embeddings": torch.zeros(COUNT, WIDTH)})[:-4]),
    "extended": lambda: forged(save({"embeddings": torch.zeros(COUNT, WIDTH)}) + b"more"),
    "a huge header": lambda: forged(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * (MAX_HEADER_BYTES + 1)),
    "a header beyond the file": lambda: forged(struct.pack("<Q", 2**63) + b"{}"),
    "offsets beyond the file": lambda: forged(
        with_header({"embeddings": {"dtype": "F32", "shape": [COUNT, WIDTH], "data_offsets": [0, 2**40]}}, b"x")
    ),
    "a shape of terabytes": lambda: forged(
        with_header({"embeddings": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 1]}}, b"x"),
        tensors={"embeddings": TensorInfo(shape=[2**20, 2**20], dtype="float32")},
    ),
    "too many tokens": lambda: pack(torch.zeros(1001, WIDTH), "float32", fields(tiny())),
    "a pickle": lambda: forged(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."),
    "nested JSON": lambda: forged(struct.pack("<Q", 60_000) + b"[" * 60_000),
}


@pytest.mark.parametrize("kind", FORGED)
def test_tensors_that_do_not_hold_are_refused_whatever_their_manifest_says(kind: str) -> None:
    made = FORGED[kind]()
    with World() as world:
        folder = world.store.root
        world.write(manifest_key(TASK, made.digest), json.dumps(made.manifest.to_json()).encode())
        world.write(tensors_key(TASK, made.digest), made.tensors)
        assert folder.exists()
        (folder / KEYS["name"]).unlink()
        point(world.store, 2, made.digest, 2)
        world.check_refused()


# ---------------------------------------------------------------- with trusted keys


Signed = tuple[SignedStore, Server, Promotion]


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    """The store as the registry's worker writes it, and a server that trusts the worker's key and has none."""
    plain = FolderStore(tmp_path / "store")
    store = SignedStore(plain, trust(WORKER), WORKER)
    add_version(store, GOOD, 1)
    add_version(store, NEXT, 2)
    first = point(store, 1, GOOD.digest, 1)
    server = Server(SignedStore(plain, trust(WORKER)), tmp_path / "home")
    server.poll()
    return store, server, first


def test_a_signed_promotion_is_taken_over_and_an_unsigned_one_is_refused(signed: Signed) -> None:
    store, server, first = signed
    point(store.unverified, 2, NEXT.digest, 2)
    server.poll()
    assert server.live.find(TASK).number == 1
    assert "nobody signed it" in server.reasons()[0]
    point(store, 2, NEXT.digest, 2, before=first)
    server.poll()
    assert (server.live.find(TASK).number, server.reasons()) == (2, [])


def test_an_older_signed_pointer_is_refused_also_after_a_restart(signed: Signed, tmp_path: Path) -> None:
    store, server, first = signed
    old = store.read(KEYS["pointer"]).body
    point(store, 2, NEXT.digest, 2, before=first)
    server.poll()
    put(store.unverified, KEYS["pointer"], old)
    server.poll()
    again = Server(server.live.store, tmp_path / "home")
    again.live.hold_last_good()
    again.poll()
    for one in (server, again):
        assert one.live.find(TASK).number == 2
        assert "shows promotion 1, and this reader has seen promotion 2" in one.reasons()[0]


def test_a_prompt_without_a_signature_is_not_found_by_its_number_or_digest(
    signed: Signed,
) -> None:
    store, server, _ = signed
    third = add_version(store.unverified, a_prompt(" dull"), 3)
    for reference in (f"{TASK}@3", f"{TASK}@sha256:{third}"):
        with pytest.raises(ArtifactError, match="nobody signed it"):
            server.live.find(reference)
    assert third not in server.holder.engine._loaded


def test_a_pointer_that_cannot_be_read_is_refused_also_right_after_a_start() -> None:
    with World() as world:
        with (world.store.root / KEYS["pointer"]).open("r+b") as file:
            file.truncate(2**30)
        again = Server(world.store, world.folder / "home")
        again.live.hold_last_good()
        again.poll()
        assert again.live.find(TASK).digest == GOOD.digest
        assert "at most" in again.reasons()[0]
