"""What a server tells the store of itself: what it answers by, refuses, and is about to read."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.live import REPORT, Live
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.storage.keys import SERVERS
from tests.serving.registered import TASK, Clock, OnEngine, point
from tests.serving.test_live import Away, Server, damage_tensors, digest, server, store

__all__ = ["server", "store"]  # fixtures


def test_a_server_reports_what_it_answers_by(server: Server, store: Away) -> None:
    point(store, 2, digest(2), 2)
    server.poll()
    [report] = read_server_reports(store)
    assert report.observed == [(TASK, "production", 2, 2)]
    assert {held.digest for held in report.holds} == {digest(1), digest(2)}


def test_a_server_reports_what_it_refuses(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 2)
    server.poll()
    [report] = read_server_reports(store)
    assert report.observed == [(TASK, "production", 1, 1)]
    assert report.refused[0][:2] == (TASK, "production")
    assert "truncated or altered" in report.refused[0].reason


def test_what_is_read_was_reported_before_and_stays_reported_meanwhile(store: Away, tmp_path: Path) -> None:
    """Whoever collects garbage keeps it."""

    class Watched(OnEngine):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[set[str]] = []

        def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
            self.note()
            if self.held:  # the server looks at the store while somebody asks for another version
                clock.now += REPORT
                watched.poll()
                self.note()
            super().hold(artifact, members)

        def note(self) -> None:
            self.seen.append({held.digest for report in read_server_reports(store) for held in report.holds})

    holder, clock = Watched(), Clock()
    watched = Live(store, holder, tmp_path, server="host", clock=clock)
    watched.poll()
    watched.find(f"{TASK}@3")
    assert holder.seen == [{digest(1)}, {digest(1), digest(3)}, {digest(1), digest(3)}]


class Slow(Away):
    """A store in which the first report of a look waits, so that a report of a request may overtake it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.overtaken, self.waits = threading.Event(), threading.Event()

    def replace(self, key: str, body: bytes, etag: str) -> None:
        if key.startswith(SERVERS) and threading.current_thread().name == "look":
            self.waits.set()
            self.overtaken.wait(0.5)
        super().replace(key, body, etag)
        if key.startswith(SERVERS):
            self.overtaken.set()


def test_no_older_report_takes_the_place_of_one_that_announces_what_is_read(store: Away, tmp_path: Path) -> None:
    """Somebody who collects garbage meanwhile would delete it."""

    class Reading(OnEngine):
        def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
            look.join(10)
            seen.append({held.digest for report in read_server_reports(store) for held in report.holds})
            super().hold(artifact, members)

    slow, clock, seen, look = Slow(store.root), Clock(), list[set[str]](), threading.Thread()
    live = Live(slow, Reading(), tmp_path / "home", server="host", clock=clock)
    look.start()
    live.poll()
    clock.now += REPORT
    look = threading.Thread(target=live.poll, name="look")
    look.start()
    assert slow.waits.wait(10)
    live.find(f"{TASK}@3")
    assert seen[-1] == {digest(1), digest(3)}


def test_a_report_is_written_if_something_changed_or_a_minute_passed(server: Server, store: Away) -> None:
    [first] = read_server_reports(store)
    server.poll()
    assert read_server_reports(store) == [first]
    server.poll(REPORT)
    [second] = read_server_reports(store)
    assert (second.at > first.at, second.observed) == (True, first.observed)


def test_a_server_that_ends_holds_nothing(server: Server, store: Away) -> None:
    server.live.stop()
    [report] = read_server_reports(store)
    assert (report.holds, report.observed) == ([], [])


def test_a_server_that_never_reported_reports_no_end(store: Away, tmp_path: Path) -> None:
    for name in ("host", ""):
        Server(store, tmp_path / "home", name).live.stop()
    assert read_server_reports(store) == []


def test_a_server_that_ends_while_the_store_is_away_waits_for_nothing(
    server: Server, store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    store.away = True
    server.poll()
    server.live.stop()
    assert "this server ended" not in caplog.text
