"""Migrations: every earlier schema with data in every table, on both databases; opened by several at once; killed in
the middle.
"""

import json
import os
import signal
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_request, a_snapshot, a_task, an_artifact
from ptpipeline.errors import SettingsError
from ptpipeline.gate.spending import Budget, look_at, question_of, reveal_digest
from ptpipeline.records.verdicts import Reveal, Verdict
from ptpipeline.storage import FolderStore
from registry.ledger import database, tables
from registry.ledger.ledger import Ledger, Move
from registry.ledger.looks import take_look
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from registry.versions.publish import stage
from tests import ledgers, processes

TASK = a_task("mood")
FIRST, SECOND = an_artifact(TASK, 1), an_artifact(TASK, 2)
AT = "2026-01-02T03:04:05.678901+00:00"


def _rows() -> dict[str, list[dict[str, Any]]]:
    """Rows of every table of the first schema: two versions, one promoted and rolled back to, both judged."""
    requests = [a_request(TASK, 1), a_request(TASK, 2, FIRST.digest)]
    verdicts = [request.verdict for request in requests if request.verdict]
    who = [{"task": "mood", "digest": artifact.digest} for artifact in (FIRST, SECOND)]
    first, second = (verdict.verdict_digest() for verdict in verdicts)
    moves = [(1, 1, None, first), (2, 2, 1, second), (3, 1, 2, first)]
    return {
        "version": [{**row, "number": number, "at": AT} for number, row in enumerate(who, 1)],
        "promotion": [
            {
                **who[version - 1],
                "alias": "production",
                "seq": seq,
                "version": version,
                "previous": previous,
                "actor": "Zoë",
                "reason": 'it\'s "better"',
                "verdict": verdict,
                "at": AT.replace("05.67", f"{seq:02}.67"),
            }
            for seq, version, previous, verdict in moves
        ],
        "intent": [{"task": "mood", "digest": "a" * 64, "at": AT}],
        "publication": [
            {**row, "record": {"tuned": request.tuned.to_json(), "commit": "c0ffee", "plots": {}}, "at": AT}
            for row, request in zip(who, requests, strict=True)
        ],
        "projection": [
            {"target": target, "task": "mood", "alias": "production", "applied_seq": 3, "applied_version": 1, "at": AT}
            for target in ("store", "mlflow")
        ],
        "lease": [{"name": "project mood@production", "owner": "gone", "expires_at": 1.5}],
        "snapshot": [
            {
                "task": "mood",
                "source_key": "key",
                "digest": a_snapshot(TASK).digest,
                "record": a_snapshot(TASK).to_json(),
                "at": AT,
            }
        ],
        "training": [
            {"task": "mood", "training_key": request.tuned.training_key, "record": request.tuned.to_json(), "at": AT}
            for request in requests
        ],
        "evaluation": [
            {**row, "evaluation_key": request.report.evaluation_key, "record": request.report.to_json(), "at": AT}
            for row, request in zip(who, requests, strict=True)
            if request.report
        ],
        "verdict": [_verdict(verdict) for verdict in verdicts],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict.verdict_digest(),
        "gate_key": verdict.gate_key,
        "task": "mood",
        "digest": verdict.digest,
        "passed": verdict.passed,
        "record": verdict.to_json(),
        "at": AT,
    }


def _rows_of_the_second() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the second schema, and some of the tables that came with it."""
    rows = _rows()
    return rows | {
        "promotion": [row | {"override": False, "release": None} for row in rows["promotion"]],
        "release": [{"name": "base-2", "actor": "Zoë", "reason": "new base", "versions": {"mood": 1}, "at": AT}],
        "tombstone": [{"task": "mood", "digest": "c" * 64, "owner": "gone", "expires_at": 2.5, "at": AT}],
        "attempt": [{"task": "mood", "alias": "production", "digest": FIRST.digest, "owner": "gone", "at": AT}],
        "sighting": [{"task": "mood", "alias": "production", "seq": 3, "found": SECOND.digest, "seen_at": 3.5}],
        "probe": [{"store": "s3://prompts", "at": 4.5}],
    }


def _rows_of_the_third() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the third schema, and the tables that came with it."""
    return _rows_of_the_second() | {
        "test_set": [{"task": "mood", "number": 1, "rows": b"8 bytes.", "at": AT}],
        "look": [{"task": "mood", "test_set": 1, "number": 1, "question": "e" * 64, "at": AT}],
    }


def _rows_of_the_fourth() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the fourth schema, and the table that came with it."""
    rows = _rows_of_the_third()
    return rows | {
        "promotion": [row | {"chain": None} for row in rows["promotion"]],
        "lease": [row | {"boot": "an-earlier-start", "generation": 2} for row in rows["lease"]],
        "secret": [{"name": "checkpoints", "value": "f" * 64, "at": AT}],
    }


def _rows_of_the_fifth() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the fifth schema."""
    rows = _rows_of_the_fourth()
    return rows | {"lease": [row | {"gang": None} for row in rows["lease"]]}


def _rows_of_the_sixth() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the sixth schema, and the tables that came with it."""
    request = {"task": "mood", "number": 1, "version": 2, "digest": SECOND.digest, "verdict": "d" * 64}
    decision = {"task": "mood", "request": 1, "number": 1, "approved": True, "actor": "ann", "key": None}
    return _rows_of_the_fifth() | {
        "approval_request": [request | {"started_by": "carl", "asked": 1.5, "expires": 2.5, "at": AT}],
        "approval": [decision | {"reason": "looks right", "at": AT}],
        "event": [{"seq": 1, "id": "evt_1", "kind": "promotion", "record": {"to": 2}, "at": AT}],
        "judged": [{"task": "mood", "at": AT}],
        "subscriber": [{"target": "ops", "since": 1, "at": AT}],
        "delivery": [{"event": 1, "target": "ops", "attempts": 2, "due": 3.5, "delivered": AT}],
    }


def _rows_of_the_seventh() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the seventh schema, and the tables that came with it."""
    night = {
        "id": "n",
        "flow": "nightly",
        "cause": "ann",
        "page": None,
        "started": AT,
        "ended": AT,
        "state": "Completed",
    }
    line = {"night": "n", "task": "mood", "status": "promoted", "reason": "new rows", "verdict": "passed", "version": 2}
    costs = {"rows": 100, "tokens": 2000, "seconds": 1.5, "processor_seconds": 2.5, "at": AT}
    return _rows_of_the_sixth() | {"night": [night], "night_task": [line | costs]}


def _rows_of_the_eighth() -> dict[str, list[dict[str, Any]]]:
    """The same rows in the eighth schema."""
    rows = _rows_of_the_seventh()
    return rows | {"promotion": [row | {"beside": None} for row in rows["promotion"]]}


ROWS = {
    "0001": _rows(),
    "0002": _rows_of_the_second(),
    "0003": _rows_of_the_third(),
    "0004": _rows_of_the_fourth(),
    "0005": _rows_of_the_fifth(),
    "0006": _rows_of_the_sixth(),
    "0007": _rows_of_the_seventh(),
    "0008": _rows_of_the_eighth(),
}  # revision -> rows of all of its tables
JSON_COLUMNS = ("record", "versions")
FLAGS = ("passed", "override", "approved")


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def _revisions() -> list[str]:
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


def _engine(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg") if url.startswith("postgresql") else url)


def _written(url: str, revision: str) -> str:
    """A ledger of that schema with its rows, by plain SQL."""
    engine = _engine(url)
    with engine.begin() as connection:
        command.upgrade(_config(connection), revision)
        for table, rows in ROWS[revision].items():
            for row in rows:
                values = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}
                marks = ", ".join(
                    f"CAST(:{name} AS JSON)"
                    if name in JSON_COLUMNS and engine.dialect.name == "postgresql"
                    else f":{name}"
                    for name in values
                )
                connection.execute(text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"), values)
        if engine.dialect.name == "postgresql" and "event" in ROWS[revision]:  # its numbers go on behind these
            connection.execute(text("SELECT setval(pg_get_serial_sequence('event', 'seq'), max(seq)) FROM event"))
    engine.dispose()
    return url


def _kept(url: str, revision: str) -> dict[str, list[dict[str, Any]]]:
    """What the tables of that schema hold now, in its columns."""
    engine, found = _engine(url), {}
    with engine.begin() as connection:
        for table, rows in ROWS[revision].items():
            stored = connection.execute(text(f"SELECT {', '.join(rows[0])} FROM {table}")).mappings()
            found[table] = [{name: _plain(name, value) for name, value in row.items()} for row in stored]
    engine.dispose()
    return {table: sorted(rows, key=repr) for table, rows in found.items()}


def _plain(name: str, value: Any) -> Any:
    if name in JSON_COLUMNS and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, bytes):
        return value.hex()
    return bool(value) if name in FLAGS else value


def _expected(revision: str) -> dict[str, list[dict[str, Any]]]:
    return {
        table: sorted(json.loads(json.dumps(rows, default=bytes.hex)), key=repr)
        for table, rows in ROWS[revision].items()
    }


def _schema(file: Path) -> set[tuple[str, str]]:
    """What stands in a SQLite file: the names and statements of its tables, indices and triggers, and its revision."""
    with closing(sqlite3.connect(file)) as connection:
        revisions = connection.execute("SELECT 'revision', version_num FROM alembic_version").fetchall()
        return {*connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"), *revisions}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield server.create_database(f"ledger-{uuid.uuid4().hex}")


def test_every_earlier_schema_has_rows_here() -> None:
    assert list(ROWS) == _revisions()[:-1]


def test_rows_fill_every_table(url: str) -> None:
    for revision in list(ROWS)[-1:]:
        engine = _engine(_written(url, revision))
        assert set(inspect(engine).get_table_names()) - {"alembic_version"} == set(ROWS[revision])
        assert all(
            {column["name"] for column in inspect(engine).get_columns(table)} == set(rows[0])
            for table, rows in ROWS[revision].items()
        )
        engine.dispose()


def test_new_ledgers_of_all_tests_hold_what_the_migrations_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(f"sqlite:///{tmp_path}/migrated.db").close()
    monkeypatch.setattr(command, "upgrade", ledgers.upgrade)
    for name in ("first", "second"):  # the first in a process makes the statements of the second
        Ledger(f"sqlite:///{tmp_path}/{name}.db").close()
    migrated, *others = (_schema(tmp_path / f"{name}.db") for name in ("migrated", "first", "second"))
    assert [migrated, migrated] == others
    assert len(migrated) > len(tables.metadata.tables)


@pytest.mark.parametrize("revision", ROWS)
def test_opening_an_earlier_schema_keeps_every_row(url: str, revision: str) -> None:
    ledger = Ledger(_written(url, revision))
    with ledger.database.reading() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == tables.SCHEMA
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    assert _kept(url, revision) == _expected(revision)
    assert [(row.seq, row.version, row.actor, row.override, row.release) for row in ledger.history("mood")] == [
        (seq, version, "Zoë", False, None) for seq, version in ((1, 1), (2, 2), (3, 1))
    ]
    assert [(version.number, version.passed) for version in ledger.versions("mood")] == [(2, True), (1, True)]
    ledger.close()


@pytest.mark.parametrize("revision", ROWS)
def test_an_upgraded_history_is_append_only(url: str, revision: str) -> None:
    ledger = Ledger(_written(url, revision))
    for statement in (
        "UPDATE promotion SET actor = 'nobody'",
        "DELETE FROM promotion",
        "UPDATE version SET digest = 'b'",
        "DELETE FROM version",
    ):
        with pytest.raises(DBAPIError, match="append-only"), ledger.database.writing() as connection:
            connection.execute(text(statement))
    ledger.close()


def test_the_looks_of_an_earlier_schema_get_their_shares_from_the_verdicts(url: str) -> None:
    engine = _engine(_written(url, "0008"))
    decided, revealed = (look_at(1, number, Budget(0.05, 7)) for number in (2, 3))
    request = a_request(TASK, 3)
    assert request.verdict
    verdict = request.verdict.model_copy(update={"look": decided, "reveal": Reveal(by="ann", look=revealed)})
    with engine.begin() as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        connection.execute(metadata.tables["verdict"].insert().values(_verdict(verdict)))
        for number, question in ((2, question_of(verdict)), (3, reveal_digest(verdict)), (4, "undecided")):
            row = {"task": "mood", "test_set": 1, "number": number, "question": question, "at": AT}
            connection.execute(metadata.tables["look"].insert().values(row))
    engine.dispose()
    ledger = Ledger(url)
    other = Budget(0.01)
    assert take_look(ledger, "mood", question_of(verdict), [], other) == decided
    assert take_look(ledger, "mood", reveal_digest(verdict), [], other) == revealed
    taken = take_look(ledger, "mood", "undecided", [], other)
    assert taken == look_at(1, 4, other, {2: decided, 3: revealed})
    assert take_look(ledger, "mood", "undecided", [], Budget(0.05, 7)) == taken
    with pytest.raises(DBAPIError, match="append-only"), ledger.database.writing() as connection:
        connection.execute(text("UPDATE look SET alpha = 0"))
    ledger.close()


@pytest.mark.parametrize("revision", ROWS)
def test_an_upgraded_ledger_promotes_on(url: str, revision: str, tmp_path: Path) -> None:
    registry = Registry(Ledger(_written(url, revision)), FolderStore(tmp_path / "store"))
    for artifact in (FIRST, SECOND):
        stage(registry.ledger, registry.store, artifact)
    head = promote(registry, TASK, 2, Cause("me", "because"))
    assert (head.seq, head.previous, head.verdict) == (4, 1, ROWS[revision]["promotion"][1]["verdict"])
    registry.ledger.close()


def test_migrations_make_the_declared_tables(ledger: Ledger) -> None:
    with ledger.database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_schema_constant_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(_config()).get_current_head() == tables.SCHEMA


def test_a_newer_ledger_is_refused(ledger: Ledger) -> None:
    with ledger.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SettingsError, match="written by another version of ptpipeline"):
        Ledger(ledger.url)


# ---------------------------------------------------------------- several processes, and killed ones


def _open(url: str, outcomes: "Queue[str]") -> None:
    try:
        Ledger(url).add_version("topic", "a" * 64)
        outcomes.put("ok")
    except Exception as error:  # noqa: BLE001
        outcomes.put(repr(error))


def _opened_by(count: int, url: str) -> list[str]:
    outcomes = processes.Queue()
    racers = [processes.start(_open, url, outcomes) for _ in range(count)]
    return [outcomes.get(timeout=60) for _ in racers]


def test_processes_open_a_new_ledger_together(url: str) -> None:
    assert _opened_by(4, url) == ["ok"] * 4


@pytest.mark.parametrize("revision", [min(ROWS), max(ROWS)])
def test_processes_open_an_earlier_schema_together(url: str, revision: str) -> None:
    assert _opened_by(3, _written(url, revision)) == ["ok"] * 3
    assert Ledger(url).version_of("topic", "a" * 64).number == 1


def _die_at(statement: int, url: str) -> None:
    """Open the ledger, and die instead of sending the n-th statement that changes the schema."""
    seen = []

    @event.listens_for(Engine, "before_cursor_execute")
    def count(*arguments: Any) -> None:
        if str(arguments[2]).lstrip().upper().startswith(("CREATE", "ALTER", "UPDATE ALEMBIC")):
            seen.append(arguments[2])
            if len(seen) == statement:
                os.kill(os.getpid(), signal.SIGKILL)

    Ledger(url)


@pytest.mark.parametrize(
    ("revision", "statement"),
    [
        ("0001", 2),
        ("0001", 7),
        ("0001", 10),
        ("0002", 2),
        ("0002", 4),
        ("0003", 2),
        ("0004", 3),
        ("0006", 1),
        ("0008", 3),
    ],
)
def test_a_migration_killed_in_the_middle_is_repeated(url: str, revision: str, statement: int) -> None:
    killed = processes.start(_die_at, statement, _written(url, revision))
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    engine = _engine(url)
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == revision
        assert set(inspect(connection).get_table_names()) - {"alembic_version"} == set(ROWS[revision])
        assert {column["name"] for column in inspect(connection).get_columns("promotion")} == set(
            ROWS[revision]["promotion"][0]
        )
    engine.dispose()
    ledger = Ledger(url)
    assert _kept(url, revision) == _expected(revision)
    assert (
        ledger.append(Move(task="mood", alias="production", version=2, actor="me", reason="why", expected=3)).seq == 4
    )
