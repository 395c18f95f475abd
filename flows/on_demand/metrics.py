"""Metrics of tasks and nights for Prometheus, read from the ledger; they hold names of tasks and numbers, no texts."""

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from ptpipeline.durable import publish
from ptpipeline.errors import PreconditionFailed
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.settings import resolve_path
from registry.ledger.ledger import Ledger
from registry.ledger.nights import RecordedNight, list_nights, sum_tasks

_READABLE = 0o644  # node_exporter runs as another user


class LedgerMetrics(Collector):
    """Reads the ledger whenever the metrics are asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; raises ServiceUnavailable if the ledger does not answer."""
        yield from self._production()
        yield from self._tasks()
        yield from self._last_night()

    def _production(self) -> Iterator[Metric]:
        version = GaugeMetricFamily("ptp_production_version", "Number of the version in production", labels=["task"])
        since = GaugeMetricFamily(
            "ptp_production_since_timestamp_seconds", "When production was moved last", labels=["task"]
        )
        for head in self._ledger.heads():
            if head.alias == PRODUCTION:
                version.add_metric([head.task], head.version)
                since.add_metric([head.task], _timestamp(head.at))
        yield from (version, since)

    def _tasks(self) -> Iterator[Metric]:
        lines = CounterMetricFamily("ptp_task_nights", "Nights by what they came to", labels=["task", "status"])
        tokens = CounterMetricFamily("ptp_task_tokens", "Tokens that trainings read", labels=["task"])
        seconds = CounterMetricFamily("ptp_task_train_seconds", "Seconds that trainings took", labels=["task"])
        processor = CounterMetricFamily(
            "ptp_task_processor_seconds", "Processor seconds that trainings took", labels=["task"]
        )
        newest = GaugeMetricFamily(
            "ptp_task_last_night_timestamp_seconds", "When a night last came to an end for the task", labels=["task"]
        )
        passed = GaugeMetricFamily("ptp_task_gate_passed", "Whether its last verdict passed", labels=["task"])
        for total in sum_tasks(self._ledger):
            for status, count in sorted(total.statuses.items()):
                lines.add_metric([total.task, status], count)
            tokens.add_metric([total.task], total.tokens)
            seconds.add_metric([total.task], total.seconds)
            processor.add_metric([total.task], total.processor_seconds)
            newest.add_metric([total.task], _timestamp(total.last))
            if total.verdict is not None:
                passed.add_metric([total.task], float(total.verdict == "passed"))
        yield from (lines, tokens, seconds, processor, newest, passed)

    def _last_night(self) -> Iterator[Metric]:
        started = GaugeMetricFamily(
            "ptp_night_started_timestamp_seconds", "When the last night of a flow began", labels=["flow"]
        )
        seconds = GaugeMetricFamily(
            "ptp_night_duration_seconds", "How long the last ended night of a flow took", labels=["flow"]
        )
        ended = GaugeMetricFamily("ptp_night_ended", "Whether the last night has ended", labels=["flow"])
        nights = list_nights(self._ledger, 100)
        for flow in sorted({night.flow for night in nights}):
            own = [night for night in nights if night.flow == flow]
            started.add_metric([flow], _timestamp(own[0].started))
            ended.add_metric([flow], float(own[0].ended is not None))
            if (took := next((_duration(night) for night in own if night.ended), None)) is not None:
                seconds.add_metric([flow], took)
        yield from (started, ended, seconds)


def render_metrics(ledger: Ledger) -> bytes:
    """Return the metrics as OpenMetrics; raises ServiceUnavailable if the ledger does not answer.

    Readers of Prometheus's older text, as node_exporter is one, take it too: counters have no type there.
    """
    told: bytes = generate_latest(_registry(ledger))  # type: ignore[no-untyped-call]
    return told


def write_metrics(ledger: Ledger, path: Path) -> None:
    """Replace the file by the metrics of now, at once, readable by every user as node_exporter is another one.

    Raises PreconditionFailed if it cannot be written.
    """
    body, path = render_metrics(ledger), resolve_path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ptp-") as folder:
            partial = Path(folder, "metrics")
            partial.write_bytes(body)
            partial.chmod(_READABLE)
            publish(partial, path)
    except OSError as error:
        raise PreconditionFailed(f"{path}: cannot be written ({error.strerror}); name another file with --to") from None


def _registry(ledger: Ledger) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerMetrics(ledger))
    return registry


def _timestamp(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _duration(night: RecordedNight) -> float:
    return _timestamp(night.ended or night.started) - _timestamp(night.started)
