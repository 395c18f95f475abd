"""Which rows a version saw: by their texts, its own and those of what it descends from."""

from pathlib import Path

from flows.stages.compare import SeenRows, text_of
from flows.stages.context import Context
from tests.flows.stages.test_evidence import rival_that_saw
from tests.registry.lineage.test_trace import World, trained

OWN, ANCESTORS, FRESH = ("a" * 16, "b" * 16, "c" * 16)


def test_a_row_is_seen_by_its_text_whatever_follows_it(context: Context) -> None:
    seen = rival_that_saw(context, [f"{OWN}-1"])
    assert f"{OWN}-2" in seen  # the same text under another label
    assert f"{FRESH}-1" not in seen


def test_what_only_an_ancestor_saw_is_seen_and_told_apart(context: Context) -> None:
    seen = rival_that_saw(context, [OWN])
    seen.__dict__["inherited"] = {text_of(ANCESTORS)}
    assert seen.select_unseen([OWN, ANCESTORS, FRESH]) == [FRESH]
    assert [seen.is_inherited(row) for row in (OWN, ANCESTORS, FRESH)] == [False, True, False]


def test_what_a_version_saw_itself_it_did_not_only_inherit(tmp_path: Path) -> None:
    world = World(tmp_path)
    mood = world.task("mood")
    rows, later = world.snapshot(mood), world.snapshot(mood, "one more", "and another", "and a third", "and a fourth")
    world.publish(mood, rows.digest)
    for snapshot in (rows, later):
        world.publish(mood, snapshot.digest, parents=[world.digest(mood, 1)])
    same, other = (SeenRows(world.registry, "mood", world.digest(mood, number)) for number in (2, 3))
    assert same.inherited == set()
    assert other.inherited == {text_of(row) for row in trained(world, rows) - trained(world, later)}
    assert all(row in seen for seen in (same, other) for row in trained(world, rows))
