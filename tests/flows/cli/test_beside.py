"""`ptp promote` with --canary, --shadow and --full, and what `ptp history` and `ptp status` say then."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.fixtures.prompts import an_artifact, published
from flows.cli import app  # with all verbs
from ptpipeline.errors import PromotionRefused
from ptpipeline.records.serving import Holding, Observed, Tally
from ptpipeline.serving.servers import report_holdings
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.registry.versions.test_promoters import declare


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Production of `mood` is version 1; version 2 passed against it; version 3 failed."""
    task = declare(tmp_path / "tasks", None)
    places = {
        "PTP_HOME": f"{tmp_path}/home",
        "PTP_TASKS": f"{tmp_path}/tasks",
        "PTP_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
        "PTP_STORE": f"file://{tmp_path}/store",
    }
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    registry = Registry(Ledger(places["PTP_LEDGER"]), FolderStore(tmp_path / "store"))
    head = promote(registry, task, published(registry, task, 1), Cause("me", "first"))
    published(registry, task, 2, head.digest)
    published(registry, task, 3, head.digest, "failed")
    return registry


def ptp(*words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--json"])


def test_a_canary_is_promoted_shown_and_made_full(registry: Registry) -> None:
    done = ptp("promote", "mood@2", "--reason", "try it", "--canary", "10%")
    assert json.loads(done.stdout)["beside"]["percent"] == 10, done.output
    shown = [json.loads(line) for line in ptp("history", "mood").stdout.splitlines()]
    assert ["beside" in row for row in shown] == [False, True]
    assert shown[1]["beside"]["version"] == 2
    full = ptp("promote", "mood@2", "--reason", "good", "--full")
    assert json.loads(full.stdout)["version"] == 2, full.output


def test_a_shadow_that_failed_its_gate_is_taken_and_a_canary_is_not(registry: Registry) -> None:
    done = ptp("promote", "mood@3", "--reason", "try it", "--canary", "10")
    assert isinstance(done.exception, PromotionRefused)
    assert "it failed the gate" in str(done.exception)
    done = ptp("promote", "mood@3", "--reason", "try it", "--shadow")
    assert json.loads(done.stdout)["beside"]["percent"] == 0, done.output


@pytest.mark.parametrize("share", ["0%", "100%", "-1", "1.5%", "ten", "", "٣", "10%%", "1e1"])
def test_a_share_that_is_none_is_refused(registry: Registry, share: str) -> None:
    done = ptp("promote", "mood@2", "--reason", "try it", f"--canary={share}")
    assert isinstance(done.exception, PromotionRefused)
    assert "expected a whole number from 1% to 99%" in str(done.exception)


def test_two_ways_at_once_are_refused(registry: Registry) -> None:
    done = ptp("promote", "mood@2", "--reason", "try it", "--canary", "10", "--shadow")
    assert "exclude each other" in str(done.exception)


def test_full_takes_only_what_stands_beside(registry: Registry) -> None:
    done = ptp("promote", "mood@2", "--reason", "good", "--full")
    assert "version 2 does not stand beside it" in str(done.exception)


def test_status_names_servers_that_lag_and_what_a_shadow_came_to(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.cli.alarms import say_servers

    task = declare(Path(registry.store.url.removeprefix("file://")).parent / "tasks", None)
    holds = [Holding("mood", an_artifact(task, 1).digest)]
    tally = Tally("mood", "production", 1, 1, 2, asked=10, differ=3)
    report_holdings(registry.store, "host", holds, [Observed("mood", "production", 1, 1)], trials=[tally])
    assert say_servers(as_json=True) == []
    told = capsys.readouterr()
    assert json.loads(told.out)["current"] == 1
    assert "mood@production: shadow 2 answered 10 texts, 3 of them otherwise than version 1" in told.err
