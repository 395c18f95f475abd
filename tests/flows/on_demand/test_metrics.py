"""Metrics of tasks and nights, as Prometheus reads them."""

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.fixtures.prompts import a_task, published
from flows.on_demand.metrics import render_metrics, write_metrics
from ptpipeline.errors import PreconditionFailed
from ptpipeline.storage import FolderStore
from registry.ledger.ledger import Ledger
from registry.ledger.nights import begin_night, end_night, list_nights
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from tests.registry.ledger.test_nights import MOOD, TONE, a_night


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.mark.parametrize("parse", [text_string_to_metric_families, openmetrics.text_string_to_metric_families])
def test_both_formats_of_prometheus_read_the_metrics(
    ledger: Ledger, tmp_path: Path, parse: Callable[[str], Iterator[Metric]]
) -> None:
    """node_exporter's textfile collector reads the older one, where `# EOF` is a comment."""
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Completed", [MOOD])
    write_metrics(ledger, tmp_path / "ptp.prom")
    assert (tmp_path / "ptp.prom").stat().st_mode & 0o777 == 0o644
    read = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parse((tmp_path / "ptp.prom").read_text())
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


def samples(ledger: Ledger) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(render_metrics(ledger).decode())
        for sample in family.samples
    }


def test_production_alone_is_a_metric_of_what_answers(ledger: Ledger, tmp_path: Path) -> None:
    registry, task, me = Registry(ledger, FolderStore(tmp_path / "store")), a_task(), Cause("me", "because")
    head = promote(registry, task, published(registry, task, 1), me)
    promote(registry, task, published(registry, task, 2, head.digest), me, "staging")
    read = samples(ledger)
    assert read["ptp_production_version", "mood"] == 1
    assert read["ptp_production_since_timestamp_seconds", "mood"] == datetime.fromisoformat(head.at).timestamp()


def test_a_failed_verdict_and_each_kind_of_seconds_are_told_apart(ledger: Ledger) -> None:
    begin_night(ledger, a_night("one"))
    failed = MOOD.model_copy(update={"verdict": "failed: gain", "processor_seconds": 7.5})
    end_night(ledger, a_night("one"), "Gate failed", [failed])
    read = samples(ledger)
    assert read["ptp_task_gate_passed", "mood"] == 0
    assert (read["ptp_task_train_seconds_total", "mood"], read["ptp_task_processor_seconds_total", "mood"]) == (
        2.5,
        7.5,
    )


def test_the_last_night_of_each_flow_is_told_and_how_long_the_last_took_that_ended(ledger: Ledger) -> None:
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Completed", [])
    begin_night(ledger, a_night("two", "2026-11-27T02:00:00+00:00"))
    begin_night(ledger, a_night("other").model_copy(update={"flow": "tune"}))
    read = samples(ledger)
    assert (read["ptp_night_ended", "nightly"], read["ptp_night_ended", "tune"]) == (0, 0)
    [ended] = [night for night in list_nights(ledger, 9) if night.ended]
    took = datetime.fromisoformat(str(ended.ended)) - datetime.fromisoformat(ended.started)
    assert read["ptp_night_duration_seconds", "nightly"] == pytest.approx(took.total_seconds(), abs=0.001)
    assert ("ptp_night_duration_seconds", "tune") not in read


def test_an_empty_ledger_has_metrics_without_samples(ledger: Ledger) -> None:
    families = list(text_string_to_metric_families(render_metrics(ledger).decode()))
    assert families
    assert [sample for family in families for sample in family.samples] == []


def test_a_task_without_a_verdict_has_no_metric_of_one(ledger: Ledger) -> None:
    begin_night(ledger, a_night("one"))
    end_night(ledger, a_night("one"), "Failed", [TONE])
    read = samples(ledger)
    assert read["ptp_task_nights_total", "failed", "tone"] == 1
    assert ("ptp_task_gate_passed", "tone") not in read
