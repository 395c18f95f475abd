"""When what a server refused is tried again, and how often it is told."""

import pytest

from ptpipeline.errors import ArtifactError, ServiceUnavailable
from ptpipeline.serving.refusals import FIRST_WAIT, LONGEST_WAIT, Place, Refusals
from tests.serving.registered import Clock

PLACE = Place("movies", "production")


def refuse(refused: Refusals, etag: str, reason: str = "altered") -> None:
    with refused.trying(PLACE, etag):
        raise ArtifactError(reason)


def wait_of(refused: Refusals, clock: Clock, etag: str) -> float:
    """Seconds until it is tried again, to the second."""
    began = clock.now
    while refused.stands(PLACE, etag):
        clock.now += 1.0
    return clock.now - began


def test_waits_double_up_to_the_longest_and_begin_anew_with_another_pointer() -> None:
    clock = Clock()
    refused, waits = Refusals(clock), []
    for _ in range(10):
        refuse(refused, "one")
        waits.append(wait_of(refused, clock, "one"))
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, LONGEST_WAIT, LONGEST_WAIT]
    refuse(refused, "two")
    assert wait_of(refused, clock, "two") == FIRST_WAIT


def test_another_pointer_is_tried_at_once() -> None:
    refused = Refusals(Clock())
    refuse(refused, "one")
    assert (refused.stands(PLACE, "one"), refused.stands(PLACE, "two"), refused.stands(PLACE, None)) == (
        True,
        False,
        False,
    )


def test_why_it_is_refused_is_listed_also_when_it_may_be_tried_again() -> None:
    clock = Clock()
    refused = Refusals(clock)
    refuse(refused, "one")
    assert refused.find(PLACE) == "altered"
    clock.now = FIRST_WAIT
    assert refused.find(PLACE) is None
    assert [each.reason for each in refused.list()] == ["altered"]
    refused.forget(PLACE)
    assert refused.list() == []


def test_each_reason_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    refused = Refusals(Clock())
    for reason in ("altered", "altered", "gone", "gone"):
        refuse(refused, "one", reason)
    assert [record.message for record in caplog.records] == [
        "movies@production: refused: altered",
        "movies@production: refused: gone",
    ]


def test_a_store_that_is_away_refuses_nothing() -> None:
    refused = Refusals(Clock())
    with pytest.raises(ServiceUnavailable), refused.trying(PLACE, "one"):
        raise ServiceUnavailable("the store does not answer")
    assert refused.list() == []
