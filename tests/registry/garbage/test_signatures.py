"""The collection of signatures: of what was replaced, and with what they belong to."""

import os
import time
from datetime import timedelta
from pathlib import Path

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import (
    SIGNATURES,
    history_key,
    pointer_key,
    prompt_prefix,
    signatures_prefix,
)
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.registry import Registry
from registry.repair.doctor import examine
from tests.registry.signed import TASK, WORKER, folder_of, objects, overwrite, signed


def _make_old(registry: Registry) -> None:
    long_ago = time.time() - 3 * 86400
    for path in (folder_of(registry) / SIGNATURES).rglob("*.json"):
        os.utime(path, (long_ago, long_ago))


def test_signatures_of_replaced_pointers_are_collected(keyed: Registry) -> None:
    pointers = signatures_prefix(pointer_key(TASK.name, "production"))
    assert len([*keyed.store.keys(pointers)]) == 3
    assert collect(keyed, Retention(), apply=True) == []  # younger than a day
    _make_old(keyed)
    assert [item.what for item in collect(keyed, Retention())] == ["signature"] * 2
    assert len(collect(keyed, Retention(), apply=True)) == 2
    assert len([*keyed.store.keys(pointers)]) == 1
    assert resolve(keyed.store, TASK.name).number == 3
    assert examine(keyed) == []


def test_the_signature_of_a_promotion_that_is_not_projected_yet_stays(keyed: Registry) -> None:
    keyed.store.delete(history_key(TASK.name, "production", 3))
    _make_old(keyed)
    collect(keyed, Retention(), apply=True)
    assert [*keyed.store.keys(signatures_prefix(history_key(TASK.name, "production", 3)))]


def test_the_signature_of_a_promotion_that_was_never_made_is_collected(keyed: Registry) -> None:
    key = history_key(TASK.name, "production", 4)
    keyed.store.sign(key, b"drafted")  # type: ignore[attr-defined]
    _make_old(keyed)
    for signature in [*keyed.store.keys(signatures_prefix(pointer_key(TASK.name, "production")))]:
        keyed.store.delete(signature)
    [item] = collect(keyed, Retention(), apply=True)
    assert (item.what, item.why) == (
        "signature",
        f"of bytes that do not lie at {key}: they were replaced, or never stored",
    )
    assert [*keyed.store.keys(signatures_prefix(key))] == []


def test_signatures_of_what_cannot_be_read_stay(keyed: Registry) -> None:
    """Nobody knows which bytes lie there."""
    key = pointer_key(TASK.name, "production")
    path = folder_of(keyed) / key
    path.unlink()
    with path.open("wb") as file:
        file.truncate(5 * 2**30)  # a hole: it takes no room
    _make_old(keyed)
    assert collect(keyed, Retention()) == []


class Noting(FolderStore):
    """A folder that notes its deletions."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.deleted: list[str] = []

    def delete(self, key: str) -> None:
        super().delete(key)
        self.deleted.append(key)


def test_signatures_are_deleted_behind_the_manifest_and_before_what_else_lets_a_collection_be_finished(
    keyed: Registry,
) -> None:
    for seed in (5, 6, 7):
        published(keyed, TASK, seed, an_artifact(TASK, 3).digest)
    noting = Noting(folder_of(keyed))
    policy = Retention(candidates=2, grace=timedelta(0))
    [version, *_] = collect(signed(Registry(keyed.ledger, noting), WORKER, WORKER), policy, apply=True)
    assert version.digest == an_artifact(TASK, 5).digest
    kinds = ["signature" if key.startswith(SIGNATURES) else key.rsplit("/", 1)[1] for key in noting.deleted]
    own = [kind for kind, key in zip(kinds, noting.deleted, strict=True) if version.digest in key]
    assert own[0] == "manifest.json"
    assert "signature" not in own[own.index("prompt.safetensors") :]
    assert own.count("signature") > 1


def test_signatures_go_with_their_version(keyed: Registry) -> None:
    for seed in range(5, 9):
        published(keyed, TASK, seed, an_artifact(TASK, 3).digest)
    folder = prompt_prefix(TASK.name, an_artifact(TASK, 5).digest)
    assert [*keyed.store.keys(signatures_prefix(folder))]
    collect(keyed, Retention(candidates=2, grace=timedelta(0)), apply=True)
    assert [*keyed.store.keys(folder), *keyed.store.keys(signatures_prefix(folder))] == []


def test_what_nobody_signed_blocks_no_collection(keyed: Registry) -> None:
    for key in objects(keyed):
        if not key.endswith(("manifest.json", ".safetensors")):
            overwrite(keyed.store, key, b"{}")
    collect(keyed, Retention(candidates=2, grace=timedelta(0)), apply=True)
