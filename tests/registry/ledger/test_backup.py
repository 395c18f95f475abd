"""A ledger in a file, and back: whole, into either database, from every schema; and healed of what came since."""

import gzip
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, text

from benchmarks.fixtures.postgres import Postgres
from benchmarks.fixtures.prompts import a_task, published
from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, PromotionRefused, PtpError
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.storage import FolderStore
from registry.ledger import backup
from registry.ledger.backup import back_up, restore
from registry.ledger.database import Database
from registry.ledger.ledger import Ledger
from registry.ledger.nights import begin_night, end_night
from registry.ledger.tables import SCHEMA, read_revision
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.registry.ledger.test_nights import MOOD, TONE, a_night
from tests.registry.migrations.test_migrations import ROWS

ME = Cause("me", "because")


def everything(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table."""
    with database.reading() as connection:
        metadata = MetaData()
        metadata.reflect(connection)
        return {
            table.name: sorted((dict(row._mapping) for row in connection.execute(table.select())), key=str)
            for table in metadata.sorted_tables
        }


@pytest.fixture
def filled(ledger: Ledger, tmp_path: Path) -> Registry:
    """A registry with a promoted version, another candidate, and a night, on each database in turn."""
    registry, task = Registry(ledger, FolderStore(tmp_path / "store")), a_task("mood")
    first = promote(registry, task, published(registry, task, 1), ME)
    published(registry, task, 2, first.digest)
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Failed", [MOOD, TONE])
    return registry


def test_a_restored_ledger_holds_every_row(filled: Registry, tmp_path: Path) -> None:
    saved = back_up(filled.ledger.database, tmp_path / "ledger.jsonl.gz")
    assert (tmp_path / "ledger.jsonl.gz").stat().st_mode & 0o777 == 0o600
    url = f"sqlite:///{tmp_path / 'again.db'}"
    assert restore(url, tmp_path / "ledger.jsonl.gz") == saved
    before = everything(filled.ledger.database)
    assert everything(Database(url)) == before
    assert saved.rows == sum(map(len, before.values())) - 1  # but for the schema's own


@pytest.mark.servers
def test_a_ledger_moves_from_sqlite_to_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    registry, task = Registry(Ledger(f"sqlite:///{tmp_path / 'one.db'}"), FolderStore(tmp_path / "store")), a_task()
    promote(registry, task, published(registry, task, 1), ME)
    back_up(registry.ledger.database, tmp_path / "backup")
    moved = Ledger(postgres.create_database(f"moved-{uuid.uuid4().hex}"))
    with pytest.raises(PreconditionFailed, match="has tables already: move it away, or set PTP_LEDGER to a new one"):
        restore(moved.database.url, tmp_path / "backup")
    url = postgres.create_database(f"moved-{uuid.uuid4().hex}")
    restore(url, tmp_path / "backup")
    after = Registry(Ledger(url), registry.store)
    assert after.ledger.heads() == registry.ledger.heads()
    assert examine(after, task.name) == []
    head = after.ledger.head(task.name, PRODUCTION)
    assert head is not None
    second = published(after, task, 2, after.ledger.version(task.name, head.version).digest)
    assert promote(after, task, second, ME).seq == head.seq + 1  # its event has a number of its own
    after.ledger.close()
    moved.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without tables, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'again.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.create_database(f"again-{uuid.uuid4().hex}")


def test_what_came_after_the_backup_is_healed_from_the_store(filled: Registry, tmp_path: Path, empty: str) -> None:
    task = a_task("mood")
    back_up(filled.ledger.database, tmp_path / "old")
    promote(filled, task, 2, ME)
    third = published(filled, task, 3, filled.ledger.version("mood", 2).digest)
    restore(empty, tmp_path / "old")
    again = Registry(Ledger(empty), filled.store)
    assert [head.version for head in again.ledger.heads()] == [1]
    with pytest.raises(PromotionRefused, match="restored from an older backup"):
        promote(again, task, 2, ME)
    rebuild(again)
    reconcile(again, {"mood": task})
    assert again.ledger.history("mood") == filled.ledger.history("mood")
    assert again.ledger.version("mood", third).digest == filled.ledger.version("mood", third).digest
    assert examine(again, "mood") == []
    head = again.ledger.head("mood", PRODUCTION)
    assert head is not None
    assert promote(again, task, third, ME).seq == head.seq + 1
    again.ledger.close()


@pytest.mark.parametrize("schema", ROWS)
def test_a_backup_of_an_older_schema_is_brought_to_that_of_today(schema: str, tmp_path: Path) -> None:
    old = Database(f"sqlite:///{tmp_path / 'old.db'}", schema)
    assert back_up(old, tmp_path / "backup").schema == schema
    restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / "backup")
    again = Database(f"sqlite:///{tmp_path / 'again.db'}")
    with again.reading() as connection:
        assert read_revision(connection) == SCHEMA


def test_a_backup_that_was_altered_or_cut_changes_nothing(filled: Registry, tmp_path: Path) -> None:
    back_up(filled.ledger.database, tmp_path / "backup")
    lines = gzip.decompress((tmp_path / "backup").read_bytes()).splitlines(keepends=True)
    altered = {
        "a row less": [*lines[:3], *lines[4:]],
        "another reason": [line.replace(b"because", b"be cause") for line in lines],
        "without its end": lines[:-1],
        "not a backup": [b"{}\n"],
        "no JSON": [b"hello\n"],
    }
    for name, kept in altered.items():
        (tmp_path / name).write_bytes(gzip.compress(b"".join(kept)))
        with pytest.raises(ArtifactError):
            restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / name)
    (tmp_path / "cut").write_bytes((tmp_path / "backup").read_bytes()[:-20])
    with pytest.raises(ArtifactError):
        restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / "cut")
    with pytest.raises(NotFound):
        restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / "nothing")
    assert not (tmp_path / "again.db").exists()


def sealed(lines: list[bytes]) -> bytes:
    """A backup of these lines, with the hash that belongs to them: what anybody can write."""
    body, rows = b"".join(lines), len(lines) - 1
    return gzip.compress(body + json.dumps({"rows": rows, "sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        ["no_table", {"a": 1}],
        ["alembic_version", {"version_num": "0001"}],
        ["promotion", {"no_column": 1}],
        ["promotion", "no row"],
        ["promotion"],
        [1, 2, 3],
        [["promotion"], {}],
        ["version", {"task": {"a": 1}, "number": 7, "digest": "d", "at": "a"}],
        ["version", {"task": None, "number": 7, "digest": "d", "at": "a"}],
        ["test_set", {"task": "mood", "number": 7, "rows": {"base64": "?"}, "at": "a"}],
        ["version", {"task": "mood", "number": 2**62 - 1, "digest": {"base64": "AAAA"}, "at": [1]}],
    ],
    ids=lambda line: str(line)[:40],
)
def test_a_backup_that_was_altered_and_hashed_anew_is_refused_in_a_sentence(
    filled: Registry, tmp_path: Path, line: list[Any]
) -> None:
    back_up(filled.ledger.database, tmp_path / "backup")
    lines = gzip.decompress((tmp_path / "backup").read_bytes()).splitlines(keepends=True)[:-1]
    (tmp_path / "altered").write_bytes(sealed([*lines, json.dumps(line).encode() + b"\n"]))
    url = f"sqlite:///{tmp_path / 'again.db'}"
    with pytest.raises(ArtifactError, match="take another backup"):
        restore(url, tmp_path / "altered")
    assert Database(url, migrate=False).stored_schema() is None
    restore(url, tmp_path / "backup")


def test_a_row_behind_the_end_of_a_backup_is_none(filled: Registry, tmp_path: Path) -> None:
    """The hash at the end covers what stands before it alone."""
    back_up(filled.ledger.database, tmp_path / "backup")
    *lines, last, _ = gzip.decompress((tmp_path / "backup").read_bytes()).splitlines(keepends=True)
    end = {"rows": len(lines), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    moved = [*lines, json.dumps(end).encode() + b"\n", last]
    (tmp_path / "moved").write_bytes(gzip.compress(b"".join(moved)))
    with pytest.raises(ArtifactError, match="take another backup"):
        restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / "moved")


@pytest.mark.parametrize("schema", ["base", "head", "0001:0002", "+1", None, {"a": 1}])
def test_a_backup_names_a_schema_and_nothing_else(tmp_path: Path, schema: object) -> None:
    head = json.dumps({"format": "ptpipeline ledger", "schema": schema}).encode() + b"\n"
    (tmp_path / "altered").write_bytes(sealed([head]))
    with pytest.raises(ArtifactError, match="is no schema of a ledger"):
        restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / "altered")


def test_a_file_of_something_else_is_told_by_its_first_line(tmp_path: Path) -> None:
    """It may be of any length, and is not read to its end: this one is cut off there."""
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 10_000)[:-8])
    with pytest.raises(ArtifactError, match="not a backup of a ledger; `ptp backup FILE` writes one"):
        restore(f"sqlite:///{tmp_path}/ledger.db", tmp_path / "rows.jsonl.gz")


def test_a_backup_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a regular file"):
        restore(f"sqlite:///{tmp_path / 'again.db'}", tmp_path / "pipe")


def test_a_ledger_that_has_rows_is_never_overwritten(filled: Registry, tmp_path: Path) -> None:
    back_up(filled.ledger.database, tmp_path / "backup")
    before = everything(filled.ledger.database)
    with pytest.raises((PreconditionFailed, PtpError), match="has tables already"):
        restore(filled.ledger.database.url, tmp_path / "backup")
    assert everything(filled.ledger.database) == before
    with filled.ledger.database.reading() as connection:
        assert connection.scalar(text("SELECT count(*) FROM promotion")) == 1


def test_a_backup_replaces_no_file_not_even_the_ledger(filled: Registry, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"a ledger, say")
    with pytest.raises(PreconditionFailed, match="there is a file of that name"):
        back_up(filled.ledger.database, tmp_path / "ledger.db")
    assert (tmp_path / "ledger.db").read_bytes() == b"a ledger, say"
    (tmp_path / "link").symlink_to(tmp_path / "on-a-disk-that-is-away")
    with pytest.raises(PreconditionFailed, match="there is a file of that name"):
        back_up(filled.ledger.database, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_a_restore_that_ends_in_the_middle_leaves_no_ledger_and_may_be_repeated(
    filled: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(filled.ledger.database, tmp_path / "backup")
    url = f"sqlite:///{tmp_path / 'again.db'}"

    def die(_rows: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_decode", die)
        with pytest.raises(KeyboardInterrupt):
            restore(url, tmp_path / "backup")
    assert Database(url, migrate=False).stored_schema() is None
    restore(url, tmp_path / "backup")
    assert everything(Database(url)) == everything(filled.ledger.database)
