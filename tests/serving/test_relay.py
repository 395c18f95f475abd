"""Feedback on an answer of another server reaches that one by way of the store, once, and costs no more than it may."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ptpipeline.errors import Overloaded, SettingsError
from ptpipeline.records.serving import PassedOn
from ptpipeline.records.versions import Beside
from ptpipeline.serving.relay import KEPT, LISTEN, MOST, RECENT
from ptpipeline.serving.servers import read_server_reports, report_holdings
from ptpipeline.serving.trials import hash_feedback
from ptpipeline.storage import Stored
from ptpipeline.storage.keys import SERVERS, server_key
from ptpipeline.storage.objects import Listed
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
    server.live.relay.pass_on(RIGHT, "me")
    server.poll()
    assert passed(store) == [RIGHT]
    server.poll(KEPT - 1)
    assert passed(store) == [RIGHT]
    server.poll(2)
    assert passed(store) == []
    assert KEPT >= 3 * LISTEN


def test_what_the_store_did_not_take_is_reported_when_it_is_back(server: Server, store: Away) -> None:
    server.live.relay.pass_on(RIGHT, "me")
    store.away = True
    server.poll()
    server.poll(2 * KEPT)
    store.away = False
    server.poll(2 * KEPT)
    assert passed(store) == [RIGHT]


def test_more_than_a_report_holds_is_refused_and_the_same_twice_is_one(server: Server) -> None:
    for number, told in enumerate(FULL[: MOST - 1]):
        server.live.relay.pass_on(told, f"caller-{number}")
    assert server.live.relay.pass_on(FULL[0], "caller-0")
    server.live.relay.pass_on(FULL[-1], "last")
    with pytest.raises(Overloaded, match=f"the feedback to {MOST} answers of others in 60 s"):
        server.live.relay.pass_on(hash_feedback("req-new", 0, TASK, "good"), "new")
    assert server.live.relay.list() == sorted(FULL)


def test_a_caller_that_floods_leaves_room_for_the_others(server: Server) -> None:
    """Who makes up ids spends the half that one caller may have."""
    relay = server.live.relay
    for told in FULL[: MOST // 2]:
        relay.pass_on(told, "flood")
    with pytest.raises(Overloaded, match=f"to {MOST // 2} of yours already"):
        relay.pass_on(FULL[-1], "flood")
    for told in FULL[-MOST // 4 :]:
        assert relay.pass_on(told, "other")
    with pytest.raises(Overloaded):
        relay.pass_on(hash_feedback("req-new", 0, TASK, "good"), "other")


def test_what_is_told_of_a_text_first_stays(server: Server) -> None:
    relay = server.live.relay
    assert relay.pass_on(RIGHT, "me")
    assert not relay.pass_on(hash_feedback("req-1", 0, TASK, "bad"), "me")
    assert relay.list() == [RIGHT]


def test_what_was_told_before_a_server_ends_stays_in_its_last_report(server: Server, store: Away) -> None:
    server.live.relay.pass_on(RIGHT, "me")
    server.live.stop()
    assert passed(store) == [RIGHT]


def test_a_server_that_starts_again_passes_on_what_its_last_report_said_for_a_while(
    server: Server, store: Away, tmp_path: Path
) -> None:
    server.live.relay.pass_on(RIGHT, "me")
    server.poll()
    again = Server(store, tmp_path / "home")
    again.poll()
    assert passed(store) == [RIGHT]
    again.poll(KEPT + 1)
    assert passed(store) == []


def test_a_server_that_starts_beside_a_report_of_its_name_that_is_none_passes_nothing_on(
    server: Server, store: Away, tmp_path: Path
) -> None:
    put(store, server_key("host"), b"{")
    again = Server(store, tmp_path / "home")
    again.poll()
    assert passed(store) == []


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


class Noted(Away):
    """A store that notes which reports were listed and read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lists, self.reports = 0, list[str]()

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        self.lists += prefix == SERVERS
        return super().list_objects(prefix)

    def read(self, key: str) -> Stored:
        if key.startswith(SERVERS):
            self.reports.append(key)
        return super().read(key)


def test_reports_are_read_if_feedback_is_awaited_and_not_at_every_look(
    server: Server, answered: Server, store: Away
) -> None:
    noted = Noted(store.root)
    answered.live.store = noted
    answered.poll(LISTEN)
    answered.poll(LISTEN / 2)
    assert noted.lists == 1
    answered.live.trials.judge("req-1", 0, "good")
    answered.poll(2 * LISTEN)
    assert noted.lists == 1


def test_reports_of_servers_that_ended_long_ago_are_not_read(answered: Server, store: Away) -> None:
    """Each update of a deployment leaves some behind."""
    noted, written = Noted(store.root), (store.root / server_key("host")).stat().st_mtime
    for name, age in (("old", RECENT + 1), ("new", RECENT - 1)):
        report_holdings(store, name, [], passed=[RIGHT._replace(number=1)])
        os.utime(store.root / server_key(name), (written - age, written - age))
    noted.reports.clear()
    answered.live.relay.listen(noted, "host", answered.live.trials)
    assert sorted(noted.reports) == [server_key("host"), server_key("new")]


@pytest.mark.parametrize("body", [b"{", b'{"schema_version": 9}'], ids=["damaged", "of a later ptpipeline"])
def test_a_report_that_cannot_be_read_is_told_once_and_the_others_are_heard(
    answered: Server, store: Away, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    put(store, server_key("a-broken-one"), body)
    report_holdings(store, "other", [], passed=[RIGHT])
    answered.live.trials.note(answered.live.find(TASK), "req-2", {0: "good"})
    for seq in (3, 4):
        point(store, seq - 1, digest(seq - 1), seq)
        answered.poll(LISTEN)
    assert answered.live.peek(TASK).number == 3
    assert answered.live.trials.find("req-1", 0) is None
    assert caplog.text.count("feedback that other servers took is not counted") == 1


def test_a_server_that_may_not_read_the_others_reports_follows_pointers(answered: Server, store: Away) -> None:
    report_holdings(store, "other", [], passed=[RIGHT])
    store.withheld = [server_key("other"), server_key("host")]
    point(store, 2, digest(2), 3)
    answered.poll(LISTEN)
    assert answered.live.peek(TASK).number == 2
    assert answered.live.observe().trouble == ""


class Withheld(Away):
    """A store whose reports of others this server may not list, under the rights of an older version."""

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        if prefix == SERVERS:
            raise SettingsError("this identity may not list servers/")
        return super().list_objects(prefix)


def test_a_server_that_may_not_read_the_others_reports_goes_on_with_the_store(
    answered: Server, store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    answered.live.store = Withheld(store.root)
    for seq in (3, 4):
        point(store, seq - 1, digest(seq - 1), seq)
        answered.poll(LISTEN)
    assert (answered.live.observe().trouble, answered.live.observe().refused) == ("", [])
    assert answered.live.find(f"{TASK}@4").number == 4
    assert caplog.text.count("this identity may not list servers/") == 1


def test_a_report_of_more_than_may_be_passed_on_is_heard_up_to_that(answered: Server, store: Away) -> None:
    """Whoever may write a report could keep the others' looks at the store busy."""
    report_holdings(store, "forger", [], passed=[*FULL, RIGHT._replace(request="req-z")])
    answered.live.trials.note(answered.live.find(TASK), "req-z", {0: "good"})
    answered.poll(LISTEN)
    assert answered.live.trials.find("req-1", 0) is None
    assert answered.live.trials.find("req-z", 0) is not None


def test_two_servers_of_one_name_hear_each_other(answered: Server, store: Away, tmp_path: Path) -> None:
    """Two containers of one host name: each writes over the other's report, but what is there is heard."""
    twin = Server(store, tmp_path / "other-home")
    twin.poll()
    twin.live.relay.pass_on(RIGHT, "me")
    twin.poll()
    answered.poll(LISTEN)
    assert judged(answered) == 1


def test_threads_that_tell_and_report_at_once_lose_nothing_and_count_nothing_twice(
    answered: Server, store: Away
) -> None:
    relay, trials, told = answered.live.relay, answered.live.trials, FULL[: MOST // 2]
    for one in told:
        trials.note(answered.live.find(TASK), one.request, {0: "good"})

    def tell(part: int) -> None:
        for one in told[part::4] + told[(part + 1) % 4 :: 4]:
            relay.pass_on(one, str(part))
            relay.mark(relay.list()[:5])
            trials.judge_passed(one)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tell, range(4)))
    assert relay.list() == sorted(told)
    assert judged(answered) == len(told)
