"""With the store away a server goes on, starts again, and answers with what it had, for as long as it takes."""

from pathlib import Path

import pytest

from ptpipeline.errors import PtpError, ServiceUnavailable
from ptpipeline.serving import holdings
from ptpipeline.serving.engine import Question
from ptpipeline.storage.keys import manifest_key
from tests.serving.registered import TASK, point
from tests.serving.test_live import Away, Server, digest, server, store

__all__ = ["server", "store"]  # fixtures


def test_with_the_store_away_a_server_goes_on(server: Server, store: Away) -> None:
    store.away = True
    server.poll(3600)
    state = server.live.observe()
    assert (server.live.find(TASK).number, state.away, state.trouble) == (1, 3600.0, "the store does not answer")
    with pytest.raises(ServiceUnavailable):
        server.live.find(f"{TASK}@3")
    store.away = False
    server.poll()
    assert (server.live.observe().away, server.live.observe().trouble) == (0.0, "")


def test_with_the_store_away_a_server_starts_with_its_last_good_set(
    server: Server, store: Away, tmp_path: Path
) -> None:
    store.away = True
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    again.poll()
    served = again.live.find(TASK)
    assert (served.number, served.digest) == (1, digest(1))
    assert again.live.find(f"{TASK}@1").digest == digest(1)
    assert len(again.holder.engine.score_labels([Question(served.digest, {"text": "good film"})])) == 1


def test_the_last_good_set_is_private(server: Server, tmp_path: Path) -> None:
    found = list((tmp_path / "home" / "serving" / "host" / "last-good").rglob("*"))
    assert len(found) > 3
    assert not [path for path in found if path.stat().st_mode & 0o077]


def test_a_last_good_set_that_was_damaged_is_read_again_from_the_store(
    server: Server, store: Away, tmp_path: Path
) -> None:
    for path in (tmp_path / "home" / "serving" / "host" / "last-good").rglob("*.safetensors"):
        path.write_bytes(b"rot")
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    assert "altered" in again.reasons()[0]
    again.poll()
    assert (again.live.find(TASK).number, again.reasons()) == (1, [])
    third = Server(store, tmp_path / "home")
    third.live.hold_last_good()
    assert third.live.find(TASK).number == 1


def test_a_server_that_starts_verifies_in_the_store_what_it_kept(server: Server, store: Away, tmp_path: Path) -> None:
    path = store.root / manifest_key(TASK, digest(1))
    path.write_bytes(path.read_bytes().replace(b"movies", b"movied"))
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    again.poll()
    assert "the manifest was altered" in again.reasons()[0]
    assert again.live.find(TASK).number == 1


def test_what_the_store_confirms_after_a_start_is_not_computed_again(
    server: Server, store: Away, tmp_path: Path
) -> None:
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    again.poll()
    assert again.holder.held == [digest(1)]


def test_the_last_good_set_keeps_no_more_than_is_held(server: Server, store: Away, tmp_path: Path) -> None:
    for number in (2, 3):
        point(store, number, digest(number), number)
        server.poll()
    server.poll(2 * holdings.RETAINED)
    kept = {path.parent.name for path in (tmp_path / "home" / "serving" / "host" / "last-good").rglob("manifest.json")}
    assert kept == {digest(2), digest(3)}


def test_a_day_without_the_store_fails_no_request(server: Server, store: Away, tmp_path: Path) -> None:
    """MLflow, Prefect and the ledger's database are never asked. The clock passes a day, with a restart at noon."""
    store.away, answers, failures, labels = True, 0, [], list[int]()
    running = server
    for second in range(0, 86_400, 60):
        running.poll(60)
        if second == 43_200:
            running = Server(store, tmp_path / "home")
            running.live.hold_last_good()
        for reference in (TASK, f"{TASK}@production", f"{TASK}@1", f"{TASK}@sha256:{digest(1)}"):
            try:
                served = running.live.find(reference, str(second))
            except PtpError as error:
                failures.append(error)
                continue
            answers += served.digest == digest(1)
        if second % 3600 == 0:
            [scores] = running.holder.engine.score_labels([Question(served.digest, {"text": "good film"})])
            labels.append(int(scores.argmax()))
    assert (answers, failures) == (4 * 1440, [])
    assert len(labels) == 24
    assert len(set(labels)) == 1
    assert running.live.observe().refused == []
    store.away = False
    point(store, 2, digest(2), 2)
    running.poll(60)
    assert running.live.find(TASK).number == 2
