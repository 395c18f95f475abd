"""The ledger: numbering, the append-only history, leases, and what a damaged or busy database answers."""

import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_report, a_request, a_snapshot, a_task, a_verdict, an_artifact
from benchmarks.fixtures.s3_server import free_ports
from ptpipeline.errors import LeaseHeld, NotFound, PromotionConflict, ServiceUnavailable, SettingsError
from ptpipeline.records.base import now
from registry.ledger import database, engine, tables
from registry.ledger.database import put
from registry.ledger.lease import Lease, leased
from registry.ledger.ledger import Ledger, Move, Release
from tests import processes

TASKS, ALIASES, DIGESTS = ("mood", "topic"), ("production", "canary"), tuple(letter * 64 for letter in "abcdef")


def a_move(expected: int, version: int = 1, actor: str = "me") -> Move:
    return Move(task="mood", alias="production", version=version, actor=actor, reason="why", expected=expected)


class LedgerIsItsModel(RuleBasedStateMachine):
    """The ledger against lists: versions[task] holds digests by number, heads[task, alias] the versions so far."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(self.address())
        self.versions: dict[str, list[str]] = {task: [] for task in TASKS}
        self.moves: dict[tuple[str, str], list[int]] = {(task, alias): [] for task in TASKS for alias in ALIASES}

    def address(self) -> str:
        return f"sqlite:///{self.folder.name}/ledger.db"

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    @rule(task=st.sampled_from(TASKS), digest=st.sampled_from(DIGESTS))
    def register(self, task: str, digest: str) -> None:
        known = self.versions[task]
        if digest not in known:
            known.append(digest)
        assert self.ledger.add_version(task, digest).number == known.index(digest) + 1

    @rule(
        task=st.sampled_from(TASKS), alias=st.sampled_from(ALIASES), version=st.integers(1, 3), behind=st.integers(0, 1)
    )
    def promote(self, task: str, alias: str, version: int, behind: int) -> None:
        moves = self.moves[task, alias]
        move = Move(task=task, alias=alias, version=version, actor="me", reason="why", expected=len(moves) + behind)
        wrong = NotFound if version > len(self.versions[task]) else PromotionConflict if behind else None
        if wrong:
            with pytest.raises(wrong):
                self.ledger.append(move)
        else:
            assert self.ledger.append(move).previous == (moves[-1] if moves else None)
            moves.append(version)

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.ledger.url)

    @invariant()
    def histories_agree(self) -> None:
        for (task, alias), moves in self.moves.items():
            rows = self.ledger.history(task, alias)
            assert [(row.seq, row.version) for row in rows] == list(enumerate(moves, 1))
            assert self.ledger.head(task, alias) == (rows[-1] if rows else None)

    @invariant()
    def heads_and_versions_agree(self) -> None:
        assert {(head.task, head.alias): head.seq for head in self.ledger.heads()} == {
            key: len(moves) for key, moves in self.moves.items() if moves
        }
        assert {task: [v.digest for v in reversed(self.ledger.versions(task))] for task in TASKS} == self.versions


SOME = settings(max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))

TestLedgerIsItsModel = LedgerIsItsModel.TestCase
TestLedgerIsItsModel.settings = SOME


@pytest.mark.servers
def test_the_ledger_on_postgresql_is_its_model(postgres: Postgres, new_database: str) -> None:
    class OnPostgresql(LedgerIsItsModel):
        def address(self) -> str:
            return postgres.create_database(f"model-{uuid.uuid4().hex}", new_database)

    run_state_machine_as_test(OnPostgresql, settings=SOME)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE promotion SET actor = 'nobody'",
        "DELETE FROM promotion",
        "UPDATE version SET digest = 'b'",
        "DELETE FROM version",
        "DELETE FROM release",
    ],
)
def test_history_refuses_updates_and_deletions(ledger: Ledger, statement: str) -> None:
    ledger.add_version("mood", "a" * 64)
    ledger.append_release(Release(name="spring", actor="me", reason="why", versions={"mood": 1}, at=now()), [a_move(0)])
    with pytest.raises(DBAPIError, match="append-only"), ledger.database.writing() as connection:
        connection.execute(text(statement))


def test_durability_settings_hold(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path}/ledger.db").database.reading() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database at all, but long enough to look at" * 20)
    with pytest.raises(SettingsError, match="is no ledger"):
        Ledger(f"sqlite:///{tmp_path}/ledger.db")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hidden@db/ledger",
        "mysql://db/ledger?password=hidden",
        "postgresql://me:hidden@db",
        "postgresql://me:a@hidden@db/ledger",
        "postgresql://me:a@b:hidden@db/ledger",
        "postgresql://me:hidden@[::1/ledger",
        "postgresql://me:hidden@127.0.0.1:1/ledger?timeout=hidden",
        "sqlite://",
        "nonsense",
        "me:hidden@db",
    ],
)
def test_unsupported_addresses_are_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="PTP_LEDGER") as caught:
        Ledger(url)
    assert "hidden" not in str(caught.value)


def test_a_password_among_the_options_of_an_address_is_not_told() -> None:
    with pytest.raises(
        ServiceUnavailable, match=r"ledger postgresql.*@127\.0\.0\.1:1/ledger does not answer"
    ) as caught:
        Ledger("postgresql://me@127.0.0.1:1/ledger?password=hidden")
    assert "hidden" not in str(caught.value)


def test_an_unreachable_folder_is_transient(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServiceUnavailable, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.db")


def test_a_locked_database_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PRAGMAS", ("busy_timeout=50",))
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with sqlite3.connect(tmp_path / "ledger.db", isolation_level=None) as raw:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceUnavailable, match="database is locked"):
            ledger.add_version("mood", "a" * 64)


def test_an_unreachable_server_is_transient_and_keeps_its_password() -> None:
    with pytest.raises(ServiceUnavailable, match="does not answer") as caught:
        Ledger(f"postgresql://me:hidden@127.0.0.1:{free_ports(1)[0]}/ledger")
    assert "hidden" not in str(caught.value)


@pytest.mark.servers
@pytest.mark.parametrize("setting", ["default_transaction_read_only = on", "idle_in_transaction_session_timeout = 100"])
def test_a_server_that_ends_or_forbids_a_transaction_is_transient(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    ledger = Ledger(_configured(postgres, setting))
    monkeypatch.setattr(engine, "TIMEOUTS", "")
    bare = Ledger(ledger.url)
    with pytest.raises(ServiceUnavailable, match=r"read-only transaction|idle-in-transaction"):
        _write_slowly(bare)
    ledger.close()
    bare.close()


def _write_slowly(ledger: Ledger) -> None:
    with ledger.database.writing("slow") as connection:
        time.sleep(0.3)
        put(connection, tables.probe, {"store": "x"}, at=0.0)


@pytest.mark.servers
def test_a_stricter_default_of_the_server_changes_no_numbering(postgres: Postgres) -> None:
    url = _configured(postgres, "default_transaction_isolation = 'repeatable read'")
    first, second = Ledger(url), Ledger(url)
    with ThreadPoolExecutor(1) as pool:
        with first.database.writing("version mood") as connection:
            waiting = pool.submit(second.add_version, "mood", "b" * 64)
            assert wait([waiting], 0.3).not_done
            connection.execute(
                database.insert(connection, tables.version).values(task="mood", number=1, digest="a" * 64, at=now())
            )
        assert waiting.result().number == 2
    first.close()
    second.close()


def _configured(postgres: Postgres, setting: str) -> str:
    """A database with the ledger's tables, in which the server's default is that setting."""
    url = postgres.create_database(name := f"ledger-{uuid.uuid4().hex}")
    ledger = Ledger(url)
    with ledger.database.writing() as connection:
        connection.execute(text(f'ALTER DATABASE "{name}" SET {setting}'))
    ledger.close()
    return url


def test_turning_a_file_to_wal_waits_where_sqlite_does_not(tmp_path: Path) -> None:
    rival, mine = (
        sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, timeout=0, check_same_thread=False)
        for _ in range(2)
    )
    rival.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(1) as pool:
        turned = pool.submit(engine._execute, mine, "PRAGMA journal_mode=WAL")
        assert wait([turned], 0.1).not_done
        rival.execute("ROLLBACK")
        turned.result()
    assert mine.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_release_moves_all_or_none(ledger: Ledger) -> None:
    ledger.add_version("mood", "a" * 64)
    ledger.add_version("topic", "b" * 64)
    topic = Move(task="topic", alias="production", version=1, actor="me", reason="why", expected=1)
    spring = Release(name="spring", actor="me", reason="why", versions={"mood": 1, "topic": 1}, at=now())
    with pytest.raises(PromotionConflict, match="topic@production: expected seq 1"):
        ledger.append_release(spring, [a_move(0), topic])
    assert (ledger.heads(), ledger.releases()) == ([], [])
    moved = ledger.append_release(spring, [a_move(0), topic.model_copy(update={"expected": 0})])
    assert [(row.task, row.seq) for row in moved] == [("mood", 1), ("topic", 1)]
    assert ledger.releases() == [spring]


def test_a_release_never_changes(ledger: Ledger) -> None:
    spring = Release(name="spring", actor="me", reason="why", versions={"mood": 1}, at=now())
    ledger.append_release(spring, [])
    with pytest.raises(PromotionConflict, match=r"release 'spring' holds mood@1 already"):
        ledger.append_release(spring.model_copy(update={"versions": {"mood": 2}}), [])


def test_a_digest_being_collected_is_not_published(ledger: Ledger) -> None:
    with ledger.database.writing() as connection:
        put(
            connection,
            tables.tombstone,
            {"task": "mood", "digest": "a" * 64},
            owner="collector",
            expires_at=ledger.database.clock(connection) + 0.2,
            at=now(),
        )
    with pytest.raises(LeaseHeld, match="is being deleted by the garbage collection"):
        ledger.intend("mood", "a" * 64)
    time.sleep(0.25)
    ledger.intend("mood", "a" * 64)
    assert [intent.digest for intent in ledger.intents("mood")] == ["a" * 64]


def test_a_lease_has_one_holder(ledger: Ledger) -> None:
    other = Ledger(ledger.url)
    with leased(ledger.database, "mood@production", 30) as held:
        held.renew()
        with (
            pytest.raises(LeaseHeld, match="mood@production is being written by"),
            leased(other.database, "mood@production", 30),
        ):
            pass
    with leased(other.database, "mood@production", 30):
        pass


def test_an_expired_lease_is_lost(ledger: Ledger) -> None:
    with leased(ledger.database, "mood@production", 0.01) as stalled:
        time.sleep(0.02)
        with leased(ledger.database, "mood@production", 30), pytest.raises(LeaseHeld):
            stalled.renew()


@pytest.mark.servers
def test_a_lease_that_is_being_extended_is_not_taken(postgres: Postgres) -> None:
    url = postgres.create_database(f"ledger-{uuid.uuid4().hex}")
    mine, other = Ledger(url), Ledger(url)
    held = Lease(mine.database, "x", 0.05)
    held.renew()
    time.sleep(0.1)
    held.seconds = 60
    with ThreadPoolExecutor(1) as pool:
        with mine.database.writing() as connection:
            held.keep(connection)
            taken = pool.submit(Lease(other.database, "x", 60).renew)
            assert wait([taken], 0.3).not_done
        with pytest.raises(LeaseHeld):
            taken.result()
    mine.close()
    other.close()


def test_a_projection_never_goes_back(ledger: Ledger) -> None:
    ledger.add_version("mood", "a" * 64)
    first = ledger.append(a_move(0))
    second = ledger.append(a_move(1))
    for promotion in (second, first):
        ledger.record_applied("store", promotion)
    assert ledger.applied("store", "mood", "production") == (2, 1)


def test_stages_are_remembered_under_their_keys(ledger: Ledger) -> None:
    task = a_task()
    request, snapshot = a_request(task), a_snapshot(task)
    ledger.save_snapshot(snapshot)
    ledger.save_tuned(request.tuned)
    ledger.save_report(report := a_report(an_artifact(task), 0.9))
    ledger.save_verdict(verdict := a_verdict(task, report, None))
    assert ledger.snapshot_for("mood", "key") == ledger.snapshot("mood", snapshot.digest) == snapshot
    assert ledger.tuned("mood", request.tuned.training_key) == request.tuned
    assert ledger.report(report.evaluation_key) == ledger.report_of("mood", report.digest) == report
    assert ledger.verdict_for(verdict.gate_key) == ledger.verdict(verdict.verdict_digest()) == verdict
    assert ledger.tuned("topic", request.tuned.training_key) is None


def test_a_version_shows_its_newest_verdict(ledger: Ledger) -> None:
    task = a_task()
    report = a_report(an_artifact(task), 0.9)
    good, bad = a_verdict(task, report, None), a_verdict(task, report, "c" * 64, passed=False)
    shown = []
    for verdict in (good, bad, good):
        ledger.save_verdict(verdict)
        shown.append(ledger.add_version("mood", report.digest).passed)
    assert shown == [True, False, True]
    assert ledger.latest_verdict("mood", report.digest) == good


def test_versions_come_in_pages(ledger: Ledger) -> None:
    for digest in DIGESTS:
        ledger.add_version("mood", digest)
    assert [version.number for version in ledger.versions("mood", limit=2, offset=1)] == [5, 4]


# ---------------------------------------------------------------- several processes


def _promote(url: str, actor: str, rounds: int, outcomes: "Queue[str]") -> None:
    ledger, won, lost = Ledger(url), 0, 0
    for _ in range(rounds):
        head = ledger.head("mood", "production")
        try:
            ledger.append(a_move(head.seq if head else 0, actor=actor))
            won += 1
        except PromotionConflict:
            lost += 1
    outcomes.put(f"{actor} {won} {lost}")


FORKS = """
import multiprocessing, sys
from registry.ledger.ledger import Ledger

def look(ledger):
    for _ in range(20):
        assert ledger.version("mood", 1).digest == "a" * 64

ledger = Ledger(sys.argv[1])
look(ledger)
children = [multiprocessing.get_context("fork").Process(target=look, args=(ledger,)) for _ in range(3)]
for child in children:
    child.start()
look(ledger)
for child in children:
    child.join(60)
sys.exit(any(child.exitcode for child in children))
"""


def test_a_fork_does_not_share_the_connections(ledger: Ledger) -> None:
    ledger.add_version("mood", "a" * 64)
    done = subprocess.run(
        [sys.executable, "-c", FORKS, ledger.url], capture_output=True, text=True, check=False
    )  # no threads but its own
    assert done.returncode == 0, done.stderr


def test_racing_promoters_win_or_conflict(ledger: Ledger) -> None:
    ledger.add_version("mood", "a" * 64)
    outcomes = processes.Queue()
    racers = [processes.start(_promote, ledger.url, actor, 40, outcomes) for actor in ("ann", "bob")]
    tally = {actor: (int(won), int(lost)) for actor, won, lost in (outcomes.get(timeout=60).split() for _ in racers)}
    history = ledger.history("mood", "production")
    assert [row.seq for row in history] == list(range(1, len(history) + 1))
    assert {actor: sum(row.actor == actor for row in history) for actor in tally} == {
        actor: won for actor, (won, _) in tally.items()
    }
    assert all(won + lost == 40 for won, lost in tally.values())
