"""A lost ledger and an older copy of it: what the store holds brings back everything that was acknowledged, and nothing
else.
"""

import os
import signal
import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact, published
from ptpipeline.errors import PromotionRefused, Terminal
from ptpipeline.records.versions import Pointer
from ptpipeline.storage import FolderStore
from ptpipeline.storage.keys import dossiers_prefix, pointer_key
from ptpipeline.task.task import Task
from registry.card.card import Provenance
from registry.failpoints import watch
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger import tables
from registry.ledger.ledger import Ledger, Release
from registry.lineage.trace import trace_row
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause
from registry.versions.dossier import read_dossier
from registry.versions.promotion import promote, promote_release, rollback, rollback_release
from registry.versions.publish import register, remember, stage
from tests import processes
from tests.registry.garbage.test_interleaving import OtherClock

ME = Cause("me", "because")
KEPT = (
    tables.promotion,
    tables.release,
    tables.training,
    tables.publication,
    tables.evaluation,
    tables.verdict,
    tables.snapshot,
)


def history(registry: Registry, *tasks: Task) -> None:
    """Versions, promotions of two aliases, an override, a rollback and a release, of each task."""
    for task in tasks:
        first = promote(registry, task, published(registry, task, 1), ME)
        second = promote(registry, task, published(registry, task, 2, first.digest), ME)
        promote(registry, task, 1, ME, "canary")
        promote(
            registry,
            task,
            published(registry, task, 3, second.digest, "failed"),
            Cause("boss", "on my head", override=True),
        )
        rollback(registry, task.name, Cause("night watch", "complaints"))
        published(registry, task, 4, second.digest)
    release = Release(
        name="spring",
        actor="me",
        reason="why",
        versions={task.name: 4 for task in tasks},
        at="2026-01-01T00:00:00+00:00",
    )
    promote_release(registry, {task.name: task for task in tasks}, release, ME)
    rollback_release(registry, "spring", Cause("night watch", "worse"))


def rows(ledger: Ledger) -> dict[str, list[Any]]:
    """What the ledger holds, without the times of what is only remembered, and of versions."""
    found: dict[str, list[Any]] = {}
    for table in KEPT:
        columns = [column for column in table.c if column.name != "at" or table in (tables.promotion, tables.release)]
        with ledger.database.reading() as connection:
            found[table.name] = sorted((tuple(row) for row in connection.execute(select(*columns))), key=repr)
    found["version"] = [
        (version.task, version.number, version.digest, version.verdict, version.passed)
        for version in ledger.versions(limit=None)
    ]
    return found


def emptied(registry: Registry, tmp_path: Path, name: str = "after") -> Registry:
    """The registry after its ledger was lost."""
    return Registry(Ledger(f"sqlite:///{tmp_path}/{name}.db"), registry.store, registry.mlflow)


@pytest.fixture
def pair(task: Task) -> tuple[Task, Task]:
    return task, a_task(f"{task.name}-two")


def test_a_lost_ledger_comes_back_whole(registry: Registry, pair: tuple[Task, Task], tmp_path: Path) -> None:
    history(registry, *pair)
    before, tasks = rows(registry.ledger), {task.name: task for task in pair}
    after = emptied(registry, tmp_path)
    actions = rebuild(after)
    assert [action.what for action in actions if not action.done] == []
    found = rows(after.ledger)
    before.pop("snapshot"), found.pop("snapshot")  # these tests store none
    assert found == before
    assert rebuild(after) == []
    reconcile(after, tasks)
    assert [difference for name in tasks for difference in examine(after, name)] == []
    fifth = published(after, pair[0], 5, after.ledger.head(pair[0].name, "production").digest)  # type: ignore[union-attr]
    assert (fifth, promote(after, pair[0], fifth, ME).seq) == (5, 7)


def test_what_the_ledger_learnt_later_stays(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    digest = an_artifact(task, 1).digest
    stored = plain.ledger.report_of(task.name, digest)
    assert stored is not None
    probed = stored.model_copy(update={"measures": {"robustness.case": 0.5}, "probed": "by today's settings"})
    plain.ledger.save_report(probed)
    rebuild(plain)
    assert plain.ledger.report_of(task.name, digest) == probed


def test_an_older_copy_catches_up(plain: Registry, pair: tuple[Task, Task], tmp_path: Path) -> None:
    task = pair[0]
    first = promote(plain, task, published(plain, task, 1), ME)
    copy_database(tmp_path / "ledger.db", tmp_path / "backup.db")
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    promote(plain, task, 1, ME, "canary")
    whole = rows(plain.ledger)
    older = emptied(plain, tmp_path, "backup")
    assert [action.done for action in reconcile(older, {task.name: task})] == [False]
    assert served(plain, task) == 2
    assert {difference.kind for difference in examine(older)} == {"ledger"}
    with pytest.raises(PromotionRefused, match="`ptp doctor --rebuild-ledger`"):
        promote(older, task, 1, ME, "canary")
    with pytest.raises(Terminal, match="`ptp doctor --rebuild-ledger`"):
        published(older, task, 7)
    assert all(action.done for action in rebuild(older))
    assert rows(older.ledger) == whole
    reconcile(older, {task.name: task})
    assert [d for d in examine(older) if d.kind != "publish"] == []
    fix(older, {task.name: task}, examine(older))
    assert published(older, task, 7, older.ledger.head(task.name, "production").digest) == 3  # type: ignore[union-attr]
    assert promote(older, task, 3, ME).seq == 3
    assert examine(older) == []


@pytest.mark.parametrize("damage", ["a pointer of nobody's", "a pointer that is missing"])
def test_fix_leaves_the_pointer_of_what_an_older_copy_lost(
    plain: Registry, task: Task, tmp_path: Path, damage: str
) -> None:
    published(plain, task, 1)
    promote(plain, task, 1, ME, "canary")
    copy_database(tmp_path / "ledger.db", tmp_path / "backup.db")
    promote(plain, task, 1, ME)
    older = emptied(plain, tmp_path, "backup")
    if damage == "a pointer of nobody's":
        plain.store.create(pointer_key(task.name, "stray"), b"{}")
    else:
        plain.store.delete(pointer_key(task.name, "canary"))
    fix(older, {task.name: task}, examine(older))
    assert served(plain, task) == 1
    assert {difference.mend for difference in examine(older)} == {"ptp doctor --rebuild-ledger"}


def judged_worse(task: Task, seed: int) -> Provenance:
    """The prompt with that seed, judged again on another commit: it fails now."""
    request = a_request(task, seed)
    assert request.verdict
    failed = request.verdict.model_copy(
        update={
            "gate_key": "b" * 64,
            "passed": False,
            "checks": [check.model_copy(update={"passed": False}) for check in request.verdict.checks],
        }
    )
    return replace(request, verdict=failed, commit="another")


def test_the_newest_verdict_comes_back_as_the_newest(plain: Registry, task: Task, tmp_path: Path) -> None:
    published(plain, task, 1)
    register(plain, judged_worse(task, 1))
    after = emptied(plain, tmp_path)
    rebuild(after)
    assert after.ledger.latest_verdict(task.name, an_artifact(task, 1).digest) == judged_worse(task, 1).verdict


def dossiers_of(registry: Registry, task: Task) -> dict[bool, str]:
    """Keys of the dossiers of the first prompt: whether its verdict passed -> key."""
    keys = list(registry.store.keys(dossiers_prefix(task.name, an_artifact(task, 1).digest)))
    verdicts = {key: read_dossier(registry.store, key).verdict for key in keys}
    return {verdict.passed: key for key, verdict in verdicts.items() if verdict}


def test_an_older_verdict_that_is_written_again_does_not_become_the_newest(
    plain: Registry, task: Task, tmp_path: Path
) -> None:
    """Its dossier was lost, and is written behind the one of the newest: the order is not that of writing."""
    published(plain, task, 1)
    register(plain, judged_worse(task, 1))
    plain.store.delete(dossiers_of(plain, task)[True])
    fix(plain, {task.name: task}, examine(plain))
    after = emptied(plain, tmp_path)
    rebuild(after)
    assert after.ledger.latest_verdict(task.name, an_artifact(task, 1).digest) == judged_worse(task, 1).verdict


def test_a_verdict_that_is_given_again_comes_back_as_the_newest(plain: Registry, task: Task, tmp_path: Path) -> None:
    published(plain, task, 1)
    register(plain, judged_worse(task, 1))
    register(plain, a_request(task, 1))
    assert examine(plain) == []
    after = emptied(plain, tmp_path)
    rebuild(after)
    assert after.ledger.latest_verdict(task.name, an_artifact(task, 1).digest) == a_request(task, 1).verdict


def test_a_verdict_whose_run_was_interrupted_before_the_ledger_is_told_and_given_again(
    plain: Registry, task: Task
) -> None:
    published(plain, task, 1)
    remember(plain, judged_worse(task, 1))
    [difference] = examine(plain)
    assert "the run that gave it was interrupted, and may be repeated" in difference.found
    register(plain, judged_worse(task, 1))
    assert examine(plain) == []


@pytest.mark.parametrize("again", [False, True])
def test_what_an_interrupted_run_left_as_the_newest_verdict_is_mended(
    plain: Registry, task: Task, tmp_path: Path, again: bool
) -> None:
    """A new verdict, or an earlier one that would have been the newest again."""
    published(plain, task, 1)
    register(plain, judged_worse(task, 1))
    given = a_request(task, 1)
    assert given.verdict
    other = given.verdict.model_copy(update={"gate_key": "d" * 64})
    remember(plain, given if again else replace(given, verdict=other))
    differences = examine(plain)
    assert [one.kind for one in differences] == ["dossier"]
    fix(plain, {task.name: task}, differences)
    assert examine(plain) == []
    after = emptied(plain, tmp_path)
    rebuild(after)
    assert after.ledger.latest_verdict(task.name, given.tuned.digest) == judged_worse(task, 1).verdict


def test_a_verdict_that_follows_such_a_mend_is_the_newest_in_a_store_that_is_ahead(
    plain: Registry, task: Task, tmp_path: Path
) -> None:
    """The ledger dates by its own clock, so it has to know which time was written into the store."""
    store = OtherClock(tmp_path / "store")
    store.ahead = timedelta(hours=1)
    ahead, given = Registry(plain.ledger, store), a_request(task, 1)
    assert given.verdict
    published(ahead, task, 1)
    register(ahead, judged_worse(task, 1))
    remember(ahead, replace(given, verdict=given.verdict.model_copy(update={"gate_key": "d" * 64})))
    fix(ahead, {task.name: task}, examine(ahead))
    register(ahead, replace(given, verdict=given.verdict.model_copy(update={"gate_key": "e" * 64})))
    assert examine(ahead) == []


def test_the_order_of_verdicts_survives_a_store_that_was_copied(plain: Registry, task: Task, tmp_path: Path) -> None:
    """A copy dates all objects anew, here the newest dossier as the oldest."""
    published(plain, task, 1)
    register(plain, judged_worse(task, 1))
    os.utime(tmp_path / "store" / dossiers_of(plain, task)[False], (1e9, 1e9))
    [difference] = examine(plain)
    assert (difference.kind, difference.found) == ("dossier", "another verdict as the newest")
    fix(plain, {task.name: task}, [difference])
    assert examine(plain) == []
    after = emptied(plain, tmp_path)
    rebuild(after)
    assert after.ledger.latest_verdict(task.name, an_artifact(task, 1).digest) == judged_worse(task, 1).verdict


def test_the_order_of_verdicts_survives_a_store_that_dates_by_the_second(
    plain: Registry, task: Task, tmp_path: Path
) -> None:
    for seed in range(8):
        published(plain, task, seed)
        register(plain, judged_worse(task, seed))
    for path in (tmp_path / "store").rglob("*"):
        os.utime(path, (int(path.stat().st_mtime), int(path.stat().st_mtime)))
    assert examine(plain) == []


def test_an_interrupted_publish_is_finished_with_its_own_verdict(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    plain.ledger.intend(task.name, an_artifact(task, 1).digest)
    from registry.versions.publish import remember

    remember(plain, judged_worse(task, 1))  # killed before the verdict was the ledger's
    fix(plain, {task.name: task}, examine(plain))
    assert plain.ledger.latest_verdict(task.name, an_artifact(task, 1).digest) == judged_worse(task, 1).verdict


@pytest.mark.parametrize(
    "key",
    [
        "prompts/mood/" + "a" * 64,
        "prompts/mood/readme/manifest.json",
        "prompts/notes/readme/manifest.json",
        "prompts/mood/aliases/my file.json",
        "prompts/mood/history/7.json",
        "prompts/mood/history/my alias/000001.json",
        "snapshots/notes/readme/manifest.json",
        "snapshots/mood/my own/manifest.json",
        "releases/my file.json",
        "releases/mine/1.json",
    ],
)
def test_what_somebody_else_stored_stops_nothing(plain: Registry, tmp_path: Path, key: str) -> None:
    task = a_task("mood")
    promote(plain, task, published(plain, task, 1), ME)
    path = tmp_path / "store" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"hello")
    examine(plain)
    rebuild(plain)
    assert all(action.done for action in reconcile(plain, {"mood": task}))
    assert collect(plain, Retention(grace=timedelta(0)), apply=True) == []
    assert [found.version for found in trace_row(plain, "0" * 16)] == [1]
    assert path.read_bytes() == b"hello"


def test_a_history_written_without_its_pointer_is_known(plain: Registry, task: Task, tmp_path: Path) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    pointer = plain.store.read(pointer_key(task.name, "production"))
    copy_database(tmp_path / "ledger.db", tmp_path / "backup.db")
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    key = pointer_key(task.name, "production")
    plain.store.replace(key, pointer.body, plain.store.read(key).etag)  # as if killed between history and pointer
    older = emptied(plain, tmp_path, "backup")
    with pytest.raises(PromotionRefused, match="the store knows promotion 2"):
        promote(older, task, published_again(older, task), ME)
    rebuild(older)
    reconcile(older, {task.name: task})
    assert (served(older, task), examine(older)) == (2, [])


def published_again(registry: Registry, task: Task) -> int:
    """A version that the older ledger gets to know by publishing its very bytes again: the same number."""
    return published(registry, task, 2, registry.ledger.version(task.name, 1).digest)


def test_an_interrupted_publish_stays_one(plain: Registry, task: Task, tmp_path: Path) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    stage(plain.ledger, plain.store, an_artifact(task, 2))
    from registry.versions.publish import remember

    remember(plain, a_request(task, 2))  # killed before it was numbered
    after = emptied(plain, tmp_path)
    rebuild(after)
    assert [intent.digest for intent in after.ledger.intents()] == [an_artifact(task, 2).digest]
    assert after.ledger.tuned(task.name, a_request(task, 2).tuned.training_key) is not None
    assert [difference.kind for difference in examine(after)] == ["publish"]
    fix(after, {task.name: task}, examine(after))
    assert (examine(after), len(after.ledger.versions(task.name))) == ([], 2)


def served(registry: Registry, task: Task) -> int:
    return Pointer.model_validate_json(registry.store.read(pointer_key(task.name, "production")).body).promotion.version


def copy_database(source: Path, target: Path) -> None:
    """A backup as SQLite makes it, while the ledger is in use."""
    with sqlite3.connect(source) as opened, sqlite3.connect(target) as copy:
        opened.backup(copy)


# ---------------------------------------------------------------- killed


def _killed_at(step: str, nth: int, url: str, store: Path) -> None:
    seen: list[str] = []

    def die(reached: str) -> None:
        seen.append(reached)
        if seen.count(step) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(die)
    rebuild(Registry(Ledger(url), FolderStore(store)))


@pytest.mark.parametrize(
    ("step", "nth"),
    [
        ("rebuild dossiers taken", 1),
        ("rebuild task taken", 1),
        ("rebuild dossiers taken", 2),
        ("rebuild task taken", 2),
    ],
)
def test_a_killed_rebuild_is_repeated(
    plain: Registry, pair: tuple[Task, Task], tmp_path: Path, step: str, nth: int
) -> None:
    for task in pair:
        promote(plain, task, published(plain, task, 1), ME)
    before = rows(plain.ledger)
    process = processes.start(_killed_at, step, nth, f"sqlite:///{tmp_path}/after.db", tmp_path / "store")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    after = emptied(plain, tmp_path)
    rebuild(after)
    found = rows(after.ledger)
    before.pop("snapshot"), found.pop("snapshot")
    assert found == before
