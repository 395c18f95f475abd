"""A server answers with what the pointers show, as soon as all of it holds, and with what it had until then."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, NotFound, Overloaded, PtpError, ServiceUnavailable, SettingsError
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.base import digest_of
from ptpipeline.records.versions import Beside
from ptpipeline.serving import holdings, live
from ptpipeline.serving.engine import Question
from ptpipeline.serving.live import DISCOVER, EVERY, REPORT, Live
from ptpipeline.serving.memory import Memory
from ptpipeline.serving.refusals import LONGEST_WAIT
from ptpipeline.serving.servers import read_server_reports
from ptpipeline.storage import FolderStore, ObjectStore, Stored
from ptpipeline.storage.keys import manifest_key, pointer_key, tensors_key
from tests.evaluation.probed import fields, tiny
from tests.serving.registered import TASK, Clock, OnEngine, a_prompt, add_version, point, put

WORDS = (" yes", " the film", " bad", " good")


class Away(FolderStore):
    """A store that can be away."""

    away = False
    fault: PtpError = ServiceUnavailable("the store does not answer")

    def read(self, key: str) -> Stored:
        if self.away:
            raise self.fault
        return super().read(key)


class Server:
    """One server over a store, with a clock that tests move."""

    def __init__(self, store: ObjectStore, home: Path, name: str = "host") -> None:
        self.clock, self.holder = Clock(), OnEngine()
        self.live = Live(store, self.holder, Memory(home), home, server=name, clock=self.clock)

    def poll(self, seconds: float = EVERY) -> None:
        self.clock.now += seconds
        self.live.poll()

    def reasons(self) -> list[str]:
        return [refused.reason for refused in self.live.observe().refused]


@pytest.fixture
def store(tmp_path: Path) -> Away:
    """Four versions; production is the first."""
    store = Away(tmp_path / "store")
    digests = [add_version(store, a_prompt(word), number) for number, word in enumerate(WORDS, 1)]
    point(store, 1, digests[0], 1)
    return store


@pytest.fixture
def server(store: Away, tmp_path: Path) -> Server:
    server = Server(store, tmp_path / "home")
    server.poll()
    return server


def digest(number: int) -> str:
    return a_prompt(WORDS[number - 1]).digest


def test_an_alias_answers_with_what_its_pointer_shows(server: Server) -> None:
    served = server.live.find(TASK)
    assert (served.name, served.digest, served.alias) == (f"{TASK}@1", digest(1), "production")
    assert len(server.holder.engine.score_labels([Question(served.digest, {"text": "good film"})])) == 1


def test_a_promoted_version_answers_after_the_next_look(server: Server, store: Away) -> None:
    point(store, 2, digest(2), 2)
    assert server.live.find(TASK).number == 1
    server.poll()
    assert server.live.find(TASK).number == 2


def test_an_unchanged_pointer_is_not_taken_over_again(server: Server, store: Away) -> None:
    (store.root / tensors_key(TASK, digest(1))).unlink()
    server.poll(10 * LONGEST_WAIT)
    assert server.reasons() == []


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
    server.clock.now += holdings.RETAINED - 0.5
    with pytest.raises(Overloaded) as caught:
        server.live.find(f"{TASK}@4")
    assert caught.value.retry_after == 1.0
    server.clock.now += 0.5
    assert server.live.find(f"{TASK}@4").number == 4


@pytest.mark.parametrize(
    "reference",
    [
        f"{TASK}@9",
        f"{TASK}@nothing",
        "books",
        "books@1",
        "../movies",
        f"{TASK}@../../x",
        f"{TASK}@sha256:../../x",
        f"{TASK}@sha256:{'a' * 64}",
        f"books@sha256:{digest_of('x')}",
        f"../{TASK}@sha256:{digest_of('x')}",
        "",
        "@1",
        f"{TASK}@-1",
        f"{TASK}@99999999999999999999",
        f"{TASK}@٣",
    ],
)
def test_a_reference_that_names_nothing_is_not_found(server: Server, reference: str) -> None:
    with pytest.raises(NotFound):
        server.live.find(reference)


def test_a_prompt_of_another_task_is_not_found_by_its_digest(server: Server, store: Away) -> None:
    other = add_version(store, a_prompt(" dull", task="books"), 1)
    assert server.live.find(f"books@sha256:{other}").number is None
    with pytest.raises(NotFound):
        server.live.find(f"{TASK}@sha256:{other}")


def test_an_alias_that_is_new_is_found_when_it_is_asked_for(server: Server, store: Away) -> None:
    with pytest.raises(NotFound):
        server.live.find(f"{TASK}@next")
    point(store, 3, digest(3), 1, alias="next")
    server.clock.now += EVERY
    assert server.live.find(f"{TASK}@next").number == 3
    point(store, 4, digest(4), 2, alias="next")
    server.poll()
    assert server.live.find(f"{TASK}@next").number == 4


def test_an_alias_that_nobody_asks_for_is_found_within_a_minute(server: Server, store: Away) -> None:
    point(store, 3, digest(3), 1, alias="next")
    server.poll()
    assert [row.alias for row in server.live.observe().promotions] == ["production"]
    server.poll(DISCOVER - EVERY)
    assert [row.alias for row in server.live.observe().promotions] == ["next", "production"]


def test_names_that_mean_nothing_are_remembered_up_to_a_bound(
    server: Server, store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MISSED", 1)
    for name in ("next", "other"):
        with pytest.raises(NotFound):
            server.live.find(f"{TASK}@{name}")
    point(store, 3, digest(3), 1, alias="next")
    point(store, 3, digest(3), 1, alias="other")
    assert server.live.find(f"{TASK}@next").number == 3
    with pytest.raises(NotFound):
        server.live.find(f"{TASK}@other")


def test_what_a_request_read_during_a_look_is_newer_than_what_the_look_read(store: Away, tmp_path: Path) -> None:
    class Asked(OnEngine):
        """While the look holds the first alias's version, the other alias moves and somebody asks for it."""

        def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
            super().hold(artifact, members)
            if artifact.digest == digest(1):
                point(store, 4, digest(4), 2, alias="zenith")
                assert following.find(f"{TASK}@zenith").number == 4

    point(store, 3, digest(3), 1, alias="zenith")
    following = Live(store, Asked(), Memory(tmp_path), tmp_path, clock=Clock())
    following.poll()
    assert following.find(f"{TASK}@zenith").number == 4


def test_a_server_of_some_tasks_serves_no_other(store: Away, tmp_path: Path) -> None:
    other = add_version(store, a_prompt(" dull", task="books"), 1)
    point(store, 1, other, 1, task="books")
    some = Live(store, OnEngine(), Memory(tmp_path), tmp_path, tasks=["books"], clock=Clock())
    some.poll()
    assert some.find("books").number == 1
    with pytest.raises(NotFound, match="this server does not serve it"):
        some.find(TASK)
    assert [row.task for row in some.observe().promotions] == ["books"]


def test_a_server_of_fewer_tasks_than_before_serves_these_from_its_last_good_set(
    server: Server, store: Away, tmp_path: Path
) -> None:
    point(store, 1, add_version(store, a_prompt(" dull", task="books"), 1), 1, task="books")
    server.poll(DISCOVER)
    again = Live(store, OnEngine(), Memory(tmp_path), tmp_path / "home", server="host", tasks=["books"], clock=Clock())
    again.hold_last_good()
    assert [row.task for row in again.observe().promotions] == ["books"]


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


# ---------------------------------------------------------------- refusals


def damage_tensors(store: Away) -> None:
    path = store.root / tensors_key(TASK, digest(2))
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_version_is_refused_and_the_old_one_stays(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 2)
    server.poll()
    assert server.live.find(TASK).number == 1
    assert "the file is truncated or altered" in server.reasons()[0]


def test_a_mended_version_is_taken_over_at_the_next_try(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 2)
    server.poll()
    put(store, tensors_key(TASK, digest(2)), a_prompt(WORDS[1]).tensors)
    server.poll(LONGEST_WAIT)
    assert (server.live.find(TASK).number, server.reasons()) == (2, [])


def test_a_refused_promotion_is_tried_again_at_longer_and_longer_intervals(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 2)
    for _ in range(5):  # after 2, 4, 8 and 16 seconds
        server.poll(LONGEST_WAIT / 10)
    put(store, tensors_key(TASK, digest(2)), a_prompt(WORDS[1]).tensors)
    server.poll(LONGEST_WAIT / 20)
    assert server.live.find(TASK).number == 1
    server.poll(LONGEST_WAIT)
    assert server.live.find(TASK).number == 2


def test_a_promotion_behind_a_refused_one_is_taken_over_at_once(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 2)
    for _ in range(8):
        server.poll()
    point(store, 3, digest(3), 3)
    server.poll()
    assert (server.live.find(TASK).number, server.reasons()) == (3, [])


def test_a_refusal_ends_if_the_pointer_goes_back(server: Server, store: Away) -> None:
    damage_tensors(store)
    before = store.read(pointer_key(TASK, "production")).body
    point(store, 2, digest(2), 2)
    server.poll()
    put(store, pointer_key(TASK, "production"), before)
    server.poll()
    assert server.reasons() == []


def test_a_prompt_of_another_base_is_refused(server: Server, store: Away) -> None:
    base = a_prompt(" dull").manifest.base_model.model_copy(update={"fingerprint": "0" * 64})
    point(store, 5, add_version(store, a_prompt(" dull", base_model=base), 5), 2)
    server.poll()
    assert "trained on base model" in server.reasons()[0]
    assert len(server.holder.dropped) == 1  # whatever of it was loaded before
    assert server.live.find(TASK).number == 1


def test_a_pointer_that_is_gone_is_told_and_the_version_stays(server: Server, store: Away) -> None:
    store.delete(pointer_key(TASK, "production"))
    server.poll()
    for seconds in (EVERY, DISCOVER):
        server.poll(seconds)
        assert "has no production version" in server.reasons()[0]
        assert server.live.find(TASK).number == 1
    point(store, 2, digest(2), 2)
    server.poll()
    assert (server.live.find(TASK).number, server.reasons()) == (2, [])


@pytest.mark.parametrize("seconds", [EVERY, LONGEST_WAIT])
def test_a_refused_alias_that_is_gone_is_refused_no_more(server: Server, store: Away, seconds: float) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 1, alias="next")
    server.poll(DISCOVER)
    assert "truncated or altered" in server.reasons()[0]
    store.delete(pointer_key(TASK, "next"))
    server.poll(seconds)
    assert server.reasons() == []


def test_what_fails_unexpectedly_while_it_is_held_is_refused(
    server: Server, store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.holder, "engine", None)  # every use of it raises AttributeError
    point(store, 2, digest(2), 2)
    server.poll()
    assert server.reasons()[0].startswith("unexpected AttributeError at ")
    assert server.live.find(TASK).number == 1


def test_an_alias_that_is_refused_is_read_once_and_not_by_every_request(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 2, digest(2), 1, alias="next")
    for _ in range(3):
        with pytest.raises(ArtifactError, match=r"movies@next: refused: .*truncated or altered"):
            server.live.find(f"{TASK}@next")
    put(store, tensors_key(TASK, digest(2)), a_prompt(WORDS[1]).tensors)
    with pytest.raises(ArtifactError):
        server.live.find(f"{TASK}@next")
    server.clock.now += LONGEST_WAIT
    assert server.live.find(f"{TASK}@next").number == 2


# ---------------------------------------------------------------- the store away


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


def test_a_store_that_refuses_this_server_is_told_once_and_stops_nothing(
    server: Server, store: Away, caplog: pytest.LogCaptureFixture
) -> None:
    store.away, store.fault = True, SettingsError("the store refuses the key")
    for _ in range(3):
        server.poll()
    assert (server.live.find(TASK).number, server.live.observe().trouble) == (1, "the store refuses the key")
    assert caplog.text.count("this server goes on with the versions that it has") == 1


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


# ---------------------------------------------------------------- reports


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
    watched = Live(store, holder, Memory(tmp_path), tmp_path, server="host", clock=clock)
    watched.poll()
    watched.find(f"{TASK}@3")
    assert holder.seen == [{digest(1)}, {digest(1), digest(3)}, {digest(1), digest(3)}]


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


# ---------------------------------------------------------------- two versions beside each other


def test_a_canary_answers_its_share_of_the_keys_and_keeps_them(server: Server, store: Away) -> None:
    keys = [f"user {number}" for number in range(1000)]
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=10))
    server.poll()
    few = {key for key in keys if server.live.find(TASK, key).number == 2}
    assert 70 < len(few) < 130
    assert few == {key for key in keys if server.live.find(TASK, key).number == 2}
    point(store, 1, digest(1), 3, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    assert few < {key for key in keys if server.live.find(TASK, key).number == 2}


def test_a_shadow_answers_nothing_and_is_named_to_be_asked(server: Server, store: Away) -> None:
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=0))
    server.poll()
    served = [server.live.find(TASK, str(key)) for key in range(200)]
    assert {one.number for one in served} == {1}
    assert {one.shadow.digest for one in served if one.shadow} == {digest(2)}
    server.holder.engine.score_labels([Question(digest(2), {"text": "good"})])


def test_a_canary_whose_bytes_do_not_hold_is_refused_whole(server: Server, store: Away) -> None:
    damage_tensors(store)
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=50))
    server.poll()
    assert "truncated or altered" in server.reasons()[0]
    assert {server.live.find(TASK, str(key)).number for key in range(100)} == {1}


def test_both_versions_are_reported_before_either_is_read(store: Away, tmp_path: Path) -> None:
    class Watched(OnEngine):
        def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
            seen.append({held.digest for report in read_server_reports(store) for held in report.holds})
            super().hold(artifact, members)

    seen: list[set[str]] = []
    point(store, 1, digest(1), 2, beside=Beside(version=2, digest=digest(2), percent=10))
    Live(store, Watched(), Memory(tmp_path), tmp_path, server="host", clock=Clock()).poll()
    assert seen == [{digest(1), digest(2)}] * 2


def test_a_canary_does_not_hide_the_version_before(server: Server, store: Away) -> None:
    point(store, 2, digest(2), 2)
    server.poll()
    point(store, 2, digest(2), 3, beside=Beside(version=3, digest=digest(3), percent=10))
    server.poll()
    server.poll(2 * holdings.RETAINED)
    assert server.holder.dropped == []


# ---------------------------------------------------------------- a day alone


def test_a_day_without_the_store_fails_no_request(server: Server, store: Away, tmp_path: Path) -> None:
    """MLflow, Prefect and the ledger's database are never asked. The clock passes a day, with a restart at noon."""
    store.away, answers, failures = True, 0, []
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
            else:
                answers += served.digest == digest(1)
    assert (answers, failures) == (4 * 1440, [])
    assert running.live.observe().refused == []
    [scores] = running.holder.engine.score_labels([Question(digest(1), {"text": "good film"})])
    assert len(scores) == 2
    store.away = False
    point(store, 2, digest(2), 2)
    running.poll(60)
    assert running.live.find(TASK).number == 2
