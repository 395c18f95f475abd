"""How long a right lasts, that the fences of a thread are its own, and whom a ledger refuses."""

import os
from pathlib import Path

import psycopg
import pytest

from benchmarks.fixtures.postgres import Postgres
from ptpipeline.errors import Overtaken, SettingsError
from registry.ledger.database import Database, seconds_left
from registry.registry import Registry
from tests.processes import in_child


@pytest.mark.parametrize(
    ("expires", "left"),
    [
        (99.0, 0.0),  # it ended
        (100.0, 0.0),  # it ends now
        (100.5, 0.5),
        (130.0, 30.0),  # as long as it can last
        (130.5, 0.0),  # longer than it can last: the clock was set back since
    ],
)
def test_a_right_lasts_until_its_end_and_never_longer_than_it_can(expires: float, left: float) -> None:
    assert seconds_left(expires, now=100.0, longest=30.0) == left


def test_a_fence_ends_writes_of_its_own_database_while_it_stands(plain: Registry) -> None:
    def fall(_connection: object) -> None:
        raise Overtaken("another run took over")

    database, other = plain.ledger.database, Database(f"{plain.ledger.url}-other")
    with database.fenced(fall):
        with pytest.raises(Overtaken):
            database.check_fences()
        other.check_fences()
        plain.ledger.tasks()  # who reads is not asked
    database.check_fences()
    other.close()


@pytest.mark.parametrize("closed", ["file", "folder", "nothing"])
def test_a_ledger_that_this_user_may_not_use_is_refused_for_good(tmp_path: Path, closed: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    if closed != "nothing":
        Database(f"sqlite:///{folder}/ledger.db").close()
    for path in (folder / "ledger.db", folder) if closed == "folder" else folder.glob("ledger.db"):
        path.chmod(0)
    if closed == "nothing":
        folder.chmod(0o555)

    def use() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # nobody: no mode stops root
        with pytest.raises(SettingsError, match="this user may not read and write it; let its owner run this"):
            Database(f"sqlite:///{folder}/ledger.db")

    in_child(use)
    folder.chmod(0o700)


@pytest.mark.servers
def test_the_options_of_an_address_count(postgres: Postgres) -> None:
    """Its tables would lie in another schema than the one that it names."""
    address = postgres.create_database("schemas")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA own")
        Database(f"{address}?options=-csearch_path%3Down").close()
        [(schema,)] = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'event'").fetchall()
    assert schema == "own"
