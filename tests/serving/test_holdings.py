"""Which prompts stay in memory, and how long: what runs on one ends as it began."""

import threading

import pytest

from ptpipeline.errors import Overloaded
from ptpipeline.serving import holdings
from ptpipeline.serving.engine import Question
from ptpipeline.serving.live import EVERY
from tests.serving.registered import TASK, point
from tests.serving.test_live import Away, Server, digest, server, store

__all__ = ["server", "store"]  # fixtures


def test_the_version_before_stays_for_a_rollback_and_for_what_runs(server: Server, store: Away) -> None:
    point(store, 2, digest(2), 2)
    server.poll(10 * holdings.RETAINED)
    server.poll(10 * holdings.RETAINED)
    server.holder.engine.score_labels([Question(digest(1), {"text": "good"})])
    assert server.holder.dropped == []


def test_older_versions_go_when_no_request_can_run_on_them(server: Server, store: Away) -> None:
    for number in (2, 3):
        point(store, number, digest(number), number)
        server.poll()
    server.poll(holdings.RETAINED - 2 * EVERY)
    assert server.holder.dropped == []
    server.poll(3 * EVERY)
    assert server.holder.dropped == [digest(1)]


def test_a_version_stays_as_long_as_somebody_asks_for_it(server: Server) -> None:
    assert server.live.find(f"{TASK}@3").digest == digest(3)
    server.poll(holdings.RETAINED - EVERY)
    assert server.live.find(f"{TASK}@sha256:{digest(3)}").number == 3
    server.poll(holdings.RETAINED - EVERY)
    assert server.holder.dropped == []
    server.poll(2 * EVERY)
    assert server.holder.dropped == [digest(3)]


def test_no_more_versions_are_held_on_request_than_the_bound(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "ON_REQUEST", 1)
    server.live.find(f"{TASK}@3")
    with pytest.raises(Overloaded, match="1 versions are held because somebody asked") as caught:
        server.live.find(f"{TASK}@4")
    assert caught.value.retry_after == pytest.approx(holdings.RETAINED)
    server.clock.now += holdings.RETAINED
    assert server.live.find(f"{TASK}@4").number == 4


def test_a_version_that_was_asked_for_by_its_digest_is_called_by_its_number_once_that_is_known(server: Server) -> None:
    assert server.live.find(f"{TASK}@sha256:{digest(3)}").number is None
    assert server.live.find(f"{TASK}@3").number == 3
    assert server.live.find(f"{TASK}@sha256:{digest(3)}").number == 3


def test_requests_of_many_threads_get_versions_that_are_held(
    server: Server, store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "RETAINED", 3 * EVERY)  # versions come and go all the time
    lost, stopped = list[str](), threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            for reference in (TASK, f"{TASK}@3", f"{TASK}@sha256:{digest(4)}"):
                found = server.live.find(reference)
                if found.digest not in server.holder.engine._loaded:
                    lost.append(reference)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seq in range(2, 30):
        point(store, 1 + seq % 3, digest(1 + seq % 3), seq)
        server.poll()
    stopped.set()
    for thread in threads:
        thread.join()
    assert lost == []
