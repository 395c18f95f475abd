"""Doctor: what it finds, and that the command which it names really mends it."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from ptpipeline.data.snapshot import encode_manifest, take_snapshot
from ptpipeline.errors import NotFound
from ptpipeline.records.base import now
from ptpipeline.records.versions import Pointer, VersionName
from ptpipeline.storage import FolderStore, Listed, ObjectStore, Stored
from ptpipeline.storage.keys import (
    history_key,
    pointer_key,
    prompt_prefix,
    release_key,
    snapshot_manifest_key,
    version_key,
)
from ptpipeline.task.task import Task
from registry.ledger import tables
from registry.ledger.database import put
from registry.ledger.lease import Lease
from registry.ledger.ledger import Release
from registry.mlflow.client import connect
from registry.registry import Registry
from registry.repair.difference import Difference
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause
from registry.versions.promotion import promote, promote_release
from registry.versions.publish import stage
from tests.data.declared import declared
from tests.tiny import sentences, write_csv

ME = Cause("me", "because")
OPINIONS = {"negative": "bad", "positive": "good"}


def two_versions(registry: Registry, task: Task) -> None:
    """Version 1, then version 2 promoted to production, version 1 named canary."""
    first = promote(registry, task, published(registry, task, 1), ME)
    promote(registry, task, published(registry, task, 2, first.digest), ME)
    promote(registry, task, 1, ME, "canary")


def digest_of_seed(task: Task, seed: int) -> str:
    return an_artifact(task, seed).digest


def overwrite(store: ObjectStore, key: str, body: bytes) -> None:
    store.replace(key, body, store.read(key).etag)


def kinds(found: list[Difference]) -> list[str]:
    return [difference.kind for difference in found]


def mended(registry: Registry, task: Task) -> list[Difference]:
    """What is left after `ptp doctor --fix`."""
    fix(registry, {task.name: task}, examine(registry, task.name))
    return examine(registry, task.name)


DAMAGE: dict[str, tuple[str, Callable[[Registry, str], None]]] = {
    "a pointer deleted": ("pointer", lambda r, t: r.store.delete(pointer_key(t, "production"))),
    "a pointer overwritten": ("pointer", lambda r, t: overwrite(r.store, pointer_key(t, "production"), b"garbage")),
    "a pointer of nobody's": ("pointer", lambda r, t: r.store.create(pointer_key(t, "stray"), b"{}")),
    "a name deleted": ("name", lambda r, t: r.store.delete(version_key(t, 1))),
    "a name overwritten": ("name", lambda r, t: overwrite(r.store, version_key(t, 1), b"garbage")),
    "a name of another prompt": (
        "name",
        lambda r, t: overwrite(
            r.store, version_key(t, 1), VersionName(task=t, number=1, digest="c" * 64).model_dump_json().encode()
        ),
    ),
    "a history row deleted": ("history", lambda r, t: r.store.delete(history_key(t, "production", 1))),
    "the newest history row deleted": ("history", lambda r, t: r.store.delete(history_key(t, "production", 2))),
    "a history row overwritten": (
        "history",
        lambda r, t: overwrite(r.store, history_key(t, "production", 1), b"garbage"),
    ),
    "a dossier deleted": ("dossier", lambda r, t: r.store.delete(dossier_of(r, t))),
    "a dossier overwritten": ("dossier", lambda r, t: overwrite(r.store, dossier_of(r, t), b"garbage")),
}


def dossier_of(registry: Registry, task: str) -> str:
    digest = registry.ledger.version(task, 1).digest
    return next(iter(registry.store.keys(f"{prompt_prefix(task, digest)}/records")))


@pytest.mark.parametrize("damage", DAMAGE)
def test_fix_mends_what_the_ledger_knows(plain: Registry, task: Task, damage: str) -> None:
    two_versions(plain, task)
    assert examine(plain) == []
    kind, do = DAMAGE[damage]
    do(plain, task.name)
    found = examine(plain)
    assert {kind} == set(kinds(found))
    assert all(difference.safe for difference in found)
    assert mended(plain, task) == []
    assert all(action.done for action in fix(plain, {task.name: task}, found))


@pytest.mark.parametrize(
    "damage", [name for name, (kind, _) in DAMAGE.items() if kind in ("name", "pointer") and "nobody" not in name]
)
def test_reconcile_mends_what_names_it(plain: Registry, task: Task, damage: str) -> None:
    two_versions(plain, task)
    DAMAGE[damage][1](plain, task.name)
    mends = {difference.mend for difference in examine(plain)}
    assert mends <= {"ptp reconcile", f"ptp reconcile {task.name}"}
    reconcile(plain, {task.name: task}, task.name if f"ptp reconcile {task.name}" in mends else None)
    assert examine(plain) == []


def test_nothing_that_is_replaced_is_lost(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    for number, key in enumerate(
        [
            pointer_key(task.name, "production"),
            version_key(task.name, 1),
            history_key(task.name, "production", 1),
            dossier_of(plain, task.name),
        ]
    ):
        overwrite(plain.store, key, b"garbage %d" % number)
    assert mended(plain, task) == []
    assert {plain.store.read(key).body for key in plain.store.keys(f"prompts/{task.name}/quarantine")} == {
        b"garbage %d" % number for number in range(4)
    }


def test_altered_bytes_need_a_person(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    key = f"{prompt_prefix(task.name, digest_of_seed(task, 1))}/prompt.safetensors"
    body = plain.store.read(key).body
    overwrite(plain.store, key, body[:-1] + bytes([body[-1] ^ 1]))
    (found,) = examine(plain)
    assert (found.kind, found.what, found.safe) == ("bytes", "bytes of version 1", False)
    assert mended(plain, task) == [found]
    overwrite(plain.store, key, body)
    assert examine(plain) == []


def test_another_row_than_the_ledgers_needs_a_person(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    key, row = history_key(task.name, "production", 2), plain.ledger.history(task.name, "production")[1]
    overwrite(plain.store, key, row.model_copy(update={"actor": "mallory"}).model_dump_json().encode())
    (found,) = examine(plain)
    assert (found.kind, found.safe) == ("foreign", False)
    assert found.mend.endswith(f"delete the object {key}")
    plain.store.delete(key)
    assert mended(plain, task) == []


def test_an_interrupted_publish_is_finished(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    published(plain, task, 3)
    plain.ledger.intend(task.name, digest_of_seed(task, 3))  # as if killed just before it was fulfilled
    plain.store.delete(version_key(task.name, 3))
    assert kinds(examine(plain)) == ["name", "publish"]
    assert mended(plain, task) == []


def test_a_staged_prompt_waits_for_its_run(plain: Registry, task: Task) -> None:
    digest = stage(plain.ledger, plain.store, an_artifact(task))
    (found,) = examine(plain)
    assert (found.kind, found.what, found.safe) == ("publish", f"publish of {digest[:12]}", False)
    assert found.mend.startswith(f"`ptp run {task.name}`")
    published(plain, task, 0)
    assert examine(plain) == []


def test_orphans_are_reported_and_left(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    plain.store.create(f"{prompt_prefix(task.name, 'c' * 64)}/prompt.safetensors", b"left behind")
    (found,) = examine(plain)
    assert (found.kind, found.what, found.safe) == ("orphan", f"stored prompt {'c' * 12}", False)
    assert mended(plain, task) == [found]


def test_missing_bytes_of_what_was_collected_are_none(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    published(plain, task, 3)
    digest = digest_of_seed(task, 3)
    with plain.ledger.database.writing() as connection:
        put(
            connection,
            tables.tombstone,
            {"task": task.name, "digest": digest},
            owner="collector",
            expires_at=0.0,
            at=now(),
        )
    for key in list(plain.store.keys(prompt_prefix(task.name, digest))):
        plain.store.delete(key)
    assert examine(plain) == []


def test_a_lease_left_behind_is_given_back(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    for alias, seconds in (("production", 0.0), ("canary", 60.0)):
        Lease(plain.ledger.database, f"project {task.name}@{alias}", seconds).renew()  # and its holder is killed
    (found,) = examine(plain, task.name)
    assert (found.kind, found.task, found.safe) == ("lease", task.name, True)
    assert mended(plain, task) == []


def test_a_release_is_in_the_store(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    promote_release(
        plain,
        {task.name: task},
        Release(name="spring", actor="me", reason="why", versions={task.name: 1}, at=now()),
        ME,
    )
    assert examine(plain) == []
    plain.store.delete(release_key("spring"))
    found = examine(plain)
    assert kinds(found) == ["release"]
    fix(plain, {}, found)
    assert examine(plain) == []


def test_a_snapshot_to_which_two_sources_led_is_as_one_of_them_wrote_it(plain: Registry, tmp_path: Path) -> None:
    task = declared(write_csv(tmp_path / "rows.csv", [(text, OPINIONS[label]) for text, label in sentences(80)]))
    first = take_snapshot(task, plain.store, tmp_path)
    for snapshot in (first, first.model_copy(update={"source": "copy.csv", "source_key": "another"})):
        plain.ledger.save_snapshot(snapshot)
    assert examine(plain) == []
    other = first.model_copy(update={"source": "nobody's.csv"})
    overwrite(plain.store, snapshot_manifest_key(task.name, first.digest), encode_manifest(other))
    assert kinds(examine(plain)) == ["snapshot"]


def test_a_ledger_behind_the_store_needs_its_rebuild(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    row = plain.ledger.history(task.name, "production")[-1]
    ahead = row.model_copy(
        update={
            "seq": 3,
            "version": 1,
            "previous": 2,
            "chain": row.row_digest(),
            "digest": digest_of_seed(task, 1),
            "verdict": plain.ledger.history(task.name, "production")[0].verdict,
        }
    )
    plain.store.create(history_key(task.name, "production", 3), ahead.model_dump_json().encode())
    overwrite(
        plain.store,
        pointer_key(task.name, "production"),
        Pointer(promotion=ahead, nonce="n" * 16).model_dump_json().encode(),
    )
    (found,) = examine(plain)
    assert (found.kind, found.mend, found.safe) == ("ledger", "ptp doctor --rebuild-ledger", False)
    assert mended(plain, task) == [found]
    rebuild(plain)
    assert examine(plain) == []


def test_a_task_that_nobody_knows_is_refused(plain: Registry) -> None:
    with pytest.raises(NotFound, match="knows a task 'moood'"):
        examine(plain, "moood")


def test_one_task_is_examined_alone(plain: Registry, task: Task) -> None:
    two_versions(plain, task)
    other = a_task(f"{task.name}-two")
    two_versions(plain, other)
    plain.store.delete(pointer_key(other.name, "production"))
    assert examine(plain, task.name) == []
    assert [difference.task for difference in examine(plain)] == [other.name]


class CountingStore(FolderStore):
    """A folder that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.listings: list[str] = []

    def read(self, key: str) -> Stored:
        self.reads[key] += 1
        return super().read(key)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        self.listings.append(prefix)
        return super().list_objects(prefix)


def test_each_object_is_read_once_and_listed_once(plain: Registry, task: Task, tmp_path: Path) -> None:
    for name in (task.name, f"{task.name}-two", f"{task.name}-three"):
        two_versions(plain, a_task(name))
    counting = CountingStore(tmp_path / "store")
    assert examine(Registry(plain.ledger, counting)) == []
    assert set(counting.reads.values()) == {1}
    assert counting.listings == ["prompts", "snapshots", "releases", "checkpoints", "servers"]


# ---------------------------------------------------------------- MLflow


@pytest.mark.servers
def test_altered_bytes_come_back_from_mlflow(shown: Registry, task: Task) -> None:
    two_versions(shown, task)
    folder = prompt_prefix(task.name, digest_of_seed(task, 1))
    before = {key: shown.store.read(key).body for key in shown.store.keys(folder)}
    overwrite(shown.store, f"{folder}/prompt.safetensors", b"altered")
    shown.store.delete(f"{folder}/manifest.json")
    (found,) = examine(shown, task.name)
    assert (found.kind, found.mend, found.safe) == ("bytes", "ptp doctor --fix", True)
    assert mended(shown, task) == []
    assert {key: shown.store.read(key).body for key in shown.store.keys(folder)} == before
    assert shown.ledger.intents() == []


@pytest.mark.servers
def test_what_mlflow_lost_is_safe_and_an_edit_is_not(shown: Registry, task: Task, mlflow_url: str) -> None:
    two_versions(shown, task)
    client = connect(mlflow_url)
    client.delete_registered_model_alias(task.name, "canary")
    client.set_registered_model_alias(task.name, "production", "1")
    client.set_registered_model_alias(task.name, "mine", "2")
    assert [(d.kind, d.what, d.mend, d.safe) for d in examine(shown, task.name)] == [
        ("alias", "MLflow alias canary", "ptp reconcile", True),
        ("alias", "MLflow alias mine", f"ptp promote {task.name}@2 --alias mine --reason ...", False),
        ("edit", "MLflow alias production", "ptp reconcile", False),
    ]
    promote(shown, task, 2, ME, "mine")
    client.set_registered_model_alias(task.name, "production", "2")
    assert mended(shown, task) == []
