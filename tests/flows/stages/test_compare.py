"""Which rows a version saw: by their texts, its own and those of what it descends from."""

from flows.stages.compare import text_of
from flows.stages.context import Context
from tests.flows.stages.test_evidence import rival_that_saw

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
