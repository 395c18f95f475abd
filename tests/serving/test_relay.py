"""Feedback on an answer of another server reaches that one by way of the store, once, and costs no more than it may."""

import pytest

from ptpipeline.errors import Overloaded
from ptpipeline.records.serving import PassedOn
from ptpipeline.records.versions import Beside
from ptpipeline.serving import relay as relay_module
from ptpipeline.serving.relay import KEPT, LISTEN, MOST
from ptpipeline.serving.servers import read_server_reports, report_holdings
from ptpipeline.serving.trials import hash_feedback
from ptpipeline.storage.keys import server_key
from tests.serving.registered import TASK, point, put
from tests.serving.test_live import Away, Server, digest, server, store

__all__ = ["server", "store"]  # fixtures

RIGHT = hash_feedback("req-1", 0, TASK, "good")
FULL = [hash_feedback(f"req-{number}", 0, TASK, "good") for number in range(MOST)]


def passed(store: Away, name: str = "host") -> list[PassedOn]:
    """What the report of that server passes on."""
    return next(report.passed for report in read_server_reports(store) if report.server == name)


@pytest.fixture
def answered(server: Server, store: Away) -> Server:
    """A server that gave one answer beside a canary, and waits for feedback."""
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    server.live.trials.note(server.live.find(TASK), "req-1", {0: "good"})
    return server


def judged(server: Server) -> int:
    return sum(tally.judged + tally.canary_judged for tally in server.live.trials.list_canaries())


def test_what_was_told_is_reported_until_each_of_the_others_has_looked(server: Server, store: Away) -> None:
    server.live.relay.pass_on(RIGHT)
    server.poll()
    assert passed(store) == [RIGHT]
    server.poll(KEPT - 1)
    assert passed(store) == [RIGHT]
    server.poll(2)
    assert passed(store) == []
    assert KEPT >= 3 * LISTEN


def test_what_the_store_did_not_take_is_reported_when_it_is_back(server: Server, store: Away) -> None:
    server.live.relay.pass_on(RIGHT)
    store.away = True
    server.poll()
    server.poll(2 * KEPT)
    store.away = False
    server.poll(2 * KEPT)
    assert passed(store) == [RIGHT]


def test_more_than_a_report_holds_is_refused_and_the_same_twice_is_one(server: Server) -> None:
    for told in FULL:
        server.live.relay.pass_on(told)
    server.live.relay.pass_on(FULL[0])
    with pytest.raises(Overloaded, match=f"the feedback to {MOST} answers of others in 60 s"):
        server.live.relay.pass_on(hash_feedback("req-new", 0, TASK, "good"))
    assert server.live.relay.list() == sorted(FULL)


def test_what_another_server_was_told_is_counted_once(answered: Server, store: Away) -> None:
    report_holdings(store, "other", [], passed=[RIGHT])
    answered.poll(LISTEN)
    answered.live.trials.note(answered.live.find(TASK), "req-2", {0: "good"})  # it goes on listening
    answered.poll(LISTEN)
    assert judged(answered) == 1
    assert "1 of 1 of" in str(answered.live.trials.describe((TASK, "production", 2)))


@pytest.mark.parametrize(
    "told",
    [RIGHT._replace(task="other-task"), RIGHT._replace(number=1), RIGHT._replace(request="req-2")],
    ids=["of another task", "of another text", "of another request"],
)
def test_what_is_not_of_this_servers_answer_is_not_counted(answered: Server, store: Away, told: PassedOn) -> None:
    report_holdings(store, "other", [], passed=[told])
    answered.poll(LISTEN)
    assert judged(answered) == 0
    assert answered.live.trials.waits


def test_reports_are_read_if_feedback_is_awaited_and_not_at_every_look(
    server: Server, answered: Server, store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(relay_module, "read_server_reports", lambda store: looks.append(store.url) or [])
    answered.poll(LISTEN)
    answered.poll(LISTEN / 2)
    assert len(looks) == 1
    answered.live.trials.judge("req-1", 0, "good")
    answered.poll(2 * LISTEN)
    assert len(looks) == 1


def test_a_report_that_cannot_be_read_is_told_once_and_pointers_are_followed(
    answered: Server, store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, server_key("other"), b"{")
    for seq in (3, 4):
        point(store, seq - 1, digest(seq - 1), seq)
        answered.poll(LISTEN)
    assert answered.live.peek(TASK).number == 3
    assert caplog.text.count("feedback that other servers took is not counted") == 1


def test_a_server_that_may_not_read_the_others_reports_follows_pointers(answered: Server, store: Away) -> None:
    report_holdings(store, "other", [], passed=[RIGHT])
    store.withheld = [server_key("other")]
    point(store, 2, digest(2), 3)
    answered.poll(LISTEN)
    assert answered.live.peek(TASK).number == 2
    assert answered.live.observe().trouble == ""
