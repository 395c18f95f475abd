"""What a reader remembers: a signed pointer that is older than one it has seen is refused, and what it cannot know."""

import logging
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline.errors import ArtifactError, SettingsError
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records.versions import Beside, Pointer, Promotion, VersionName
from ptpipeline.serving.resolver import resolve
from ptpipeline.serving.seen import Memory
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.storage.keys import pointer_key, version_key
from ptpipeline.storage.signed import SignedStore
from tests.prompts.test_signature import OURS, trust

TASK = a_task()


class Registry:
    """A signed store with three versions, and a pointer to any of a chain of promotions."""

    def __init__(self, folder: Path) -> None:
        self.plain = FolderStore(folder)
        self.signer = SignedStore(self.plain, key=OURS)
        self.reader = SignedStore(self.plain, trust(OURS))
        self.rows: list[Promotion] = []
        for number in (1, 2, 3):
            digest = write_artifact(self.signer, an_artifact(TASK, number))
            name = VersionName(task=TASK.name, number=number, digest=digest)
            self.signer.create(version_key(TASK.name, number), name.model_dump_json().encode())
            self.rows.append(self.a_row(number, number, self.rows[-1] if self.rows else None))

    def a_row(self, seq: int, number: int, before: Promotion | None, alias: str = "production") -> Promotion:
        return Promotion(
            task=TASK.name,
            alias=alias,
            seq=seq,
            version=number,
            digest=an_artifact(TASK, number).digest,
            previous=before.version if before else None,
            actor="ada",
            reason="why",
            verdict=None,
            at="2026-01-01T00:00:00+00:00",
            chain=before.row_digest() if before else None,
        )

    def point(self, row: Promotion, signed: bool = True) -> bytes:
        store, key = self.signer if signed else self.plain, pointer_key(TASK.name, row.alias)
        body = Pointer(promotion=row, nonce=f"nonce-{row.seq:020}").model_dump_json().encode()
        if self.plain.exists(key):
            store.replace(key, body, self.plain.read(key).etag)
        else:
            store.create(key, body)
        return body


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "home")


def test_an_unsigned_pointer_is_refused(registry: Registry) -> None:
    registry.point(registry.rows[0], signed=False)
    assert resolve(registry.plain, TASK.name).number == 1
    with pytest.raises(ArtifactError, match=r"aliases/production.json: .* nobody signed it; .*: `ptp sign mood`"):
        resolve(registry.reader, TASK.name)


def test_a_rollback_of_the_pointer_is_refused(registry: Registry, memory: Memory) -> None:
    old = registry.point(registry.rows[0])
    registry.point(registry.rows[1])
    assert resolve(registry.reader, TASK.name, memory).number == 2
    key = pointer_key(TASK.name, "production")
    registry.plain.replace(key, old, registry.plain.read(key).etag)
    with pytest.raises(ArtifactError, match="shows promotion 1, and this reader has seen promotion 2; `ptp reconcile`"):
        resolve(registry.reader, TASK.name, memory)
    assert resolve(registry.reader, TASK.name).number == 1  # a reader without memory cannot know


def test_a_reader_is_told_to_accept_an_older_pointer(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[1])
    resolve(registry.reader, TASK.name, memory)
    registry.point(registry.rows[0])
    assert resolve(registry.reader, TASK.name, Memory(memory.folder.parent, allow_older=True)).number == 1
    assert resolve(registry.reader, TASK.name, memory).number == 1  # and remembers that


def test_a_pointer_that_stands_still_is_not_noticed(registry: Registry, memory: Memory) -> None:
    """TUF's freeze: no signature says that there is nothing newer, and so docs/signing.md says."""
    frozen = registry.point(registry.rows[0])
    resolve(registry.reader, TASK.name, memory)
    registry.point(registry.rows[1])
    key = pointer_key(TASK.name, "production")
    registry.plain.replace(key, frozen, registry.plain.read(key).etag)
    assert resolve(registry.reader, TASK.name, memory).number == 1


def test_the_pointer_of_another_alias_is_refused_in_its_place(registry: Registry) -> None:
    registry.point(registry.rows[0])
    body = registry.point(registry.a_row(1, 3, None, "canary"))
    key = pointer_key(TASK.name, "production")
    registry.plain.replace(key, body, registry.plain.read(key).etag)
    with pytest.raises(ArtifactError, match=r"aliases/production.json: .* nobody signed it"):
        resolve(registry.reader, TASK.name)


def test_another_promotion_of_the_same_number_is_refused(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[1])
    resolve(registry.reader, TASK.name, memory)
    registry.point(registry.a_row(2, 3, registry.rows[0]))
    with pytest.raises(ArtifactError, match="shows another promotion 2 than this reader has seen"):
        resolve(registry.reader, TASK.name, memory)


def test_the_next_promotion_has_to_follow_the_one_that_was_seen(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[1])
    resolve(registry.reader, TASK.name, memory)
    registry.point(registry.a_row(3, 3, registry.rows[0]))
    with pytest.raises(ArtifactError, match="shows promotion 3, which does not follow the promotion 2"):
        resolve(registry.reader, TASK.name, memory)
    registry.point(registry.rows[2])
    assert resolve(registry.reader, TASK.name, memory).number == 3


def test_a_reader_that_missed_promotions_takes_the_newest(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[0])
    resolve(registry.reader, TASK.name, memory)
    registry.point(registry.rows[2])
    assert resolve(registry.reader, TASK.name, memory).number == 3


def test_each_alias_and_store_is_remembered_by_itself(registry: Registry, memory: Memory, tmp_path: Path) -> None:
    registry.point(registry.rows[2])
    registry.point(registry.a_row(1, 1, None, "canary"))
    other = Registry(tmp_path / "other")
    other.point(other.rows[0])
    numbers = [
        resolve(store, reference, memory).number
        for store, reference in (
            (registry.reader, "mood@production"),
            (registry.reader, "mood@canary"),
            (other.reader, "mood"),
        )
    ]
    assert numbers == [3, 1, 1]


def test_a_store_without_trusted_keys_is_not_remembered(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[2])
    resolve(registry.plain, TASK.name, memory)
    assert not memory.folder.exists()


def test_what_was_seen_is_for_the_owner_alone(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[0])
    resolve(registry.reader, TASK.name, memory)
    assert stat.S_IMODE(memory.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in memory.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"seq": 1}'])
def test_a_damaged_memory_is_one_sentence(registry: Registry, memory: Memory, body: bytes) -> None:
    registry.point(registry.rows[0])
    resolve(registry.reader, TASK.name, memory)
    [path] = memory.folder.glob("*.json")
    path.write_bytes(body)
    with pytest.raises(SettingsError, match=rf"{path}: does not say .*; remove it, and the next read begins again$"):
        resolve(registry.reader, TASK.name, memory)


def test_a_reader_that_cannot_remember_says_so(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.point(registry.rows[0])
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert resolve(registry.reader, TASK.name, Memory(tmp_path / "file" / "home")).number == 1
    assert "an older pointer of mood@production would not be noticed" in caplog.text


def test_a_pointers_version_is_held_against_its_digest(registry: Registry) -> None:
    registry.point(registry.rows[0].model_copy(update={"version": 2}), signed=False)
    with pytest.raises(ArtifactError, match=r"calls prompt .* version 2, and prompts/mood/versions/2.json names"):
        resolve(registry.plain, TASK.name)


def test_a_pointer_serves_although_its_versions_name_was_lost(registry: Registry) -> None:
    registry.point(registry.rows[0])
    registry.plain.delete(version_key(TASK.name, 1))
    assert resolve(registry.reader, TASK.name).number == 1


def test_who_signs_and_trusts_no_key_remembers_nothing(registry: Registry, memory: Memory) -> None:
    registry.point(registry.rows[2])
    resolve(registry.signer, TASK.name, memory)
    assert not memory.folder.exists()


def test_a_pointer_that_another_reader_saw_replaced_is_read_again(registry: Registry, memory: Memory) -> None:
    late = [registry.point(registry.rows[0])]
    registry.point(registry.rows[1])
    resolve(registry.reader, TASK.name, memory)

    class Slow(FolderStore):
        """Its first answer about the pointer is the one of a moment ago."""

        def read(self, key: str) -> Stored:
            stored = super().read(key)
            return Stored(late.pop(), stored.etag) if late and "/aliases/" in key else stored

    assert resolve(SignedStore(Slow(registry.plain.root), trust(OURS)), TASK.name, memory).number == 2


def test_readers_that_see_a_promotion_at_once_remember_it_together(registry: Registry, memory: Memory) -> None:
    start = threading.Barrier(8)

    def check(_: int) -> None:
        start.wait()
        memory.check(registry.reader, registry.rows[0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(check, range(8))) == [None] * 8


def test_a_version_beside_it_is_held_against_its_digest_too(registry: Registry) -> None:
    beside = Beside(version=2, digest=registry.rows[2].digest, percent=10)
    registry.point(registry.rows[0].model_copy(update={"beside": beside}), signed=False)
    with pytest.raises(ArtifactError, match=r"calls prompt .* version 2, and prompts/mood/versions/2.json names"):
        resolve(registry.plain, TASK.name)
