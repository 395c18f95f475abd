"""Events reach a real server: signed, after every crash, with one id however often; and no address is ever printed."""

import base64
import contextlib
import hashlib
import hmac
import html
import json
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import update

from benchmarks.fixtures.prompts import a_task, published
from flows.server import events
from flows.server.environment import client_environment
from flows.server.events import Sent, Target, describe, read_targets, send_events, send_what_waits, sign
from ptpipeline.errors import PromotionConflict, SettingsError
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from registry import failpoints
from registry.ledger import tables
from registry.ledger.approvals import Asked, ask
from registry.ledger.events import Event, find_backlog, record_event, take_due
from registry.ledger.ledger import Ledger, Move, Release
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote, rollback
from tests import processes
from tests.http_server import Quiet, serve

SECRET = base64.b64encode(bytes(range(32))).decode()
TASK = a_task()
ME = Cause("ann", "looks <right>")


class Receiver(NamedTuple):
    """What a real server was sent, and what it answers."""

    url: str
    received: list[tuple[dict[str, str], bytes]]
    answers: list[int]

    def contents(self) -> list[Any]:
        return [json.loads(body) for _, body in self.received]

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    received: list[tuple[dict[str, str], bytes]] = []
    answers: list[int] = []

    class Handler(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            answer = answers.pop(0) if answers else 200
            if answer == 0:  # whoever sent it dies before it hears that it arrived
                os.kill(int(self.headers["user-agent"].split("/")[-1]), signal.SIGKILL)
                return
            if 300 <= answer < 400:
                self.send_response(answer)
                self.send_header("location", f"{url}/elsewhere")
                self.end_headers()
                return
            self.answer(answer)

    with serve(Handler) as url:
        yield Receiver(url, received, answers)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = _open(tmp_path)
    yield opened
    opened.ledger.close()


def _open(folder: Path) -> Registry:
    return Registry(Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"))


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PTP_EVENT_OPS", f"{receiver.url}/hidden-path")
    monkeypatch.setenv("PTP_EVENT_OPS_SECRET", f"whsec_{SECRET}")
    return Settings(home=tmp_path, events="ops")


def make_due(registry: Registry) -> None:
    """As if the wait after a failed attempt were over."""
    with registry.ledger.database.writing() as connection:
        connection.execute(update(tables.delivery).values(due=0.0))


def send(settings: Settings, registry: Registry) -> Sent:
    return send_events(settings, registry.ledger.database)


def is_genuine(headers: dict[str, str], body: bytes) -> bool:
    """Whether the signature is right, written from the specification alone."""
    content = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.new(base64.b64decode(SECRET), content, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(expected, one.split(",")[1]) for one in headers["webhook-signature"].split(" "))


# ---------------------------------------------------------------- what arrives


def test_promotion_and_rollback_arrive_signed(registry: Registry, settings: Settings, receiver: Receiver) -> None:
    first = promote(registry, TASK, published(registry, TASK, 1), ME)
    second = promote(registry, TASK, published(registry, TASK, 2, first.digest), ME)
    rollback(registry, TASK.name, Cause("bob", "complaints"))
    assert send(settings, registry) == Sent(3, {})
    assert all(is_genuine(headers, body) for headers, body in receiver.received)
    assert not is_genuine(receiver.received[0][0], receiver.received[1][1])
    kinds = [content["type"] for content in receiver.contents()]
    assert kinds == ["promotion", "promotion", "rollback"]
    assert receiver.contents()[1]["data"] == {
        "task": "mood",
        "alias": "production",
        "seq": 2,
        "actor": "ann",
        "reason": "looks <right>",
        "verdict": second.verdict,
        "override": False,
        "release": None,
        "from": 1,
        "to": 2,
    }
    assert receiver.contents()[2]["text"] == "mood@production: version 2 -> 1, rolled back by bob: complaints"
    assert send(settings, registry) == Sent(0, {})


def test_a_failed_gate_and_a_wish_for_approval_arrive(
    registry: Registry, settings: Settings, receiver: Receiver
) -> None:
    published(registry, TASK, 1, kind="failed")
    published(registry, TASK, 1, kind="failed")  # the next night finds the same verdict
    version = registry.ledger.version("mood", published(registry, TASK, 2))
    ask(registry.ledger.database, Asked(version, "b" * 64, "carl", 7))
    assert send(settings, registry).delivered == 2
    failed, wanted = receiver.contents()
    assert (failed["type"], failed["data"]["to"]) == ("gate_failed", 1)
    assert failed["text"] == "mood@1 failed its gate: minimum: 0.50, required >= 0.80"
    assert (wanted["type"], wanted["data"]["actor"], wanted["data"]["to"]) == ("approval_wanted", "carl", 2)
    assert wanted["text"].startswith("mood@2 waits for approval until 20")


def test_a_signature_is_that_of_the_specification() -> None:
    """As the package standardwebhooks 1.1.0 signs it."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_slack_gets_text_that_mentions_nobody(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTP_EVENT_OPS", f"slack:{receiver.url}/services/T0/B0/x")
    promote(registry, TASK, published(registry, TASK, 1), Cause("ann", "<!channel> & all"))
    send(settings, registry)
    text = "mood@\u200bproduction: version none -&gt; 1, promoted by ann: &lt;!channel&gt; &amp; all"
    assert receiver.contents() == [{"text": text}]


FORGED = "fine\n@everyone <@123> [click](https://example.com)\x1b[2J\u202e mood@3"


@pytest.mark.parametrize("kind", ["slack:http", "apprise:json"])
def test_words_of_people_forge_neither_lines_nor_mentions_nor_links(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("PTP_EVENT_OPS", f"{kind}:{receiver.url.removeprefix('http:')}/path")
    promote(registry, TASK, published(registry, TASK, 1), Cause("ann", FORGED))
    assert send(settings, registry) == Sent(1, {})
    [content] = receiver.contents()
    text = html.unescape(content.get("text") or content["message"])
    assert text.endswith(
        "ann: fine @\u200beveryone <@\u200b123> [click]\u200b(https://example.com)\\x1b[2J\\u202e mood@3"
    )


def test_words_of_people_are_no_html_in_a_mail(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{receiver.url.replace('http:', 'json:')}/path?format=html"  # the form of mails, unless they say another
    monkeypatch.setenv("PTP_EVENT_OPS", f"apprise:{address}")
    promote(registry, TASK, published(registry, TASK, 1), Cause("ann", '<a href="https://example.com">sign in</a>'))
    send(settings, registry)
    [content] = receiver.contents()
    assert "<a" not in content["message"]
    assert "&lt;a" in content["message"]


def test_signed_events_hold_what_people_wrote_and_one_line_of_text(
    registry: Registry, settings: Settings, receiver: Receiver
) -> None:
    promote(registry, TASK, published(registry, TASK, 1), Cause("ann", FORGED))
    send(settings, registry)
    [content] = receiver.contents()
    assert content["data"]["reason"] == FORGED
    assert content["text"].endswith("ann: fine @everyone <@123> [click](https://example.com)\\x1b[2J\\u202e mood@3")


def test_apprise_reaches_other_services(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTP_EVENT_OPS", f"apprise:{receiver.url.replace('http:', 'json:')}/path")
    promote(registry, TASK, published(registry, TASK, 1), ME)
    assert send(settings, registry) == Sent(1, {})
    [content] = receiver.contents()
    assert content["title"] == "ptpipeline: promotion"
    assert "promoted by ann" in content["message"]


def test_a_service_of_apprise_whose_answer_does_not_end_takes_no_memory_and_little_time(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MEMORY", 2**27)
    sent: list[int] = []

    class Endless(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while sum(sent) < 2**30:
                    sent.append(self.wfile.write(bytes(2**20)))

    promote(registry, TASK, published(registry, TASK, 1), ME)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serve(Endless) as url:
        monkeypatch.setenv("PTP_EVENT_OPS", f"apprise:{url.replace('http:', 'json:')}/path")
        failures = send(Settings(home=tmp_path, events="ops"), registry).failures
    assert failures == {"ops": "did not take the event, as apprise says"}
    assert sum(sent) < 2**29
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # kB


def test_a_service_of_apprise_that_answers_byte_by_byte_is_left(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "APPRISE_SECONDS", 3.0)
    left = threading.Event()

    class Slow(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            try:
                while not left.wait(0.1):
                    self.wfile.write(b" ")
            except OSError:
                left.set()

    promote(registry, TASK, published(registry, TASK, 1), ME)
    with serve(Slow) as url:
        monkeypatch.setenv("PTP_EVENT_OPS", f"apprise:{url.replace('http:', 'json:')}/path")
        failures = send(Settings(home=tmp_path, events="ops"), registry).failures
        assert left.wait(5)  # nothing of ours reads any more
    assert failures == {"ops": "does not answer within 3 s"}


@pytest.mark.parametrize(
    ("percent", "words"),
    [(10, "version 2 beside version 1, at 10% of its requests, by"), (0, "version 2 beside version 1, as shadow, by")],
)
def test_two_versions_beside_each_other_are_told_in_a_line(percent: int, words: str) -> None:
    record = {"task": "mood", "alias": "production", "actor": "ann", "reason": "why", "to": 1}
    event = Event(1, "evt_1", "promotion", record | {"beside": {"version": 2, "percent": percent}}, "2026-01-01", 0.0)
    assert describe(event) == f"mood@production: {words} ann: why"


# ---------------------------------------------------------------- crashes and targets that do not answer


def _promote_and_die(folder: Path) -> None:
    failpoints.watch(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == "promotion committed" else None)
    promote(_open(folder), TASK, 1, ME)


def test_what_was_committed_by_a_killed_process_is_sent(
    registry: Registry, settings: Settings, receiver: Receiver, tmp_path: Path
) -> None:
    published(registry, TASK, 1)
    killed = processes.start(_promote_and_die, tmp_path)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert send(settings, registry).delivered == 1
    assert receiver.contents()[0]["data"]["to"] == 1


def test_what_was_not_committed_is_not_sent(registry: Registry, settings: Settings, receiver: Receiver) -> None:
    topic = a_task("topic")
    versions = {TASK.name: published(registry, TASK, 1), "topic": published(registry, topic, 1)}
    release = Release(name="spring", actor="ann", reason="why", versions=versions, at="2026-01-01T00:00:00+00:00")
    moves = [
        Move(task=name, alias="production", version=1, actor="ann", reason="why", expected=expected)
        for name, expected in ((TASK.name, 0), ("topic", 4))
    ]
    with pytest.raises(PromotionConflict, match="topic@production"):
        registry.ledger.append_release(release, moves)
    assert send(settings, registry) == Sent(0, {})
    assert receiver.received == []


def _send_and_die(settings: Settings, folder: Path) -> None:
    from flows.server import events

    post = events._post

    def post_as_this_process(target: Target, body: bytes, headers: dict[str, str]) -> None:
        post(target, body, headers | {"user-agent": f"ptpipeline/{os.getpid()}"})

    events._post = post_as_this_process
    send_events(settings, _open(folder).ledger.database)


def test_what_arrived_at_the_moment_of_a_crash_arrives_again_with_its_id(
    registry: Registry, settings: Settings, receiver: Receiver, tmp_path: Path
) -> None:
    promote(registry, TASK, published(registry, TASK, 1), ME)
    receiver.answers.append(0)
    killed = processes.start(_send_and_die, settings, tmp_path)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert send(settings, registry) == Sent(0, {})  # it waits
    make_due(registry)
    assert send(settings, registry) == Sent(1, {})
    assert len(receiver.received) == 2
    assert len(set(receiver.ids())) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [(500, "answered 500"), (404, "answered 404"), (307, "answered 307, and redirects are not followed")],
)
def test_what_is_not_taken_is_tried_again(
    registry: Registry, settings: Settings, receiver: Receiver, answer: int, why: str
) -> None:
    promote(registry, TASK, published(registry, TASK, 1), ME)
    receiver.answers.append(answer)
    assert send(settings, registry) == Sent(0, {"ops": why})
    assert find_backlog(registry.ledger.database, "ops").events == 1
    make_due(registry)
    assert send(settings, registry) == Sent(1, {})
    assert (len(receiver.received), len(set(receiver.ids()))) == (2, 1)
    assert find_backlog(registry.ledger.database, "ops").events == 0


def test_events_that_are_refused_silence_no_others(registry: Registry, settings: Settings, receiver: Receiver) -> None:
    for number in range(13):
        record_event(registry.ledger.database, "stale_task", {"reason": f"odd {number}"})
    record_event(registry.ledger.database, "stale_task", {"reason": "good"})
    receiver.answers.extend([413] * 13)
    assert send(settings, registry) == Sent(1, {"ops": "answered 413"})
    assert receiver.contents()[-1]["data"]["reason"] == "good"
    assert find_backlog(registry.ledger.database, "ops").events == 13


@pytest.mark.parametrize(
    ("answer", "asked"),
    [*((status, 1) for status in (401, 403, 404, 408, 410, 429, 500)), *((status, 2) for status in (400, 413, 422))],
)
def test_what_is_wrong_with_a_target_ends_this_try_and_what_is_wrong_with_an_event_does_not(
    registry: Registry, settings: Settings, receiver: Receiver, answer: int, asked: int
) -> None:
    for reason in ("one", "two"):
        record_event(registry.ledger.database, "stale_task", {"reason": reason})
    receiver.answers.extend([answer] * 2)
    assert send(settings, registry) == Sent(0, {"ops": f"answered {answer}"})
    assert len(receiver.received) == asked


def test_a_target_has_its_time_and_no_more(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TARGET_SECONDS", 0.0)
    record_event(registry.ledger.database, "stale_task", {"reason": "old"})
    assert send(settings, registry) == Sent(0, {})
    assert receiver.received == []


def test_a_target_on_this_machine_is_reached_beside_the_proxy(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    record_event(registry.ledger.database, "stale_task", {"reason": "old"})
    assert send(settings, registry) == Sent(1, {})
    assert len(receiver.received) == 1


def test_apprise_follows_no_redirect(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTP_EVENT_OPS", f"apprise:{receiver.url.replace('http:', 'json:')}/path")
    record_event(registry.ledger.database, "stale_task", {"reason": "old"})
    receiver.answers.append(307)
    assert send(settings, registry) == Sent(0, {"ops": "did not take the event, as apprise says"})
    assert len(receiver.received) == 1


def test_a_target_that_sends_a_byte_now_and_then_holds_nobody(
    registry: Registry, settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "SECONDS", 1.0)
    over = threading.Event()

    class Trickling(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
                    self.wfile.write(bytes([byte]))
                    if over.wait(0.2):
                        return

    with serve(Trickling) as url:
        monkeypatch.setenv("PTP_EVENT_SLOW", f"{url}/hidden-path")
        monkeypatch.setenv("PTP_EVENT_SLOW_SECRET", SECRET)
        both = settings.model_copy(update={"events": "slow, ops"})
        record_event(registry.ledger.database, "stale_task", {"reason": "old"})
        began = time.monotonic()
        try:
            assert send(both, registry) == Sent(1, {"slow": "does not answer within 1 s"})
            assert time.monotonic() - began < 10
        finally:
            over.set()


def test_waits_grow_up_to_an_hour(registry: Registry) -> None:
    database = registry.ledger.database
    record_event(database, "stale_task", {"reason": "old"})
    waits = []
    for _ in range(9):
        assert take_due(database, "ops")
        assert take_due(database, "ops") is None
        with database.reading() as connection:
            [row] = connection.execute(tables.delivery.select()).all()
            waits.append(round(row.due - database.clock(connection)))
        make_due(registry)
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_target_that_is_away_delays_no_other(
    registry: Registry,
    settings: Settings,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PTP_EVENT_AWAY", "http://127.0.0.1:9/hidden-path")
    monkeypatch.setenv("PTP_EVENT_AWAY_SECRET", SECRET)
    both = settings.model_copy(update={"events": "away, ops"})
    promote(registry, TASK, published(registry, TASK, 1), ME)
    with caplog.at_level(logging.DEBUG):
        assert send(both, registry) == Sent(1, {"away": "does not answer (ConnectError)"})
    assert "target away of events" in caplog.text
    assert "hidden-path" not in caplog.text
    assert SECRET not in caplog.text
    assert "hidden-path" not in repr(read_targets(both))
    assert len(receiver.received) == 1


def test_a_new_target_is_told_what_happened_within_a_day(registry: Registry) -> None:
    old = {"id": "evt_old", "kind": "promotion", "record": {}, "at": "2026-01-01T00:00:00+00:00"}
    with registry.ledger.database.writing() as connection:
        connection.execute(tables.event.insert().values(**old))
    record_event(registry.ledger.database, "stale_task", {"reason": "new"})
    event = take_due(registry.ledger.database, "ops")
    assert isinstance(event, Event)
    assert event.record == {"reason": "new"}
    assert take_due(registry.ledger.database, "ops") is None


def test_an_event_of_which_there_is_one_is_written_once(registry: Registry) -> None:
    for since in ("monday", "monday", "tuesday"):
        record_event(registry.ledger.database, "stale_task", {"reason": since}, once=["mood", since])
    with registry.ledger.database.reading() as connection:
        assert len(connection.execute(tables.event.select()).all()) == 2


# ---------------------------------------------------------------- declared targets


@pytest.mark.parametrize(
    "address",
    [
        "",
        "hidden",
        "http://example.com/hidden",
        "ftp://example.com/hidden",
        "https://user:hidden@example.com/",
        "https:///hidden",
        "https://example.com:99999/hidden",
        "https://[hidden/",
        "https://example.com:0/hidden",
        "https://example.com/#hidden",
        "https://example.com/\thidden",
        "https://example.com/hidden\x7f",
        "https://example.com/hidden-é",
        "slack:http://example.com/hidden",
        "apprise:nosuch://hidden",
    ],
)
def test_a_wrong_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("PTP_EVENT_TEAM_CHAT", address)
    monkeypatch.setenv("PTP_EVENT_TEAM_CHAT_SECRET", SECRET)
    with pytest.raises(SettingsError, match="PTP_EVENT_TEAM_CHAT: ") as refused:
        read_targets(Settings(events="team-chat"))
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "whsec_hidden", "whsec_" + base64.b64encode(b"hidden").decode()])
def test_a_wrong_secret_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("PTP_EVENT_OPS", "https://example.com/")
    monkeypatch.setenv("PTP_EVENT_OPS_SECRET", secret)
    with pytest.raises(SettingsError, match="PTP_EVENT_OPS_SECRET: expected `whsec_` and 24 to 64 bytes") as refused:
        read_targets(Settings(events="ops"))
    assert not secret or secret not in str(refused.value)


@pytest.mark.parametrize(("count", "taken"), [(23, False), (24, True), (64, True), (65, False)])
def test_a_secret_has_24_to_64_bytes(monkeypatch: pytest.MonkeyPatch, count: int, taken: bool) -> None:
    monkeypatch.setenv("PTP_EVENT_OPS", "https://example.com/")
    monkeypatch.setenv("PTP_EVENT_OPS_SECRET", "whsec_" + base64.b64encode(bytes(count)).decode())
    with contextlib.nullcontext() if taken else pytest.raises(SettingsError, match="24 to 64 bytes"):
        assert read_targets(Settings(events="ops"))[0].secret == bytes(count)


@pytest.mark.parametrize("names", ["Ops", "ops,ops", "a b"])
def test_a_wrong_name_is_refused(names: str) -> None:
    with pytest.raises(SettingsError, match="PTP_EVENTS: "):
        read_targets(Settings(events=names))


def test_a_target_that_is_declared_wrongly_ends_nothing_that_was_done_before(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    send_what_waits(Settings(events="Ops"), registry.ledger.database)
    assert "no event was sent: PTP_EVENTS: 'Ops'" in caplog.text


def test_without_targets_nothing_is_sent(registry: Registry) -> None:
    record_event(registry.ledger.database, "stale_task", {})
    assert send(Settings(), registry) == Sent(0, {})


def test_runs_of_the_stack_know_the_targets(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_EVENTS", "ops")
    environment = client_environment(settings.home, "http://127.0.0.1:1/api")
    assert environment["PTP_EVENTS"] == "ops"
    assert environment["PTP_EVENT_OPS_SECRET"] == f"whsec_{SECRET}"
