"""Metrics of tasks and nights, as Prometheus reads them."""

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.on_demand.metrics import render_metrics, write_metrics
from ptpipeline.errors import PreconditionFailed
from registry.ledger.ledger import Ledger
from registry.ledger.nights import begin_night, end_night
from tests.registry.ledger.test_nights import MOOD, a_night


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_prometheus_reads_the_metrics(ledger: Ledger, tmp_path: Path) -> None:
    begin_night(ledger, a_night("one"))
    end_night(ledger, "one", "Completed", [MOOD])
    write_metrics(ledger, tmp_path / "ptp.prom")
    assert (tmp_path / "ptp.prom").stat().st_mode & 0o777 == 0o644
    read = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families((tmp_path / "ptp.prom").read_text())
        for sample in family.samples
    }
    assert read["ptp_task_nights_total", "mood", "promoted"] == 1
    assert read["ptp_task_tokens_total", "mood"] == 900
    assert read["ptp_task_gate_passed", "mood"] == 1
    assert read["ptp_night_started_timestamp_seconds", "nightly"] == 1795658400
    assert read["ptp_night_ended", "nightly"] == 1


def test_metrics_take_no_device_or_folder_away(ledger: Ledger, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (("pipe", "a device, a pipe or a socket is there"), ("folder", "")):
        with pytest.raises(PreconditionFailed, match=rf"{name}: cannot be written \({reason}"):
            write_metrics(ledger, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert not list(tmp_path.glob(".ptp-*"))


def test_an_empty_ledger_has_metrics_without_samples(ledger: Ledger) -> None:
    families = list(text_string_to_metric_families(render_metrics(ledger).decode()))
    assert families
    assert [sample for family in families for sample in family.samples] == []
