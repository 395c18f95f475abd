"""`ptp promote` with --canary, --shadow and --full, and what `ptp history` and `ptp status` say then."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.fixtures.prompts import an_artifact, published
from flows.cli import app  # with all verbs
from ptpipeline.errors import PromotionRefused
from ptpipeline.records.serving import Holding, Observed, Tally
from ptpipeline.serving.servers import report_holdings
from ptpipeline.storage.keys import server_key
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.registry.versions.test_promoters import declare


@pytest.fixture
def registry(named: Registry, tmp_path: Path) -> Registry:
    """Production of `mood` is version 1; version 2 passed against it; version 3 failed."""
    task = declare(tmp_path / "tasks", None)
    head = promote(named, task, published(named, task, 1), Cause("me", "first"))
    published(named, task, 2, head.digest)
    published(named, task, 3, head.digest, "failed")
    return named


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
    done = ptp("promote", "mood@2", "--alias", "canary", "--reason", "good", "--full")
    assert "mood@canary: version 2 does not stand beside it" in str(done.exception)
    ptp("promote", "mood@2", "--reason", "try it", "--canary", "10%")
    done = ptp("promote", "mood@3", "--reason", "good", "--full")
    assert "version 3 does not stand beside it" in str(done.exception)


def test_full_once_more_changes_nothing_and_says_so(registry: Registry) -> None:
    ptp("promote", "mood@2", "--reason", "try it", "--canary", "10%")
    for _ in range(2):
        done = ptp("promote", "mood@2", "--reason", "good", "--full")
        assert done.exit_code == 0, done.output
    assert "mood@production names version 2 already, since the move printed below" in done.stderr
    assert [row.version for row in registry.ledger.history("mood", "production")] == [1, 1, 2]


@pytest.mark.parametrize(("option", "words"), [("--shadow", "2 as shadow"), ("--canary=10%", "2 at 10%")])
def test_the_history_says_how_a_second_version_stood_beside(registry: Registry, option: str, words: str) -> None:
    ptp("promote", "mood@2", "--reason", "try it", option)
    assert words in CliRunner().invoke(app, ["history", "mood"]).stdout


def test_an_alias_names_a_version_and_not_a_place_in_its_history(registry: Registry) -> None:
    for words in (("promote", "mood@2", "--reason", "good"), ("rollback", "mood", "--reason", "bad")):
        assert ptp(*words).exit_code == 0
    assert json.loads(ptp("show", "mood").stdout)["version"]["number"] == 1  # it is the third move


def test_a_rollback_moves_the_alias_and_to_the_version_that_it_is_given(registry: Registry) -> None:
    assert ptp("promote", "mood@2", "--reason", "good").exit_code == 0
    for number in (1, 2, 3):
        ptp("promote", f"mood@{number}", "--alias", "staging", "--reason", "try it")
    done = ptp("rollback", "mood", "--alias", "staging", "--to", "1", "--reason", "bad")
    assert (json.loads(done.stdout)["alias"], json.loads(done.stdout)["version"]) == ("staging", 1), done.output
    assert {head.alias: head.version for head in registry.ledger.heads("mood")} == {"production": 2, "staging": 1}


def test_status_tells_servers_that_are_silent_or_lag_and_a_store_that_cannot_be_asked(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli.alarms import say_servers
    from flows.on_demand import serving

    task = declare(Path(registry.store.url.removeprefix("file://")).parent / "tasks", None)
    holds = [Holding("mood", an_artifact(task, 1).digest)]
    report_holdings(registry.store, "host", holds, [Observed("mood", "production", 0, 1)])
    assert say_servers(as_json=False) == []  # it was promoted a moment ago
    monkeypatch.setattr(serving, "SETTLED", timedelta(0))
    [lagging] = say_servers(as_json=False)
    assert lagging.startswith("host: mood@production: the ledger says version 1")
    monkeypatch.setattr(serving, "SILENT", timedelta(0))
    silent = say_servers(as_json=False)[-1]
    assert silent.startswith("host: it reported last at ")
    assert "if that server is gone, remove servers/host" in silent
    registry.store.replace(server_key("host"), b"{", registry.store.read(server_key("host")).etag)
    [unknown] = say_servers(as_json=False)
    assert unknown.startswith("what servers answer is not known: ")
    assert unknown in capsys.readouterr().err


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


def test_status_shows_the_servers_of_a_deployment_without_a_local_stack(registry: Registry) -> None:
    task = declare(Path(registry.store.url.removeprefix("file://")).parent / "tasks", None)
    held = [Holding("mood", an_artifact(task, 1).digest)]
    report_holdings(registry.store, "host", held, [Observed("mood", "production", 0, 1)])
    rows = [json.loads(line) for line in ptp("status", "--json").stdout.splitlines()]
    assert [row["server"] for row in rows if "server" in row] == ["host"]
