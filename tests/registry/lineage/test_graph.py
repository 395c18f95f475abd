"""The graph of prompts: which ways lead to a row, what cannot be ruled out, and what was deleted."""

from pathlib import Path

import pytest

from registry.ledger.tombstone import Tombstone
from registry.lineage.trace import trace_row, trace_version
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.registry.lineage.test_trace import World, row_in, shared_world, told

ME = Cause("me", "because")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def forget(world: World, folder: str) -> None:
    for key in [*world.registry.store.keys(folder)]:
        world.registry.store.delete(key)


def bury(world: World, task: str, digest: str) -> None:
    grave = Tombstone(world.registry.ledger.database, task, digest)
    assert grave.bury(lambda _: False)
    assert grave.leave()


def test_the_shortest_way_to_a_row_is_told(world: World) -> None:
    mood, topic = world.task("mood"), world.task("topic")
    rows, others = world.snapshot(mood), world.snapshot(topic)
    world.publish(mood, rows.digest)
    first = world.digest(mood, 1)
    world.publish(topic, others.digest, parents=[first])
    world.publish(topic, others.digest, parents=[world.digest(topic, 1), first])
    assert told(trace_row(world.registry, row_in(world, rows, "train")))["topic@2"] == ("train", ["start mood@1"])


def test_a_row_that_an_ancestor_saw_for_certain_is_told_before_what_is_unknown(world: World) -> None:
    mood, topic = world.task("mood"), world.task("topic")
    rows, others = world.snapshot(mood), world.snapshot(topic)
    world.publish(mood, rows.digest)
    world.publish(topic, others.digest, parents=[world.digest(mood, 1)])
    row = row_in(world, rows, "train")
    forget(world, f"snapshots/topic/{others.digest}")
    assert told(trace_row(world.registry, row))["topic@1"] == ("train", ["start mood@1"])


def test_a_row_in_a_source_that_is_left_was_seen_by_the_shared_prompt(world: World) -> None:
    """One of its snapshots is gone, so which of the others it saw is not known: any of them may be it."""
    _, (mood, topic) = shared_world(world)
    row = row_in(world, topic, "train")
    forget(world, f"snapshots/mood/{mood.digest}")
    assert told(trace_row(world.registry, row))["shared@1"] == ("train", [])


def test_of_an_imported_prompt_nothing_is_ruled_out(world: World) -> None:
    mood = world.task("mood")
    rows = world.snapshot(mood)
    world.publish(mood, rows.digest)
    known = world.registry.ledger.publication("mood", world.digest(mood, 1))
    assert known is not None
    assert trace_row(world.registry, "0" * 16) == []
    imported = known.model_copy(update={"tuned": known.tuned.model_copy(update={"steps": 0})})
    world.registry.ledger.save_publication(imported)
    assert told(trace_row(world.registry, "0" * 16)) == {"mood@1": ("unknown", [])}


def test_a_version_that_was_collected_is_told_as_such_once_its_bytes_are_gone(world: World) -> None:
    mood = world.task("mood")
    rows = world.snapshot(mood)
    world.publish(mood, rows.digest)
    row, digest = row_in(world, rows, "train"), world.digest(mood, 1)
    bury(world, "mood", digest)
    assert [found.collected for found in trace_row(world.registry, row)] == [False]
    forget(world, f"prompts/mood/{digest}")
    assert [(found.collected, found.seen) for found in trace_row(world.registry, row)] == [(True, "train")]
    assert trace_row(world.registry, "0" * 16) == []  # nothing descends from what was collected


def test_an_alias_and_a_release_are_told_of_the_version_that_they_name(world: World) -> None:
    from registry.ledger.ledger import Release

    mood = world.task("mood")
    rows = world.snapshot(mood)
    world.publish(mood, rows.digest), world.publish(mood, rows.digest)
    promote(world.registry, mood, 2, ME, "canary")
    release = Release(name="spring", actor="me", reason="why", versions={"mood": 1}, at="2026-01-01")
    world.registry.ledger.append_release(release, [])
    found = trace_row(world.registry, row_in(world, rows, "train"))
    assert {one.version: (one.aliases, one.releases) for one in found} == {1: ([], ["spring"]), 2: (["canary"], [])}


def test_a_version_is_told_with_its_own_promotions_alone(world: World) -> None:
    mood = world.task("mood")
    rows = world.snapshot(mood)
    world.publish(mood, rows.digest), world.publish(mood, rows.digest)
    first, second = (promote(world.registry, mood, number, ME, "canary") for number in (1, 2))
    assert trace_version(world.registry, "mood", 1).promotions == [first]
    assert trace_version(world.registry, "mood", 2).promotions == [second]
