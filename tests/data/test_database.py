"""Rows of a query in SQLite and in a real PostgreSQL."""

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event

from benchmarks.fixtures.postgres import Postgres
from ptpipeline.data import database
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.data.sources import OpenSource, SourceRows, read_rows, source_key
from ptpipeline.errors import DataError, ServiceUnavailable, SettingsError
from ptpipeline.storage import FolderStore
from ptpipeline.task.source import Source
from ptpipeline.task.task import Task
from tests.data.declared import declared
from tests.tiny import sentences

QUERY = "SELECT text, label FROM reviews ORDER BY id"
PASSWORD = "of-the-partner"


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """The statements that reach a database."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


class Rows:
    """A database with a table `reviews`, which the tests change through `run`."""

    def __init__(self, run: Callable[[str], None], home: Path) -> None:
        self.run, self.home = run, home
        run("CREATE TABLE reviews (id INTEGER PRIMARY KEY, text TEXT, label TEXT)")

    def put(self, *rows: tuple[str, str]) -> None:
        self.run("DELETE FROM reviews")
        for number, (text, label) in enumerate(rows):
            self.run(f"INSERT INTO reviews VALUES ({number}, '{text}', '{label}')")

    def task(self, query: str = QUERY, **sql: Any) -> Task:
        return declared(source={"path": None, "format": None, "sql": {"url_env": "REVIEWS_DB", "query": query, **sql}})

    def read(self, query: str = QUERY, **sql: Any) -> SourceRows:
        return read_rows(self.task(query, **sql), self.home)

    def key(self, query: str = QUERY, **sql: Any) -> str:
        return source_key(self.task(query, **sql), self.home)


def of_sqlite(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    path = folder / "reviews.db"
    monkeypatch.setenv("REVIEWS_DB", f"sqlite:///{path}")

    def run(statement: str) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()

    return Rows(run, folder / "home")


def of_postgres(server: Postgres, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    url = server.create_database(f"rows-{uuid.uuid4().hex}")
    monkeypatch.setenv("REVIEWS_DB", url.replace("postgres@", f"postgres:{PASSWORD}@"))

    def run(statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())

    return Rows(run, folder / "home")


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    return of_sqlite(tmp_path, monkeypatch)


@pytest.fixture
def server(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    return of_postgres(postgres, tmp_path, monkeypatch)


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.servers)])
def rows(request: pytest.FixtureRequest) -> Rows:
    found: Rows = request.getfixturevalue(request.param)
    return found


def test_the_rows_of_a_query_are_read(rows: Rows) -> None:
    rows.put(("b", "bad"), ("ä \U0001f600", "good"))
    found = rows.read()
    assert (found.fields["text"], found.labels) == (["b", "ä \U0001f600"], ["bad", "good"])
    assert found.source == "sql:REVIEWS_DB"


def test_nothing_in_a_query_is_replaced(rows: Rows) -> None:
    rows.put(("50% of :it", "bad"))
    assert rows.read("SELECT text, label, '%s' AS a FROM reviews WHERE text LIKE '50%' OR text = ':x';").fields[
        "text"
    ] == ["50% of :it"]


def test_more_rows_than_a_batch_are_read_in_order(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BATCH", 7)
    rows.put(*[(f"text {number:02}", "bad") for number in range(30)])
    assert rows.read().fields["text"] == [f"text {number:02}" for number in range(30)]


def test_another_order_gives_the_same_rows_each_told_by_its_own_place(rows: Rows) -> None:
    rows.put(("b", "bad"), ("a", "good"), ("c", "bad"))
    up, down = (rows.read(f"SELECT text, label FROM reviews ORDER BY id {way}") for way in ("ASC", "DESC"))
    assert (up.fields, up.labels) == (down.fields, down.labels)
    assert [given.places.describe([1]) for given in (up, down)] == ["row 2", "row 2"]
    assert [given.places.describe([3]) for given in (up, down)] == ["row 3", "row 1"]


def test_a_query_of_sqlite_that_does_not_end_is_stopped(sqlite: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "QUERY_SECONDS", 0.2)
    endless = (
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) AS text, 1 AS label FROM r"
    )
    with pytest.raises(DataError, match=r"the query takes more than 0\.2 s"):
        sqlite.read(endless)


@pytest.mark.parametrize("column", ["text", "other"])
def test_a_value_of_sqlite_that_no_text_has_is_refused_before_it_is_read(sqlite: Rows, column: str) -> None:
    """A query may make a value of a gigabyte of nothing, also in a column that nobody asks for."""
    text = "" if column == "text" else "'a' AS text, "
    huge = f"zeroblob({database.MAX_CELL + 1}) AS {column}"
    with pytest.raises(DataError, match="a row or a value has more than 16777216 bytes; leave it out of the query"):
        sqlite.read(f"SELECT {huge}, {text}1 AS label")


def test_numbers_and_dates_become_what_a_person_writes(sqlite: Rows) -> None:
    sqlite.put(("a", "bad"))
    for value, written in {"1": "1", "1.0": "1", "0.5": "0.5", "NULL": None, "x'626164'": "bad"}.items():
        found = sqlite.read(f"SELECT text, {value} AS label FROM reviews")
        assert found.labels == [written]


@pytest.mark.servers
def test_types_of_postgresql_become_what_a_person_writes(server: Rows) -> None:
    server.put(("a", "bad"))
    for value, written in {
        "true": "true",
        "1.50::numeric": "1.5",
        "'NaN'::float8": None,
        "9007199254740993": "9007199254740993",
        "date '2024-02-29'": "2024-02-29",
        "timestamp '2024-02-29 12:30:00'": "2024-02-29 12:30:00",
        "12345678901234567890123456789012345678901234567890.5::numeric": (
            "12345678901234567890123456789012345678901234567890.5"
        ),
        '\'{"a": [1, "ä"]}\'::jsonb': '{"a": [1, "ä"]}',
        "'c0ffee00-0000-0000-0000-000000000000'::uuid": "c0ffee00-0000-0000-0000-000000000000",
    }.items():
        assert server.read(f"SELECT text, {value} AS label FROM reviews").labels == [written]


def test_a_text_column_of_numbers_is_refused(rows: Rows) -> None:
    rows.put(("a", "bad"))
    with pytest.raises(
        DataError, match=r"sql:REVIEWS_DB: column 'text', which data\.text names, holds integers in row 1"
    ):
        rows.read("SELECT 7 AS text, label FROM reviews")


def test_a_text_that_is_missing_is_a_row_without_one(rows: Rows) -> None:
    rows.put(("a", "bad"))
    rows.run("INSERT INTO reviews VALUES (7, NULL, 'good')")
    assert sorted(zip(rows.read().fields["text"], rows.read().labels, strict=True), key=str) == [
        ("a", "bad"),
        (None, "good"),
    ]


def test_a_missing_cell_is_of_no_kind_and_sorts_first(sqlite: Rows) -> None:
    """In another order the same rows would be another snapshot."""
    sqlite.put(("A", "bad"))
    sqlite.run("INSERT INTO reviews VALUES (7, NULL, 'good')")
    found = sqlite.read("SELECT text, CASE label WHEN 'bad' THEN 1 END AS label FROM reviews")
    assert (found.fields["text"], found.labels, found.label_kinds) == ([None, "A"], [None, "1"], ("integers",))
    assert sqlite.read("SELECT text, NULL AS label FROM reviews").label_kinds == ("text",)


def test_a_missing_column_is_named(rows: Rows) -> None:
    rows.put(("a", "bad"))
    with pytest.raises(DataError, match=r"no column 'label', which data\.label names; the columns are text, lable"):
        rows.read("SELECT text, label AS lable FROM reviews")


@pytest.mark.servers
@pytest.mark.parametrize("day", ["infinity", "0044-03-15 BC", "12000-01-01"])
def test_a_date_that_python_has_not_is_told_with_what_reads_it(server: Rows, day: str) -> None:
    server.put(("a", "bad"))
    with pytest.raises(DataError, match=r"a date or time is infinite.* such as by `::text`"):
        server.read(f"SELECT text, '{day}'::date AS label FROM reviews")
    assert server.read(f"SELECT text, '{day}'::date::text AS label FROM reviews").labels == [day]


def test_a_query_without_rows_is_refused(rows: Rows) -> None:
    with pytest.raises(DataError, match="the query gives no rows"):
        rows.read()


def test_too_many_rows_are_refused(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_ROWS", 3)
    rows.put(*[(f"text {number}", "bad") for number in range(4)])
    with pytest.raises(DataError, match=r"more than .* rows; give a part of it"):
        rows.read()
    with pytest.raises(DataError, match=r"more than .* rows; give a part of it"):
        rows.key()


def test_more_characters_than_fit_are_refused_before_all_are_read(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_BYTES", 20)
    monkeypatch.setattr(database, "BATCH", 2)
    rows.put(*[("nine here", "bad") for _ in range(4)])
    with pytest.raises(DataError, match="more than 20 characters; give a part of it"):
        rows.read()


# ---------------------------------------------------------------- only reading


WRITING = [
    "DELETE FROM reviews",
    "DELETE FROM reviews RETURNING text, label",
    "DROP TABLE reviews",
    "SELECT text, label FROM reviews; DELETE FROM reviews",
    "SELECT text, label FROM reviews; COMMIT; DELETE FROM reviews; SELECT text, label FROM reviews",
    "WITH gone AS (DELETE FROM reviews RETURNING text, label) SELECT text, label FROM gone",
]


@pytest.mark.parametrize("query", WRITING)
@pytest.mark.parametrize("place", ["query", "version_query"])
def test_no_query_writes(rows: Rows, query: str, place: str) -> None:
    rows.put(("a", "bad"))
    with pytest.raises(DataError):
        rows.key(query) if place == "query" else rows.key(version_query=query)
    assert rows.read().fields["text"] == ["a"]


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH 'other.db' AS other",
        "PRAGMA journal_mode=DELETE",
        "PRAGMA read_uncommitted=1",
        "VACUUM INTO 'copy.db'",
    ],
)
def test_a_query_of_sqlite_reaches_no_other_file(
    sqlite: Rows, query: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the query does more than reading; write one SELECT"):
        sqlite.read(query)
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.db"]


@pytest.mark.servers
def test_functions_that_write_are_refused_too(server: Rows) -> None:
    server.put(("a", "bad"))
    server.run("CREATE FUNCTION wipe() RETURNS text LANGUAGE sql AS $$ DELETE FROM reviews; SELECT 'bad' $$")
    with pytest.raises(DataError, match="the query writes, and only reading is allowed"):
        server.read("SELECT text, wipe() AS label FROM reviews")
    assert server.read().fields["text"] == ["a"]


def test_a_text_that_is_not_utf8_is_marked_as_in_a_file(sqlite: Rows) -> None:
    sqlite.put(("a", "bad"))
    assert sqlite.read("SELECT CAST(x'636166e9' AS TEXT) AS text, label FROM reviews").fields["text"] == ["caf\udce9"]


def test_full_text_tables_and_json_are_read(sqlite: Rows) -> None:
    sqlite.run("CREATE VIRTUAL TABLE found USING fts5(text, label)")
    sqlite.run("INSERT INTO found VALUES ('a b', 'bad'), ('c', 'good')")
    assert sqlite.read("SELECT text, label FROM found WHERE found MATCH 'b'").fields["text"] == ["a b"]
    assert sqlite.read("SELECT value AS text, 'bad' AS label FROM json_each('[\"x\"]')").fields["text"] == ["x"]


# ---------------------------------------------------------------- the key


def test_without_a_version_query_the_key_is_of_the_rows_in_any_order(rows: Rows) -> None:
    query = "SELECT text, label FROM reviews"
    rows.put(("a", "bad"), ("b", "good"))
    key = rows.key(query)
    rows.put(("b", "good"), ("a", "bad"))
    assert rows.key(query) == key
    rows.put(("a", "good"), ("b", "bad"))
    assert rows.key(query) != key
    rows.put(("a", "bad"), ("b", "good"), ("b", "good"))
    assert rows.key(query) != key


def test_a_version_query_is_asked_instead_of_the_rows(rows: Rows) -> None:
    rows.put(("a", "bad"))
    version = "SELECT count(*), max(id) FROM reviews"
    key = rows.key("SELECT 1/0 FROM no_such_table", version_query=version)
    rows.put(("b", "good"))
    assert rows.key("SELECT 1/0 FROM no_such_table", version_query=version) == key
    rows.put(("b", "good"), ("c", "good"))
    assert rows.key("SELECT 1/0 FROM no_such_table", version_query=version) != key


def test_a_version_that_is_no_utf8_has_a_key(sqlite: Rows) -> None:
    assert sqlite.key(version_query="SELECT x'ff'") != sqlite.key(version_query="SELECT x'fe'")


def test_a_version_query_of_many_rows_is_refused(rows: Rows) -> None:
    rows.put(*[(f"text {number}", "bad") for number in range(101)])
    with pytest.raises(DataError, match="version_query gives 101 rows, expected 1 to 100"):
        rows.key(version_query="SELECT text FROM reviews")
    rows.put(*[(f"text {number}", "bad") for number in range(100)])
    assert rows.key(version_query="SELECT text FROM reviews")
    rows.put()
    with pytest.raises(DataError, match="version_query gives no rows"):
        rows.key(version_query="SELECT text FROM reviews")


def test_another_query_is_another_key(rows: Rows) -> None:
    rows.put(("a", "bad"))
    assert rows.key() != rows.key(f"{QUERY} DESC")


def test_a_snapshot_of_a_query_holds_its_rows_and_no_address(rows: Rows, tmp_path: Path) -> None:
    rows.put(*[(text, {"positive": "good", "negative": "bad"}[label]) for text, label in sentences(40)])
    snapshot = take_snapshot(rows.task(), FolderStore(tmp_path / "store"), rows.home)
    assert snapshot.source == "sql:REVIEWS_DB"
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*.json"))
    assert PASSWORD.encode() not in stored
    assert b"//" not in stored


@pytest.mark.parametrize("sql", [{}, {"version_query": "SELECT count(*) FROM reviews"}])
def test_an_ingest_reads_the_rows_once(rows: Rows, tmp_path: Path, asked: list[str], sql: dict[str, str]) -> None:
    rows.put(*[(text, {"positive": "good", "negative": "bad"}[label]) for text, label in sentences(40)])
    key = rows.key(**sql)
    asked.clear()
    snapshot = take_snapshot(rows.task(**sql), FolderStore(tmp_path / "store"), rows.home)
    assert asked.count(QUERY) == 1
    assert snapshot.source_key == key


def test_rows_that_are_read_again_are_those_of_the_key_or_told(rows: Rows) -> None:
    rows.put(("a", "bad"))
    opened = OpenSource(rows.task(), rows.home)
    assert (opened.read().fields["text"], opened.read().fields["text"]) == (["a"], ["a"])
    rows.put(("b", "bad"))
    with pytest.raises(ServiceUnavailable, match="the source changed while it was read"):
        opened.read()


def test_a_source_that_changes_while_it_is_read_makes_no_snapshot(sqlite: Rows, tmp_path: Path) -> None:
    sqlite.put(*[(text, {"positive": "good", "negative": "bad"}[label]) for text, label in sentences(40)])
    store = FolderStore(tmp_path / "store")
    with pytest.raises(ServiceUnavailable, match="sql:REVIEWS_DB: the source changed while it was read; run again"):
        take_snapshot(sqlite.task(version_query="SELECT random()"), store, sqlite.home)
    assert list(store.keys("snapshots")) == []


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("query", ["SELECT text, label FROM reveiws", "SELECT txet FROM reviews", "SELEC text"])
def test_a_wrong_query_is_told_with_what_is_missing(rows: Rows, query: str) -> None:
    with pytest.raises(DataError, match=r"sql:REVIEWS_DB: the query cannot run: .*(reveiws|txet|SELEC)") as raised:
        rows.read(query)
    assert "\n" not in str(raised.value)


@pytest.mark.servers
def test_a_row_that_a_query_fails_on_is_not_quoted(server: Rows) -> None:
    server.put(("private words", "bad"))
    with pytest.raises(DataError, match=r"fails on its rows .SQLSTATE 22P02") as raised:
        server.read("SELECT text, text::integer AS label FROM reviews")
    assert "private" not in str(raised.value)


def test_a_variable_that_is_not_set_is_named(sqlite: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REVIEWS_DB")
    with pytest.raises(SettingsError, match="the environment variable REVIEWS_DB is not set"):
        sqlite.key()


@pytest.mark.parametrize(
    "address",
    [
        "reviews.db",
        "mysql://me:secret@host/db",
        "sqlite://",
        "postgresql://me:secret@host",
        "postgresql://me:secret@h:x/d",
    ],
)
def test_an_address_of_no_such_database_is_not_shown(
    sqlite: Rows, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_DB", address)
    with pytest.raises(SettingsError, match=r"REVIEWS_DB.*expected sqlite:") as raised:
        sqlite.key()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["none.db", ""])
def test_a_file_that_is_not_there_is_not_made(
    sqlite: Rows, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_DB", f"sqlite:///{tmp_path}/{name}")
    with pytest.raises(DataError, match="there is no readable file at the address in REVIEWS_DB"):
        sqlite.key()
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_told(sqlite: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" * 100)
    monkeypatch.setenv("REVIEWS_DB", f"sqlite:///{tmp_path}/rows.csv")
    with pytest.raises(DataError, match="is no SQLite database"):
        sqlite.key()


def test_a_locked_database_is_transient(sqlite: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.1)
    sqlite.put(("a", "bad"))
    other = sqlite3.connect(tmp_path / "reviews.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ServiceUnavailable, match=r"does not answer .*locked"):
        sqlite.key()
    other.close()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_READ])
def test_what_may_pass_by_itself_is_transient(sqlite: Rows, code: int) -> None:
    error, (source,) = sqlite3.OperationalError("disk I/O error"), sqlite.task().data.sources.values()
    error.sqlite_errorcode = code
    assert source.sql
    with pytest.raises(ServiceUnavailable), database._Database(source.sql)._translating():
        raise error


@pytest.mark.servers
def test_a_table_that_somebody_locks_is_transient(server: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OPTIONS", "-c lock_timeout=100ms")
    server.put(("a", "bad"))
    with psycopg.connect(os.environ["REVIEWS_DB"]) as other:
        other.execute("LOCK TABLE reviews")
        with pytest.raises(ServiceUnavailable, match=r"does not answer .55P03"):
            server.read()


@pytest.mark.servers
def test_a_query_that_takes_too_long_is_refused(server: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OPTIONS", "-c statement_timeout=50ms")
    with pytest.raises(DataError, match="the query takes more than 600 s; write a shorter one"):
        server.read("SELECT 'a' AS text, pg_sleep(9)::text AS label")


@pytest.mark.servers
def test_the_options_of_an_address_count(server: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of the same name in another schema holds other rows; the bound of the time stays."""
    server.put(("of public", "bad"))
    server.run("CREATE SCHEMA own CREATE TABLE reviews (id INTEGER, text TEXT, label TEXT)")
    server.run("INSERT INTO own.reviews VALUES (1, 'of own', 'bad')")
    url = os.environ["REVIEWS_DB"].replace("postgresql://", "postgres://")
    monkeypatch.setenv("REVIEWS_DB", f"{url}?options=-csearch_path%3Down%20-cstatement_timeout%3D0")
    assert server.read().fields["text"] == ["of own"]
    assert server.read("SELECT current_setting('statement_timeout') AS text, 'bad' AS label").fields["text"] == [
        "10min"
    ]
    monkeypatch.setenv("REVIEWS_DB", f"{url}?no_such_option=1")
    with pytest.raises(SettingsError, match="REVIEWS_DB: the address has an option that PostgreSQL does not know"):
        server.read()


@pytest.mark.servers
def test_a_server_that_is_not_there_is_transient(
    postgres: Postgres, server: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_DB", f"postgresql://me:{PASSWORD}@127.0.0.1:9/db")
    with pytest.raises(ServiceUnavailable, match="does not answer") as raised:
        server.key()
    assert PASSWORD not in str(raised.value)


@pytest.mark.servers
@pytest.mark.parametrize("login", ["nobody@127.0.0.1:PORT/postgres", "postgres@127.0.0.1:PORT/none"])
def test_a_login_that_is_refused_is_a_setting(
    postgres: Postgres, server: Rows, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_DB", f"postgresql://{login.replace('PORT', str(postgres.port))}")
    with pytest.raises(SettingsError, match="does not let it in, or read"):
        server.key()


@pytest.mark.servers
def test_a_missing_right_is_a_setting(postgres: Postgres, server: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"reader_{uuid.uuid4().hex}"
    server.run(f"CREATE ROLE {name} LOGIN")
    monkeypatch.setenv("REVIEWS_DB", os.environ["REVIEWS_DB"].replace("postgres:", f"{name}:"))
    with pytest.raises(SettingsError, match=r"does not let it in, or read .42501"):
        server.read()


@pytest.mark.parametrize(
    "address", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql://", "postgresql://host/"]
)
def test_an_address_without_a_database_is_told_as_such(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ROWS_DB", address)
    source = Source.model_validate({"sql": {"url_env": "ROWS_DB", "query": "SELECT 1"}})
    with pytest.raises(SettingsError, match=r"^ROWS_DB: the address names no database; expected sqlite:"):
        database.identify(source, Path())
