"""A server answers with what the pointers show, as soon as all of it holds, and with what it had until then."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.faults import FaultProxy
from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.errors import ArtifactError, NotFound, PtpError, ServiceUnavailable, SettingsError
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.base import digest_of
from ptpipeline.serving import live as live_module
from ptpipeline.serving.engine import Question
from ptpipeline.serving.live import EVERY, Live, choose_pause
from ptpipeline.serving.pointers import DISCOVER
from ptpipeline.serving.refusals import LONGEST_WAIT
from ptpipeline.storage import FolderStore, ObjectStore, S3Store, Stored
from ptpipeline.storage.keys import pointer_key, tensors_key
from tests.serving.registered import TASK, Clock, OnEngine, a_prompt, add_version, point, put

WORDS = (" yes", " the film", " bad", " good")


class Away(FolderStore):
    """A store that can be away."""

    away = False
    fault: PtpError = ServiceUnavailable("the store does not answer")
    withheld: Collection[str] = ()

    def read(self, key: str) -> Stored:
        if key in self.withheld:
            raise SettingsError("this identity may not read it")
        if self.away:
            raise self.fault
        return super().read(key)


class Server:
    """One server over a store, with a clock that tests move."""

    def __init__(self, store: ObjectStore, home: Path, name: str = "host") -> None:
        self.clock, self.holder = Clock(), OnEngine()
        self.live = Live(store, self.holder, home, server=name, clock=self.clock)

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


@pytest.mark.parametrize(("every", "several"), [(0.02, True), (30.0, False)])
def test_the_store_is_looked_at_as_often_as_a_server_is_told(
    store: Away, tmp_path: Path, every: float, several: bool
) -> None:
    live = Live(store, OnEngine(), tmp_path / "home", every=every)
    live.start()
    point(store, 2, digest(2), 2)
    until = time.monotonic() + (20 if several else 0.3)
    while live.find(TASK).number == 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert (live.find(TASK).number == 2) == several
    live.stop()


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


@pytest.mark.servers
def test_aliases_are_found_without_a_list_of_all_that_tasks_hold(
    s3_server: S3Server, s3_store: S3Store, tmp_path: Path
) -> None:
    """A task has a dozen objects more after each night: to list them all took a minute where there was one of looks."""
    point(s3_store, 1, add_version(s3_store, a_prompt(" film"), 1), 1)
    with FaultProxy(s3_server.endpoint) as proxy:
        following = Live(S3Store(s3_store.bucket, endpoint=proxy.endpoint), OnEngine(), tmp_path, clock=Clock())
        following.poll()
    assert following.find(TASK).number == 1
    lists = [parse_qs(urlsplit(request.path).query) for request in proxy.requests if "list-type" in request.path]
    assert [(asked["prefix"], asked.get("delimiter")) for asked in lists] == [
        (["prompts/"], ["/"]),
        ([f"prompts/{TASK}/aliases/"], None),
    ]


def test_names_that_mean_nothing_are_remembered_up_to_a_bound(
    server: Server, store: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "MISSED", 1)
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
    following = Live(store, Asked(), tmp_path, clock=Clock())
    following.poll()
    assert following.find(f"{TASK}@zenith").number == 4


def test_a_folder_that_went_is_a_store_that_is_away(server: Server, store: Away) -> None:
    store.root.rename(store.root.with_name("unmounted"))
    server.poll(DISCOVER)
    assert "the folder is gone" in server.live.observe().trouble
    assert server.live.observe().refused == []
    assert server.live.find(TASK).number == 1
    with pytest.raises(ServiceUnavailable):
        server.live.find(f"{TASK}@2")


def test_a_server_that_starts_before_its_stores_disk_is_mounted_begins_no_second_store(
    server: Server, store: Away, tmp_path: Path
) -> None:
    away = store.root.rename(store.root.with_name("unmounted"))
    again = Server(FolderStore(store.root), tmp_path / "home")
    again.live.hold_last_good()
    again.poll()
    assert "is its disk mounted?" in again.live.observe().trouble
    assert (again.live.find(TASK).number, store.root.exists()) == (1, False)
    away.rename(store.root)
    again.poll(DISCOVER)
    assert again.live.observe().trouble == ""


def test_a_server_of_some_tasks_serves_no_other(store: Away, tmp_path: Path) -> None:
    other = add_version(store, a_prompt(" dull", task="books"), 1)
    point(store, 1, other, 1, task="books")
    some = Live(store, OnEngine(), tmp_path, tasks=["books"], clock=Clock())
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
    again = Live(store, OnEngine(), tmp_path / "home", server="host", tasks=["books"], clock=Clock())
    again.hold_last_good()
    assert [row.task for row in again.observe().promotions] == ["books"]


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


def test_a_pointer_that_the_server_may_not_read_keeps_nobody_from_the_others(server: Server, store: Away) -> None:
    put(store, pointer_key("other", "production"), b"{}")
    store.withheld = {pointer_key("other", "production")}
    point(store, 2, digest(2), 2)
    server.poll(DISCOVER)
    assert server.live.find(TASK).number == 2
    assert server.reasons() == ["this identity may not read it"]
    assert server.live.observe().trouble == ""


def test_a_server_that_may_read_no_pointer_says_so(server: Server, store: Away) -> None:
    store.withheld = {pointer_key(TASK, "production")}
    server.poll()
    assert server.live.find(TASK).number == 1
    assert server.live.observe().trouble == "this identity may not read it"


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


@pytest.mark.parametrize(
    ("took", "pause"),
    [(0.0, 2.0), (0.5, 1.5), (1.0, 1.0), (1.5, 1.5), (3.0, 3.0), (60.0, 4.0)],
)
def test_looks_begin_at_even_distances_unless_they_take_half_of_the_time(took: float, pause: float) -> None:
    assert choose_pause(2.0, took) == pause
