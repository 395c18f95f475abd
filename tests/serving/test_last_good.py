"""With the store away a server goes on, starts again, and answers with what it had, for as long as it takes."""

import logging
from pathlib import Path

import pytest

from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.serving import holdings
from ptpipeline.serving.engine import Question
from ptpipeline.serving.pointers import DISCOVER
from ptpipeline.storage.keys import manifest_key, pointer_key
from tests.evaluation.probed import fields, tiny
from tests.serving.registered import TASK, a_prompt, add_version, point
from tests.serving.test_live import WORDS, Away, Server, digest, server, store

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


class Bucket(Away):
    """A bucket of that name at that server."""

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder)
        self.url, self.where = "s3://ptp", f"s3://ptp at {server}"


def test_what_a_bucket_of_the_same_name_elsewhere_held_answers_nobody(store: Away, tmp_path: Path) -> None:
    """The test environment's, for one: production would answer with it until its own store is reached."""
    Server(Bucket(store.root, "https://test"), tmp_path / "home").poll()
    for other, expected in (("https://production", set()), ("https://test", {digest(1)})):
        again = Server(Bucket(store.root, other), tmp_path / "home")
        again.live.hold_last_good()
        assert set(again.holder.engine._loaded) == expected


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


def answer_without_the_store(store: Away, home: Path) -> int | None:
    """Return the version of a server that starts with the store away."""
    again = Server(store, home)
    again.live.hold_last_good()
    assert again.reasons() == []
    return again.live.find(TASK).number


def test_what_the_disk_does_not_take_leaves_the_last_good_set_as_it_was(
    server: Server, store: Away, tmp_path: Path
) -> None:
    (server.live._good.store.root / manifest_key(TASK, digest(2))).mkdir(parents=True)
    for number in (2, 3):
        point(store, number, digest(number), number)
        server.poll()
    server.poll(2 * holdings.RETAINED)
    assert server.live.find(TASK).number == 3
    assert answer_without_the_store(store, tmp_path / "home") == 1


def test_what_the_disk_did_not_take_is_kept_as_soon_as_it_does(
    server: Server, store: Away, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refused = server.live._good.store.root / manifest_key(TASK, digest(2))
    refused.mkdir(parents=True)
    point(store, 2, digest(2), 2)
    server.poll()
    refused.rmdir()
    store.away = True
    server.poll()
    assert answer_without_the_store(store, tmp_path / "home") == 2
    assert caplog.text.count("would not know it") == 1
    assert caplog.text.count("is kept for a restart again") == 1


def test_what_the_disk_did_not_take_is_forgotten_with_what_is_served_no_more(server: Server, store: Away) -> None:
    good = server.live._good
    (good.store.root / manifest_key(TASK, digest(2))).mkdir(parents=True)
    point(store, 2, digest(2), 2)
    server.poll()
    good.keep({digest(1)})
    assert list(good._owed[TASK]) == [pointer_key(TASK, "production")]


def test_a_link_in_the_last_good_set_is_replaced(server: Server, store: Away, tmp_path: Path) -> None:
    [path] = (tmp_path / "home" / "serving" / "host" / "last-good").rglob("*.safetensors")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    assert "symbolic link" in again.reasons()[0]
    again.poll()
    assert (again.live.find(TASK).number, path.is_symlink()) == (1, False)


def test_a_pointer_in_another_aliass_place_of_the_last_good_set_is_refused(
    server: Server, store: Away, tmp_path: Path
) -> None:
    [path] = (tmp_path / "home" / "serving" / "host" / "last-good").rglob("production.json")
    path.rename(path.with_name("next.json"))
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    assert again.live.observe().promotions == []
    assert f"points for {TASK}@production" in again.reasons()[0]


def test_a_store_that_refuses_this_server_is_told_once_and_stops_nothing(
    server: Server, store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    store.away, store.fault = True, SettingsError("the store refuses the key")
    for _ in range(3):
        server.poll()
    assert (server.live.find(TASK).number, server.live.observe().trouble) == (1, "the store refuses the key")
    assert caplog.text.count("this server goes on with the versions that it has") == 1


def test_the_last_good_set_keeps_the_prompts_of_an_ensemble(server: Server, store: Away, tmp_path: Path) -> None:
    whole = pack_ensemble([a_prompt(WORDS[1]), a_prompt(WORDS[3])], "average", fields(tiny()) | {"method": "ensemble"})
    point(store, 5, add_version(store, whole, 5), 1, alias="next")
    server.live.find(f"{TASK}@3")
    server.poll(DISCOVER)
    server.poll(2 * holdings.RETAINED)
    assert server.holder.dropped == [digest(3)]
    store.away = True
    again = Server(store, tmp_path / "home")
    again.live.hold_last_good()
    assert again.live.find(f"{TASK}@next").digest == whole.digest


def test_with_the_store_away_a_server_is_ready_by_its_last_good_set(
    server: Server, store: Away, tmp_path: Path
) -> None:
    store.away = True
    again, other = Server(store, tmp_path / "home"), Server(store, tmp_path / "other")
    for one, ready in ((again, True), (other, False)):
        assert not one.live.ready
        one.live.start()
        assert one.live.ready == ready
        one.live.stop()
