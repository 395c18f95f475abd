"""Garbage collection: what goes and what stays."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from safetensors.numpy import save
from sqlalchemy import event, update

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, an_artifact, published
from ptpipeline.errors import ArtifactError, LeaseHeld, NotFound, PromotionRefused, SettingsError
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble, write_artifact
from ptpipeline.records.base import digest_of, now
from ptpipeline.records.prompts import Members
from ptpipeline.records.serving import Holding
from ptpipeline.records.versions import PromptVersion
from ptpipeline.serving.servers import read_server_reports, report_holdings
from ptpipeline.signing import SigningKey, compute_key_id
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import prompt_prefix
from ptpipeline.storage.signed import SignedStore, Trust
from ptpipeline.task.task import Task
from registry import failpoints
from registry.garbage.collect import collect
from registry.garbage.plan import Collected
from registry.garbage.roots import Retention, prompts_in_use
from registry.ledger import tables, tombstone
from registry.ledger.ledger import Ledger, Release
from registry.ledger.usage import prompt_uses
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.promotion import promote, promote_release, rollback
from registry.versions.publish import register, stage

ME = Cause("me", "because")
ANYWAY = Cause("me", "because", override=True)
TWO = Retention(candidates=2, grace=timedelta(0))


def shown(items: list[Collected]) -> set[tuple[str, int | None]]:
    return {(item.what, item.version) for item in items}


def version_of(registry: Registry, task: Task, seed: int) -> PromptVersion:
    return registry.ledger.version_of(task.name, an_artifact(task, seed).digest)


def is_whole(registry: Registry, task: Task, seed: int) -> bool:
    try:
        read_ensemble(registry.store, read_artifact(registry.store, task.name, an_artifact(task, seed).digest))
    except (NotFound, ArtifactError):
        return False
    return True


def left(store: ObjectStore, artifact: Artifact) -> list[str]:
    return list(store.keys(prompt_prefix(artifact.manifest.task, artifact.digest)))


def an_ensemble(task: Task, seeds: tuple[int, ...], parents: tuple[int, ...] = ()) -> tuple[Artifact, list[Artifact]]:
    members = [an_artifact(task, seed) for seed in seeds]
    combined = Members(digests=[member.digest for member in members], combine="average")
    tensors = save({})
    changed = {
        "method": "ensemble",
        "members": combined,
        "tensors": {},
        "tensor_sha256": hashlib.sha256(tensors).hexdigest(),
        "parents": [an_artifact(task, seed).digest for seed in parents],
        "training_key": digest_of(["ensemble", *seeds]),
    }
    return Artifact(members[0].manifest.model_copy(update=changed), tensors), members


def registered(registry: Registry, task: Task, artifact: Artifact) -> PromptVersion:
    tuned = a_request(task, 0).tuned.model_copy(
        update={"digest": artifact.digest, "training_key": artifact.manifest.training_key}
    )
    return register(registry, type(a_request(task, 0))(tuned))


def test_old_candidates_go_and_nothing_is_deleted_unasked(registry: Registry, task: Task) -> None:
    for seed in range(5):
        published(registry, task, seed)
    promote(registry, task, 2, ANYWAY)
    planned = collect(registry, TWO, task=task.name)
    assert shown(planned) == {("version", 1), ("version", 3)}
    assert all(is_whole(registry, task, seed) for seed in range(5))
    assert collect(registry, TWO, apply=True, task=task.name) == planned
    assert [seed for seed in range(5) if is_whole(registry, task, seed)] == [1, 3, 4]
    assert not left(registry.store, an_artifact(task, 0))
    assert sum(item.bytes for item in planned) > 2 * len(an_artifact(task, 0).tensors)
    assert [version.collected for version in reversed(registry.ledger.versions(task.name))] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert collect(registry, TWO, apply=True, task=task.name) == []


def test_everything_agrees_after_a_collection(registry: Registry, task: Task) -> None:
    for seed in range(4):
        published(registry, task, seed)
    promote(registry, task, 4, ME)
    collect(registry, TWO, apply=True, task=task.name)
    assert examine(registry, task.name) == []


def test_a_collected_version_that_is_published_again_has_all_its_verdicts(plain: Registry, task: Task) -> None:
    for seed in (1, 2, 3):
        published(plain, task, seed)
    assert shown(collect(plain, TWO, apply=True)) == {("version", 1)}
    head = promote(plain, task, 3, ME)
    published(plain, task, 1, head.digest)  # with a verdict over another champion than its first one
    assert len(plain.ledger.verdicts(task.name, an_artifact(task, 1).digest)) == 2
    assert examine(plain, task.name) == []


def test_a_young_candidate_stays(plain: Registry, task: Task) -> None:
    for seed in range(4):
        published(plain, task, seed)
    assert collect(plain, Retention(candidates=1), apply=True) == []


def test_history_of_any_alias_stays_and_can_be_gone_back_to(plain: Registry, task: Task) -> None:
    for seed in range(6):
        published(plain, task, seed)
    for version in (1, 2):
        promote(plain, task, version, ANYWAY)
    promote(plain, task, 3, ME, "canary")
    promote(plain, task, 4, ME, "canary")
    assert collect(plain, TWO, apply=True) == []
    assert (rollback(plain, task.name, ME).version, rollback(plain, task.name, ME, alias="canary").version) == (1, 3)


def test_what_a_release_names_stays(plain: Registry, task: Task) -> None:
    for seed in range(4):
        published(plain, task, seed)
    promote_release(
        plain,
        {task.name: task},
        Release(name="spring", actor="me", reason="why", versions={task.name: 1}, at=now()),
        ANYWAY,
    )
    assert shown(collect(plain, TWO, apply=True)) == {("version", 2)}


def test_what_a_server_reports_stays_until_it_reports_something_else(registry: Registry, task: Task) -> None:
    for seed in range(4):
        published(registry, task, seed)
    server = f"host-{task.name}"
    report_holdings(registry.store, server, [Holding(task.name, an_artifact(task, 0).digest)])
    assert shown(collect(registry, TWO, task=task.name)) == {("version", 2)}
    report_holdings(registry.store, server, [])
    assert shown(collect(registry, TWO, task=task.name)) == {("version", 1), ("version", 2)}
    assert [report.holds for report in read_server_reports(registry.store)] == [[]]


def test_an_unreadable_server_report_stops_everything(plain: Registry, task: Task) -> None:
    published(plain, task, 0)
    plain.store.create("servers/new.json", b'{"schema_version": 2}')
    with pytest.raises(ArtifactError, match="from a newer ptpipeline"):
        collect(plain, TWO)


def test_an_object_at_a_key_of_nobody_stops_nothing(plain: Registry, task: Task) -> None:
    for seed in range(3):
        published(plain, task, seed)
    for place in ("servers", f"signatures/prompts/{task.name}/{an_artifact(task, 1).digest}"):
        folder = Path(plain.store.url.removeprefix("file://"), place)
        folder.mkdir(parents=True)
        (folder / "new folder").write_bytes(b"")
    assert shown(collect(plain, TWO, apply=True)) == {("version", 1)}


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "é"])
def test_a_server_name_has_to_fit_a_key(plain: Registry, name: str) -> None:
    with pytest.raises(SettingsError, match="server name"):
        report_holdings(plain.store, name, [])


def test_what_todays_recipe_leads_to_stays_whatever_its_number(plain: Registry, task: Task) -> None:
    for seed in (0, 1, 2, 3, 0):  # the rows went back to what they were
        published(plain, task, seed)
    assert shown(collect(plain, TWO)) == {("version", 2)}


def test_a_pointer_that_is_no_ledger_row_keeps_what_it_names(plain: Registry, task: Task) -> None:
    for seed in range(4):
        published(plain, task, seed)
    other = Registry(Ledger(f"{plain.ledger.url}-other"), plain.store)
    promotion = promote(plain, task, 4, ME).model_copy(update={"version": 1, "digest": an_artifact(task, 0).digest})
    key = f"prompts/{task.name}/aliases/production.json"
    stored = plain.store.read(key)
    plain.store.replace(
        key, stored.body.replace(an_artifact(task, 3).digest.encode(), promotion.digest.encode()), stored.etag
    )
    assert shown(collect(plain, TWO)) == {("version", 2)}
    other.ledger.close()


def test_an_ensemble_keeps_its_members_and_parents(plain: Registry, task: Task) -> None:
    published(plain, task, 0)
    ensemble, members = an_ensemble(task, (10, 11), parents=(0,))
    stage(plain.ledger, plain.store, ensemble, members)
    number = registered(plain, task, ensemble).number
    assert plain.ledger.intents() == []
    for seed in (1, 2):
        published(plain, task, seed)
    promote(plain, task, number, ANYWAY)
    assert collect(plain, TWO, apply=True) == []


def test_members_go_with_the_ensemble_that_needs_them(plain: Registry, task: Task) -> None:
    ensemble, members = an_ensemble(task, (10, 11))
    stage(plain.ledger, plain.store, ensemble, members)
    registered(plain, task, ensemble)
    for seed in (1, 2):
        published(plain, task, seed)
    found = collect(plain, TWO, apply=True)
    assert [(item.what, item.version) for item in found] == [("version", 1), ("orphan", None), ("orphan", None)]
    assert not any(left(plain.store, part) for part in (ensemble, *members))


def test_a_member_that_another_ensemble_took_up_meanwhile_stays(plain: Registry, task: Task) -> None:
    first, members = an_ensemble(task, (10, 11))
    stage(plain.ledger, plain.store, first, members)
    registered(plain, task, first)
    for seed in (1, 2):
        published(plain, task, seed)
    second, shared = an_ensemble(task, (11, 12))

    def take_up(step: str) -> None:
        if step == "collect buried" and not left(plain.store, second):
            stage(plain.ledger, plain.store, second, shared)  # while the first one's turn is on
            registered(plain, task, second)

    with watching(take_up):
        collect(plain, TWO, apply=True)
    assert read_ensemble(plain.store, read_artifact(plain.store, task.name, second.digest))


def test_parents_stay_across_tasks(plain: Registry, task: Task) -> None:
    source = a_task("source")
    for seed in range(3):
        published(plain, source, seed)
    child = an_artifact(task, 9)
    child = child._replace(manifest=child.manifest.model_copy(update={"parents": [an_artifact(source, 0).digest]}))
    stage(plain.ledger, plain.store, child)
    registered(plain, task, child)
    assert collect(plain, TWO) == []


def test_orphans_and_halves_go_after_the_grace_period(plain: Registry, task: Task) -> None:
    write_artifact(plain.store, an_artifact(task, 0))
    half = an_artifact(task, 1)
    plain.store.create(f"{prompt_prefix(task.name, half.digest)}/prompt.safetensors", half.tensors)
    stage(plain.ledger, plain.store, an_artifact(task, 2))  # is being published
    day = Retention()
    assert collect(plain, day, apply=True) == []
    age(plain.store, 25 * 3600)
    assert {item.why for item in collect(plain, day, apply=True)} == {
        "no version, and part of none that is kept",
        "stored incompletely, and no publish of it is under way",
    }
    assert [seed for seed in range(3) if left(plain.store, an_artifact(task, seed))] == [2]


def test_an_older_copy_of_the_ledger_collects_nothing(plain: Registry, task: Task, tmp_path: Path) -> None:
    published(plain, task, 0)
    older = Registry(Ledger(f"sqlite:///{tmp_path}/older.db"), plain.store)
    with pytest.raises(SettingsError, match=r"knows version 1.*restored from an older backup"):
        collect(older, TWO, apply=True)
    published(older, task, 0)
    promote(plain, task, 1, ME)
    with pytest.raises(SettingsError, match="knows promotions of production"):
        collect(older, TWO, apply=True)
    older.ledger.close()


def test_an_older_copy_that_lost_another_task_collects_nothing_of_this_one(
    plain: Registry, task: Task, tmp_path: Path
) -> None:
    for seed in range(3):
        published(plain, task, seed)
    with sqlite3.connect(tmp_path / "ledger.db") as source, sqlite3.connect(tmp_path / "older.db") as copy:
        source.backup(copy)
    other, made = a_task(f"{task.name}-two"), an_artifact(a_task(f"{task.name}-two"))
    child = Artifact(made.manifest.model_copy(update={"parents": [an_artifact(task, 0).digest]}), made.tensors)
    stage(plain.ledger, plain.store, child)
    assert registered(plain, other, child).number == 1
    older = Registry(Ledger(f"sqlite:///{tmp_path}/older.db"), plain.store)
    with pytest.raises(SettingsError, match=f"{other.name}: .*`ptp doctor --rebuild-ledger`"):
        collect(older, TWO, apply=True, task=task.name)


def test_what_a_killed_collector_buried_and_others_keep_is_given_back(
    plain: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone, "SECONDS", 0.0)
    for seed in range(3):
        published(plain, task, seed)
    assert tombstone.Tombstone(plain.ledger.database, task.name, an_artifact(task, 0).digest).bury(
        lambda _: False
    )  # killed here
    assert plain.ledger.version(task.name, 1).collected
    assert collect(plain, Retention(candidates=3, grace=timedelta(0)), apply=True) == []
    assert not plain.ledger.version(task.name, 1).collected
    assert is_whole(plain, task, 0)
    assert promote(plain, task, 1, ME).version == 1


def test_an_altered_manifest_keeps_its_whole_task(
    plain: Registry, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(4):
        published(plain, task, seed)
    path = (
        Path(plain.store.url.removeprefix("file://"))
        / prompt_prefix(task.name, an_artifact(task, 3).digest)
        / "manifest.json"
    )
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    assert collect(plain, TWO, apply=True) == []
    assert "a manifest cannot be read" in caplog.text


def test_signatures_and_evaluation_rows_go_with_the_version(plain: Registry, task: Task) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    trust = Trust({compute_key_id(private.public_key()): private.public_key()}, Path("keys.pem"))
    signed = Registry(plain.ledger, SignedStore(plain.store, trust, SigningKey(private)))
    for seed in range(3):
        published(signed, task, seed)
        plain.store.create(a_request(task, seed).report.rows_key, b"rows")  # type: ignore[union-attr]
    assert any("signature" in key for key in left(plain.store, an_artifact(task, 0)))
    assert shown(collect(signed, TWO, apply=True)) == {("version", 1)}
    assert not left(plain.store, an_artifact(task, 0))
    assert len(list(plain.store.keys("reports"))) == 2


def test_a_collected_version_is_refused_and_comes_back_when_trained_again(registry: Registry, task: Task) -> None:
    for seed in range(3):
        published(registry, task, seed)
    collect(registry, TWO, apply=True, task=task.name)
    with pytest.raises(PromotionRefused, match="the garbage collection deleted"):
        promote(registry, task, 1, ANYWAY)
    assert published(registry, task, 0) == 1
    assert not version_of(registry, task, 0).collected
    assert promote(registry, task, 1, ANYWAY).version == 1
    assert is_whole(registry, task, 0)


# ---------------------------------------------------------------- snapshots and checkpoints


def store_snapshot(registry: Registry, task: Task, key: str) -> str:
    digest = digest_of([task.name, key])
    for name in ("train.parquet", "manifest.json"):
        registry.store.create(f"snapshots/{task.name}/{digest}/{name}", f"{key} {name}".encode())
    registry.ledger.save_snapshot(a_snapshot(task).model_copy(update={"digest": digest, "source_key": key}))
    return digest


def test_snapshots_go_with_the_last_version_that_needs_them(plain: Registry, task: Task) -> None:
    old, used, newest = (store_snapshot(plain, task, key) for key in ("old", "used", "newest"))
    trained = an_artifact(task, 1)
    stage(plain.ledger, plain.store, trained._replace(manifest=trained.manifest.model_copy(update={"snapshot": used})))
    assert {item.digest for item in collect(plain, TWO, apply=True)} == {old}
    assert {key.split("/")[2] for key in plain.store.keys("snapshots")} == {used, newest}
    assert plain.ledger.snapshot(task.name, old) is not None


def test_a_snapshot_that_a_run_uses_again_stays(plain: Registry, task: Task) -> None:
    store_snapshot(plain, task, "again")
    store_snapshot(plain, task, "newest")
    planned = collect(plain, TWO)
    used = plain.ledger.snapshot_for(task.name, "again")
    assert used is not None
    with watching(lambda step: plain.ledger.save_snapshot(used)), pytest.raises(LeaseHeld, match="being deleted"):
        collect(plain, TWO, apply=True)
    assert [item.digest for item in planned] == [used.digest]


def test_snapshots_of_collected_versions_go(plain: Registry, task: Task) -> None:
    snapshot = a_snapshot(task)
    plain.store.create(f"snapshots/{task.name}/{snapshot.digest}/manifest.json", b"{}")
    ensemble = an_artifact(task, 0)
    published(plain, task, 0)
    store_snapshot(plain, task, "newest")
    for seed in (1, 2):
        made = an_artifact(task, seed)
        made = made._replace(manifest=made.manifest.model_copy(update={"snapshot": "0" * 64}))
        stage(plain.ledger, plain.store, made)
        tuned = a_request(task, seed).tuned.model_copy(update={"digest": made.digest, "snapshot": "0" * 64})
        register(plain, type(a_request(task, 0))(tuned))
    assert {item.digest for item in collect(plain, TWO, apply=True)} == {ensemble.digest, snapshot.digest}


def test_checkpoints_that_nobody_goes_on_with_go(plain: Registry) -> None:
    plain.store.create(f"checkpoints/{'a' * 64}.safetensors", b"old")
    age(plain.store, 25 * 3600)
    plain.store.create(f"checkpoints/{'b' * 64}.safetensors", b"new")
    assert [(item.what, item.digest[0]) for item in collect(plain, Retention(), apply=True)] == [("checkpoint", "a")]
    assert list(plain.store.keys("checkpoints")) == [f"checkpoints/{'b' * 64}.safetensors"]


def test_quarantined_pointers_stay(plain: Registry, task: Task) -> None:
    published(plain, task, 0)
    plain.store.create(f"prompts/{task.name}/quarantine/production-x.json", b"{}")
    age(plain.store, 10**7)
    assert collect(plain, TWO, apply=True) == []


def age(store: ObjectStore, seconds: float) -> None:
    """As if every object had been written so long ago."""
    for path in Path(store.url.removeprefix("file://")).rglob("*.*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


class watching:  # noqa: N801
    """The steps that this process reaches, for the block."""

    def __init__(self, watcher: Callable[[str], None]) -> None:
        self.watcher = watcher
        self.on = True

    def __enter__(self) -> None:
        failpoints.watch(lambda step: self.watcher(step) if self.on else None)

    def __exit__(self, *_: object) -> None:
        self.on = False


@pytest.mark.servers
def test_a_publish_that_ends_while_the_ledger_is_asked_is_in_use(
    postgres: Postgres, plain: Registry, task: Task
) -> None:
    """Each statement sees what was committed before it: the intent may be gone by the second, the version missing in
    the first.
    """
    mine, other = (Ledger(url) for url in [postgres.create_database(f"roots-{task.name}")] * 2)
    elsewhere, ended = Registry(other, plain.store), []
    stage(other, plain.store, an_artifact(task, 1))

    def publish(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM version" in statement and not ended:
            ended.append(register(elsewhere, a_request(task, 1)))
            published(elsewhere, task, 2)  # the newest candidate, and the last that was published

    with mine.database.writing() as connection:
        event.listen(connection, "after_cursor_execute", publish)
        used = prompts_in_use(prompt_uses(connection, task.name), Retention(candidates=1, grace=timedelta(0)))
    assert (task.name, ended[0].digest) in used
    mine.close()
    other.close()


def test_an_abandoned_publish_is_given_up_after_a_day(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    digest = stage(plain.ledger, plain.store, an_artifact(task, 2))
    nothing_kept = Retention(candidates=1, grace=timedelta(0))
    assert collect(plain, nothing_kept, apply=True) == []
    with plain.ledger.database.writing() as connection:
        connection.execute(update(tables.intent).values(at=(datetime.now(UTC) - timedelta(days=2)).isoformat()))
    assert [item.digest for item in collect(plain, nothing_kept)] == [digest]
    collect(plain, nothing_kept, apply=True)
    assert plain.ledger.intents() == []
    assert examine(plain) == []


def test_a_publish_that_was_begun_again_is_not_abandoned(plain: Registry, task: Task) -> None:
    digest = stage(plain.ledger, plain.store, an_artifact(task, 2))
    with plain.ledger.database.writing() as connection:
        connection.execute(update(tables.intent).values(at=(datetime.now(UTC) - timedelta(days=2)).isoformat()))
    plain.ledger.intend(task.name, digest)
    assert collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True) == []
