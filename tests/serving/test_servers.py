"""A server's report is in the store before it is returned, also if another process writes under the same name."""

from pathlib import Path

import pytest

from ptpipeline.errors import ArtifactError, PreconditionFailed
from ptpipeline.records.serving import Holding, Observed, Refused
from ptpipeline.serving.servers import ATTEMPTS, read_server_reports, report_holdings
from ptpipeline.storage import FolderStore, Stored
from ptpipeline.storage.keys import server_key

HOLDS = [Holding("mood", "a" * 64)]


class Contested(FolderStore):
    """Another process replaces the object after each of the first `times` reads."""

    def __init__(self, root: Path, times: int) -> None:
        super().__init__(root)
        self.times = times

    def read(self, key: str) -> Stored:
        stored = super().read(key)
        if self.times:
            self.times -= 1
            super().replace(key, stored.body + b" ", stored.etag)
        return stored


@pytest.mark.parametrize("others", range(ATTEMPTS))
def test_a_report_is_stored_in_place_of_the_one_of_another_process(tmp_path: Path, others: int) -> None:
    report_holdings(FolderStore(tmp_path), "host", [])
    report = report_holdings(Contested(tmp_path, others), "host", HOLDS)
    assert read_server_reports(FolderStore(tmp_path)) == [report]


def test_a_report_that_was_not_stored_is_not_returned(tmp_path: Path) -> None:
    before = report_holdings(FolderStore(tmp_path), "host", [])
    with pytest.raises(PreconditionFailed, match="another server reports under the same name"):
        report_holdings(Contested(tmp_path, ATTEMPTS), "host", HOLDS)
    assert read_server_reports(FolderStore(tmp_path)) == [before]


def test_a_report_that_was_copied_to_another_servers_place_is_refused(tmp_path: Path) -> None:
    """What the other server holds would be deleted."""
    store = FolderStore(tmp_path)
    report_holdings(store, "host", HOLDS)
    other = report_holdings(store, "other", [])
    store.replace(server_key("host"), other.model_dump_json(indent=1).encode(), store.read(server_key("host")).etag)
    with pytest.raises(ArtifactError, match=f"{server_key('host')}: .*it is of another server"):
        read_server_reports(store)


def test_a_server_of_ten_thousand_tasks_reports_them_all(tmp_path: Path) -> None:
    store, tasks = FolderStore(tmp_path), [f"task-{number:05d}-of-a-long-name" for number in range(10_000)]
    report = report_holdings(
        store,
        "host",
        [Holding(task, "a" * 64) for task in tasks],
        [Observed(task, "production", 1, 1) for task in tasks],
        [Refused(task, "production", "the file is truncated or altered " * 4) for task in tasks],
    )
    assert read_server_reports(store) == [report]
