"""A ledger on a PostgreSQL server whose disk is full, really: what was acknowledged stands, nothing is written in half,
and the same command once more heals it.
"""

import os
import pwd
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import stamina
import yaml

from benchmarks.fixtures.postgres import Postgres, running_postgres
from benchmarks.fixtures.prompts import a_task, an_artifact, published
from flows.cli import main
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests import processes, small_disk

pytestmark = pytest.mark.servers

TASK = a_task()
FIRST = 1_000  # rows of history at most before the disk has to be full


class Said(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    output: str
    errors: list[str]


def ptp(*arguments: str) -> Said:
    """Run a command in this process."""
    output, errors, code = StringIO(), StringIO(), 0
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Said(code, output.getvalue(), errors.getvalue().splitlines())


def move(version: int) -> Said:
    """Move production to the version, whatever the gate says."""
    return ptp("promote", f"{TASK.name}@{version}", "--reason", "x" * 400, "--override", "--json")


def prepare(folder: Path, ledger: str) -> None:
    """Two versions, the first in production; and a process that works with them."""
    (folder / "tasks").mkdir()
    declared = TASK.model_dump(mode="json", exclude_unset=True)
    (folder / "tasks" / f"{TASK.name}.yaml").write_text(yaml.safe_dump(declared))
    for name in [name for name in os.environ if name.startswith("PTP_")]:
        del os.environ[name]
    os.environ |= {
        "PTP_HOME": str(folder / "home"),
        "PTP_TASKS": str(folder / "tasks"),
        "PTP_STORE": (folder / "store").as_uri(),
        "PTP_LEDGER": ledger,
    }
    registry = Registry(Ledger(ledger), FolderStore(folder / "store"))
    published(registry, TASK, 1)
    published(registry, TASK, 2, an_artifact(TASK, 1).digest)
    promote(registry, TASK, 1, Cause("me", "because"))
    registry.ledger.close()


def story(folder: Path, disk: Path, play: Callable[[Path, Path], Any]) -> Any:
    """Play it in this process, with a disk of its own for PostgreSQL."""
    stamina.set_testing(True, attempts=2)
    return play(folder, disk) if small_disk.mount(disk, megabytes=160) else None


def ask(tmp_path: Path, play: Callable[[Path, Path], Any]) -> Any:
    """What came of the play; the test is left out if the machine lets no process mount a disk."""
    with tempfile.TemporaryDirectory(prefix="ptp-disk-") as disk:  # pytest's folder is closed to PostgreSQL's user
        answer = processes.ask(story, tmp_path, Path(disk), play)
    if answer is None:
        pytest.skip("this machine lets no process mount a file system of its own")
    return answer


def tables_on_a_full_disk(folder: Path, disk: Path) -> dict[str, Any]:
    """The tables lie on the small disk, the rest of the server does not: SQLSTATE 53100."""
    with running_postgres() as server:
        place = disk / "tables"
        place.mkdir()
        if os.geteuid() == 0:
            os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
        disk.chmod(0o755)
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            connection.execute("CREATE DATABASE ledger TABLESPACE small")
        prepare(folder, server.url("ledger"))
        small_disk.fill(disk)
        acknowledged, full = 1, Said(0, "", [])
        while full.code == 0 and acknowledged < FIRST:
            full = move(2 if acknowledged % 2 else 1)
            acknowledged += full.code == 0
        before = look(folder)
        small_disk.empty(disk)
        again = move(2 if acknowledged % 2 else 1)
        return {
            "full": full,
            "acknowledged": acknowledged,
            "before": before,
            "again": again,
            "after": look(folder),
        }


def look(folder: Path) -> dict[str, Any]:
    """How long the history is, what it and a reader of the store name, and what the doctor finds."""
    registry = Registry(Ledger(os.environ["PTP_LEDGER"]), FolderStore(folder / "store"))
    history = registry.ledger.history(TASK.name)
    differences = [*map(str, examine(registry))]
    registry.ledger.close()
    return {
        "differences": differences,
        "rows": len(history),
        "ledger": history[-1].version,
        "reader": resolve(FolderStore(folder / "store"), TASK.name).number,
    }


def test_a_full_disk_below_the_tables_is_one_sentence_and_a_repeat_heals(tmp_path: Path) -> None:
    played = ask(tmp_path, tables_on_a_full_disk)
    full, acknowledged = played["full"], played["acknowledged"]
    assert full.code == 3, full
    [sentence] = [line for line in full.errors if line.startswith("error: ")]
    assert "No space left on device" in sentence
    assert "check that" in sentence
    assert "postgres@127.0.0.1" in sentence
    assert full.output == ""
    assert played["before"]["rows"] == acknowledged
    assert played["before"]["ledger"] == played["before"]["reader"]
    assert played["before"]["differences"] == []
    assert played["again"].code == 0, played["again"]
    assert played["after"]["rows"] == acknowledged + 1
    assert played["after"]["ledger"] == played["after"]["reader"] != played["before"]["reader"]
    assert played["after"]["differences"] == []


def server_on_a_full_disk(folder: Path, disk: Path) -> dict[str, Any]:
    """Everything lies on the small disk, and the log of writes needs a new file: the server ends itself."""
    root = disk / "server"
    root.mkdir()
    disk.chmod(0o755)
    server = Postgres(root, durable=True)
    try:
        prepare(folder, server.create_database("ledger"))
        small_disk.fill(disk)
        full = Said(0, "", [])
        while full.code == 0:
            with psycopg.connect(server.url(), autocommit=True) as connection, suppress(psycopg.Error):
                connection.execute("SELECT pg_switch_wal()")
            full = move(2)
            full = move(1) if full.code == 0 else full
        small_disk.empty(disk)
        if server.process.poll() is None:
            server.kill()
        server.start()
        again = move(2)
        return {"full": full, "again": again, "after": look(folder)}
    finally:
        server.kill()


def test_a_server_that_a_full_disk_ended_is_away_and_a_repeat_heals(tmp_path: Path) -> None:
    played = ask(tmp_path, server_on_a_full_disk)
    assert played["full"].code == 3, played["full"]
    assert len([line for line in played["full"].errors if line.startswith("error: ")]) == 1
    assert played["again"].code == 0, played["again"]
    assert played["after"]["ledger"] == played["after"]["reader"] == 2
    assert played["after"]["differences"] == []
