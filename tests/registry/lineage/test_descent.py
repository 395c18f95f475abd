"""The rows that a prompt learnt from through its members, and through ancestors behind those that are gone."""

from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_request
from registry.card.card import Provenance
from registry.lineage.descent import inherited_rows
from registry.versions.publish import register, stage
from tests.registry.lineage.test_trace import World, an_ensemble, learnt, trained

MORE = ("one more", "and another", "and a third", "and a fourth")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_ensemble_learnt_from_the_rows_of_its_members(world: World) -> None:
    """The ledger does not remember how a member was trained: its manifest says on which rows."""
    mood = world.task("mood")
    rows, later = world.snapshot(mood), world.snapshot(mood, *MORE)
    member = world.artifact(mood, rows.digest)
    ensemble = an_ensemble(world.artifact(mood, later.digest), member)
    stage(world.registry.ledger, world.registry.store, ensemble, [member])
    changes = {"digest": ensemble.digest, "snapshot": later.digest, "training_key": ensemble.manifest.training_key}
    register(world.registry, Provenance(a_request(mood, 1).tuned.model_copy(update=changes)))
    assert world.registry.ledger.tuned("mood", member.manifest.training_key) is None
    inherited = {row.id for row in inherited_rows(world.registry, "mood", ensemble.digest)}
    assert inherited == trained(world, rows)


def test_ancestors_that_are_gone_hide_no_others(world: World) -> None:
    mood, topic, tone = (world.task(name) for name in ("mood", "topic", "tone"))
    snapshots = [world.snapshot(task) for task in (mood, topic, tone)]
    world.publish(mood, snapshots[0].digest)
    world.publish(topic, snapshots[1].digest, parents=[world.digest(mood, 1)])
    gone = [letter * 64 for letter in "0123456789abcdef"]  # whichever of them is asked first
    world.publish(tone, snapshots[2].digest, parents=[*gone, world.digest(topic, 1)])
    assert learnt(world, "tone", 1) == trained(world, *snapshots)
