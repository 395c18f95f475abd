"""Records that somebody forged: a rebuild reports them, and takes none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records.versions import Pointer, Promotion, VersionName
from ptpipeline.storage.keys import history_key, pointer_key, prompt_prefix, version_key
from ptpipeline.task.task import Task
from registry.registry import Registry
from registry.repair.rebuild import rebuild
from registry.versions.promotion import promote
from tests.registry.repair.test_rebuild import ME, emptied


def forged(head: Promotion, **changes: object) -> bytes:
    return head.model_copy(update=changes).model_dump_json().encode()


def forged_version(registry: Registry, task: Task) -> None:
    write_artifact(registry.store, an_artifact(task, 66))
    registry.store.create(
        version_key(task.name, 3),
        VersionName(task=task.name, number=3, digest=an_artifact(task, 66).digest).model_dump_json().encode(),
    )


FORGERIES: dict[str, tuple[str, Callable[[Registry, Task, Promotion], object]]] = {
    "an ungated promotion": (
        "the passed verdict that it cites is nowhere",
        lambda r, t, head: (
            forged_version(r, t),
            r.store.create(
                history_key(t.name, "production", 2),
                forged(head, seq=2, version=3, previous=1, digest=an_artifact(t, 66).digest, verdict="d" * 64),
            ),
        ),
    ),
    "a verdict over another prompt": (
        "the passed verdict that it cites is nowhere",
        lambda r, t, head: (
            forged_version(r, t),
            r.store.create(
                history_key(t.name, "production", 2),
                forged(head, seq=2, version=3, previous=1, digest=an_artifact(t, 66).digest),
            ),
        ),
    ),
    "a gap": (
        "promotion 2 is missing",
        lambda r, t, head: r.store.create(history_key(t.name, "production", 3), forged(head, seq=3, previous=1)),
    ),
    "another previous": (
        "which it did not name then",
        lambda r, t, head: r.store.create(history_key(t.name, "production", 2), forged(head, seq=2, previous=9)),
    ),
    "another digest": (
        "not registered as that",
        lambda r, t, head: r.store.create(
            history_key(t.name, "production", 2), forged(head, seq=2, previous=1, digest="e" * 64)
        ),
    ),
    "a copied row": (
        "it was altered or copied",
        lambda r, t, head: r.store.create(history_key(t.name, "production", 2), forged(head)),
    ),
    "no row": ("is no Promotion", lambda r, t, head: r.store.create(history_key(t.name, "production", 2), b"{}")),
    "a pointer alone": (
        "a promotion that the history does not hold",
        lambda r, t, head: overwrite(
            r,
            pointer_key(t.name, "production"),
            Pointer(promotion=head.model_copy(update={"seq": 9, "version": 2}), nonce="n" * 16)
            .model_dump_json()
            .encode(),
        ),
    ),
    "a pointer that nobody can read": (
        "a promotion that the history does not hold",
        lambda r, t, head: overwrite(r, pointer_key(t.name, "production"), b"{}"),
    ),
    "a number for two": (
        "which is version 1 already",
        lambda r, t, head: r.store.create(
            version_key(t.name, 7), VersionName(task=t.name, number=7, digest=head.digest).model_dump_json().encode()
        ),
    ),
    "altered bytes": (
        "which is unsound",
        lambda r, t, head: overwrite(
            r, f"{prompt_prefix(t.name, an_artifact(t, 2).digest)}/prompt.safetensors", b"altered"
        ),
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_reported_and_not_taken(plain: Registry, task: Task, tmp_path: Path, forgery: str) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    why, forge = FORGERIES[forgery]
    forge(plain, task, head)
    after = emptied(plain, tmp_path)
    left = [action.what for action in rebuild(after) if not action.done]
    assert any(why in what for what in left)
    assert after.ledger.history(task.name) == [head]
    assert after.ledger.version(task.name, 1).digest == head.digest


def test_a_row_that_contradicts_the_ledger_is_not_taken(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    overwrite(plain, history_key(task.name, "production", 1), forged(head, actor="mallory"))
    plain.store.create(history_key(task.name, "production", 2), forged(head, seq=2, previous=1))
    left = [action.what for action in rebuild(plain) if not action.done]
    assert ["is another promotion 1 than the ledger's" in left[0], "follows one that cannot be taken" in left[1]] == [
        True,
        True,
    ]
    assert plain.ledger.history(task.name) == [head]


def overwrite(registry: Registry, key: str, body: bytes) -> None:
    registry.store.replace(key, body, registry.store.read(key).etag)
