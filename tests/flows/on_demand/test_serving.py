"""`ptp status` holds what servers report against what the ledger says."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from flows.on_demand import serving
from flows.on_demand.serving import compare_servers, describe_trials
from ptpipeline.records.serving import CanaryTally, Holding, Observed, Refused, Tally
from ptpipeline.serving.servers import report_holdings
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote

TASK = a_task()
ME = Cause("me", "because")
HOLDS = [Holding(TASK.name, an_artifact(TASK, 1).digest)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers had the time to see every promotion."""
    monkeypatch.setattr(serving, "SETTLED", timedelta(0))


@pytest.fixture
def promoted(tmp_path: Path) -> Iterator[Registry]:
    """Two versions were promoted, one after the other."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    plain = Registry(ledger, FolderStore(tmp_path / "store"))
    head = promote(plain, TASK, published(plain, TASK, 1), ME)
    promote(plain, TASK, published(plain, TASK, 2, head.digest), ME)
    yield plain
    ledger.close()


def test_a_server_that_follows_is_current(promoted: Registry) -> None:
    report_holdings(promoted.store, "host", HOLDS, [Observed(TASK.name, "production", 2, 2)])
    [server] = compare_servers(promoted)
    assert (server.server, server.current, server.behind, server.silent) == ("host", 1, [], False)


def test_a_server_that_lags_is_named_with_both_versions(promoted: Registry) -> None:
    report_holdings(promoted.store, "host", HOLDS, [Observed(TASK.name, "production", 1, 1)])
    [server] = compare_servers(promoted)
    assert server.behind == [
        "mood@production: the ledger says version 2 (promotion 2), and this server answers with version 1: it did not "
        "see it yet"
    ]


def test_a_server_has_a_moment_to_take_a_promotion_over(promoted: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    report_holdings(promoted.store, "host", HOLDS, [Observed(TASK.name, "production", 1, 1)])
    monkeypatch.setattr(serving, "SETTLED", timedelta(hours=1))
    [server] = compare_servers(promoted)
    assert (server.behind, server.current) == ([], 0)


def test_a_server_that_knows_a_later_promotion_is_current(promoted: Registry) -> None:
    """The ledger was read a moment before the server reported."""
    report_holdings(promoted.store, "host", HOLDS, [Observed(TASK.name, "production", 3, 1)])
    [server] = compare_servers(promoted)
    assert (server.behind, server.current) == ([], 1)


def test_a_refusal_of_a_server_that_answers_with_none_is_told(promoted: Registry) -> None:
    refused = [Refused(TASK.name, "production", "the file is truncated")]
    report_holdings(promoted.store, "host", HOLDS, [], refused)
    [server] = compare_servers(promoted)
    assert server.behind[0].endswith("this server answers with none: refused: the file is truncated")


def test_a_refusal_is_told_with_its_reason(promoted: Registry) -> None:
    refused = [Refused(TASK.name, "production", "the file is truncated")]
    report_holdings(promoted.store, "host", HOLDS, [Observed(TASK.name, "production", 1, 1)], refused)
    [server] = compare_servers(promoted)
    assert server.behind[0].endswith("answers with version 1: refused: the file is truncated")


def test_a_server_of_other_tasks_is_not_behind(promoted: Registry) -> None:
    report_holdings(promoted.store, "host", HOLDS, [])
    assert compare_servers(promoted)[0].behind == []


def test_a_server_that_reports_no_more_is_silent(promoted: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    report_holdings(promoted.store, "host", HOLDS, [])
    monkeypatch.setattr(serving, "SILENT", timedelta(0))
    assert compare_servers(promoted)[0].silent


def test_a_server_that_ended_is_not_shown(promoted: Registry) -> None:
    report_holdings(promoted.store, "host", [])
    assert compare_servers(promoted) == []


def test_tallies_of_several_servers_are_one_evidence(promoted: Registry) -> None:
    """Neither alone shows a difference."""
    one = Tally(TASK.name, "production", 3, 1, 2, asked=50, differ=9, judged=9, first=1, second=8)
    for name in ("one", "two"):
        report_holdings(promoted.store, name, HOLDS, trials=[one])
    servers = compare_servers(promoted)
    assert describe_trials(servers[:1])[0].endswith(
        "it alone was right in 8, version 1 alone in 1: no difference is shown"
    )
    assert describe_trials(servers) == [
        "mood@production: shadow 2 answered 100 texts, 18 of them otherwise than version 1; of 18 with feedback, it "
        "alone was right in 16, version 1 alone in 2: version 2 is right more often (error below 5%)"
    ]


def test_canaries_of_several_servers_are_one_evidence(promoted: Registry) -> None:
    one = CanaryTally(TASK.name, "production", 3, 1, 2, 90, 60, 10, 9, first=1, second=8)
    for name in ("one", "two"):
        report_holdings(promoted.store, name, HOLDS, canaries=[one])
    assert describe_trials(compare_servers(promoted)) == [
        "mood@production: of the answers with feedback, 18 of 20 of canary 2 were right, 120 of 180 of version 1; in "
        "pairs of one answer each, it alone was right in 16, version 1 alone in 2: version 2 is right more often "
        "(error below 5%)"
    ]


def test_tallies_of_other_promotions_are_other_evidence(promoted: Registry) -> None:
    one = Tally(TASK.name, "production", 3, 1, 2, asked=50, differ=9, judged=9, first=1, second=8)
    report_holdings(promoted.store, "one", HOLDS, trials=[one])
    report_holdings(promoted.store, "two", HOLDS, trials=[one._replace(seq=4)])
    assert len(describe_trials(compare_servers(promoted))) == 2
