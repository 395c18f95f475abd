"""When an alias named a version, what ended it, and how little of a history tells what it names now."""

from typing import Any

from benchmarks.fixtures.prompts import an_artifact, published
from ptpipeline.records.versions import Beside, Promotion
from ptpipeline.task.task import Task
from registry.card.card import Naming
from registry.registry import Registry
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.history import find_namings, list_rows
from registry.versions.promotion import promote

ONE, TWO = "1" * 64, "2" * 64
ME = Cause("me", "because")


def row(seq: int, version: int, second: int | None = None, percent: int = 10, **changes: Any) -> Promotion:
    """A row of production, with a second version beside it if one is given."""
    beside = second and Beside(version=second, digest=str(second) * 64, percent=percent)
    fields = {"task": "mood", "alias": "production", "seq": seq, "version": version, "digest": str(version) * 64}
    fields |= {
        "previous": None,
        "actor": "me",
        "reason": "why",
        "verdict": None,
        "at": f"2026-01-{seq:02d}T00:00:00+00:00",
    }
    return Promotion.model_validate(fields | {"beside": beside or None} | changes)


def test_each_time_begins_with_a_promotion_and_ends_with_the_next() -> None:
    first, second, third = row(1, 1), row(2, 2), row(3, 1)
    for history in ([first, second, third], [third, first, second]):
        assert find_namings(history, ONE) == [Naming(first, second), Naming(third, None)]
        assert find_namings(history, TWO) == [Naming(second, third)]
        assert find_namings(history, "3" * 64) == []


def test_what_is_placed_beside_a_version_does_not_end_its_time() -> None:
    first, canary, ended = row(1, 1), row(2, 1, 2), row(3, 1)
    assert find_namings([first, canary, ended], ONE) == [Naming(first, None)]
    assert find_namings([first, canary, ended], TWO) == [Naming(canary, ended, canary.beside)]
    assert find_namings([first, canary], TWO) == [Naming(canary, None, canary.beside)]


def test_another_share_is_another_time_and_the_same_share_is_not() -> None:
    first, canary, again, more = row(1, 1), row(2, 1, 2), row(3, 1, 2), row(4, 1, 2, 50)
    assert find_namings([first, canary, again, more], TWO) == [
        Naming(canary, more, canary.beside),
        Naming(more, None, more.beside),
    ]


def test_a_canary_that_is_promoted_ends_as_such_and_begins_as_the_alias_s_own() -> None:
    first, canary, own = row(1, 1), row(2, 1, 2), row(3, 2)
    assert find_namings([first, canary, own], TWO) == [Naming(canary, own, canary.beside), Naming(own, None)]


def test_times_of_several_aliases_are_ordered_by_when_they_began() -> None:
    late, early = row(1, 1, at="2026-02-01T00:00:00+00:00"), row(7, 1, alias="staging", at="2026-01-01T00:00:00+00:00")
    assert [naming.promotion for naming in find_namings([late, early], ONE)] == [early, late]


def test_heads_alone_tell_what_aliases_name_now_unless_one_repeats_its_version(plain: Registry, task: Task) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, head.digest)
    heads = plain.ledger.heads(task.name)
    assert list_rows(plain.ledger, task.name, heads) is heads
    place_beside(plain, task, 2, 10, ME)
    rows = list_rows(plain.ledger, task.name, plain.ledger.heads(task.name))
    (naming,) = find_namings(rows, an_artifact(task, 1).digest)
    assert naming.promotion == head
