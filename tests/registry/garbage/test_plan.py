"""What a plan keeps for what it does not collect itself: snapshots that others were measured or trained on."""

from datetime import timedelta
from pathlib import Path

from benchmarks.fixtures.prompts import a_report, a_task, an_artifact, published
from ptpipeline.records.base import digest_of
from ptpipeline.storage.keys import manifest_key
from ptpipeline.task.task import Task
from registry.garbage.plan import plan
from registry.garbage.roots import Retention
from registry.registry import Registry
from registry.versions.promotion import promote
from tests.registry.garbage.test_collect import ANYWAY, store_snapshot
from tests.registry.lineage.test_trace import World, shared_world

ONE = Retention(candidates=1, grace=timedelta(0))


def test_a_snapshot_that_a_kept_version_was_measured_on_stays(plain: Registry, task: Task) -> None:
    promote(plain, task, published(plain, task, 1), ANYWAY)
    old, measured, _ = (store_snapshot(plain, task, key) for key in ("old", "measured", "newest"))
    report = a_report(an_artifact(task, 1), 0.9).model_copy(update={"snapshot": measured, "evaluation_key": "e" * 64})
    plain.ledger.save_report(report)
    assert [item.digest for item in plan(plain, ONE)] == [old]
    plain.store.delete(manifest_key(task.name, an_artifact(task, 1).digest))  # the ledger knows it all the same
    assert [item.digest for item in plan(plain, ONE)] == [old]


def test_a_collection_of_a_source_keeps_what_a_shared_prompt_that_stays_was_trained_on(tmp_path: Path) -> None:
    """Nothing needs that prompt either, but it goes only when its own task is collected."""
    world = World(tmp_path)
    mood, snapshots = shared_world(world)
    world.snapshot(mood, "of nobody")
    newest = world.snapshot(mood, "the last one")
    for salt in range(2):  # newer shared prompts, over rows of today
        both = digest_of([newest.digest, snapshots[1].digest])
        world.publish(a_task("shared"), both, ("shared/mood", "shared/topic"), labels={}, method="multitask", seed=salt)
    planned = plan(world.registry, ONE, "mood")
    assert {item.what for item in planned} == {"snapshot"}
    assert snapshots[0].digest not in {item.digest for item in planned}
    assert snapshots[0].digest in {item.digest for item in plan(world.registry, ONE)}
