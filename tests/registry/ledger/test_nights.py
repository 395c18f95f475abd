"""What the ledger remembers of nights."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from ptpipeline.errors import PtpError
from registry.ledger.ledger import Ledger
from registry.ledger.nights import NightTask, RecordedNight, begin_night, end_night, list_nights, sum_tasks

MOOD = NightTask(
    task="mood", status="promoted", reason="won", verdict="passed", version=1, rows=160, tokens=900, seconds=2.5
)
TONE = NightTask(task="tone", status="failed", reason="no rows")


def a_night(id_: str, started: str = "2026-11-26T02:00:00+00:00") -> RecordedNight:
    return RecordedNight(id=id_, flow="nightly", cause="schedule x", page=None, started=started)


def test_a_night_is_listed_with_its_tasks_newest_first(ledger: Ledger) -> None:
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Failed", [TONE, MOOD])
    begin_night(ledger, a_night("two", "2026-11-27T02:00:00+00:00"))
    second, first = list_nights(ledger, 10)
    assert (second.id, second.ended, second.tasks) == ("two", None, ())
    assert (first.id, first.state, first.tasks) == ("one", "Failed", (MOOD, TONE))
    assert [night.id for night in list_nights(ledger, 1)] == ["two"]


def test_a_night_that_ended_stays_as_it_is(ledger: Ledger) -> None:
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Failed", [TONE])
    assert begin_night(ledger, a_night("one", "2026-11-28T02:00:00+00:00")) == "one"  # a run that went on with it
    end_night(ledger, a_night("one"), "Completed", [MOOD])
    [night] = list_nights(ledger, 10)
    assert (night.started[:10], night.state, night.tasks) == ("2026-11-26", "Failed", (TONE,))


def test_the_end_of_a_night_notes_a_beginning_that_could_not_be_noted(ledger: Ledger) -> None:
    end_night(ledger, a_night("one"), "Failed", [TONE])
    [night] = list_nights(ledger, 10)
    assert (night.cause, night.started[:10], night.state, night.tasks) == (
        "schedule x",
        "2026-11-26",
        "Failed",
        (TONE,),
    )


def test_a_night_that_is_run_again_is_another_night(ledger: Ledger) -> None:
    begin_night(ledger, a_night("one"))
    assert begin_night(ledger, a_night("one"), again="one 2") == "one"  # it has not ended: this goes on with it
    end_night(ledger, a_night("one"), "Failed", [TONE])
    assert begin_night(ledger, a_night("one", "2026-11-28T02:00:00+00:00"), again="one 2") == "one 2"
    end_night(ledger, a_night("one 2"), "Completed", [MOOD])
    assert [(night.id, night.state) for night in list_nights(ledger, 10)] == [("one 2", "Completed"), ("one", "Failed")]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM night",
        "UPDATE night SET state = 'x'",
        "DELETE FROM night_task",
        "UPDATE night_task SET status = 'x'",
    ],
)
def test_nobody_rewrites_a_night(ledger: Ledger, statement: str) -> None:
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Failed", [TONE])
    with pytest.raises((DatabaseError, PtpError), match="append-only"), ledger.database.writing() as connection:
        connection.execute(text(statement))


def test_a_training_counts_once_however_many_nights_tell_of_it(ledger: Ledger) -> None:
    later = MOOD.model_copy(update={"status": "unchanged", "verdict": "failed: gain"})
    for id_, task in (("one", MOOD), ("two", later)):
        begin_night(ledger, a_night(id_))
        end_night(ledger, a_night(id_), "Completed", [task, TONE])
    mood, tone = sum_tasks(ledger)
    assert (mood.statuses, mood.tokens, mood.seconds) == ({"promoted": 1, "unchanged": 1}, 900, 2.5)
    assert mood.verdict == "failed: gain"
    assert (tone.statuses, tone.tokens, tone.verdict) == ({"failed": 2}, 0, None)
