"""What the server did, for Prometheus and for its page; it holds names of tasks and numbers, no texts."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from ptpipeline.serving.answerer import Answerer
from ptpipeline.serving.live import Live
from ptpipeline.serving.served import Served

RECENT = 100  # answers of a version whose latency the page shows
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures(NamedTuple):
    """Of one version since the server started; milliseconds of its last answers, 0 if it gave none."""

    answers: int
    errors: int
    median_ms: float
    slowest_ms: float


class Exposition(NamedTuple):
    """What Prometheus is told, and in which format."""

    body: bytes
    media_type: str


class _Version:
    """What one version did."""

    def __init__(self) -> None:
        self.answers = self.errors = 0
        self.recent: deque[float] = deque(maxlen=RECENT)


class Metrics:
    """Counts requests and answers; reads the rest from those who know it, whenever it is asked for."""

    def __init__(self, live: Live, answerer: Answerer) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series each: when this process began it
        self._registry = CollectorRegistry(auto_describe=False)
        self._versions: dict[str, _Version] = {}
        own, by_version = self._registry, ["task", "version"]
        self._requests = Counter("ptp_serve_requests", "Requests by what they got", ["route", "status"], registry=own)
        took = "From a request's head to the end of its answer"
        self._seconds = Histogram("ptp_serve_request_seconds", took, ["route"], registry=own, buckets=_SECONDS)
        self._answers = Counter("ptp_serve_answers", "Texts that were answered", by_version, registry=own)
        self._errors = Counter("ptp_serve_errors", "Texts that were not answered", by_version, registry=own)
        self._tokens = Counter("ptp_serve_generated_tokens", "Tokens that were generated", by_version, registry=own)
        self._read = Counter(
            "ptp_serve_read_tokens", "Tokens that were read, with those of prompts", by_version, registry=own
        )
        self._registry.register(_Observed(live, answerer))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_answers(self, served: Served, answers: int, errors: int, seconds: float) -> None:
        """Count the answers of one request to a version, and the texts of it that got none."""
        known = self._versions.setdefault(served.digest, _Version())
        known.answers += answers
        known.errors += errors
        known.recent.append(seconds)
        self._answers.labels(served.task, served.name).inc(answers)
        self._errors.labels(served.task, served.name).inc(errors)

    def count_tokens(self, served: Served, read: int, generated: int) -> None:
        """Count what was read for an answer, and generated."""
        self._read.labels(served.task, served.name).inc(read)
        self._tokens.labels(served.task, served.name).inc(generated)

    def figures(self, digest: str) -> Figures:
        """Return what a version did."""
        known = self._versions.get(digest)
        if known is None:
            return Figures(0, 0, 0.0, 0.0)
        ordered = sorted(known.recent)
        return Figures(known.answers, known.errors, ordered[len(ordered) // 2] * 1000, ordered[-1] * 1000)

    def render(self, accept: str) -> Exposition:
        """Return everything as OpenMetrics if the header Accept names it, else in Prometheus's older text."""
        kinds = [kind.partition(";")[0].strip() for kind in accept.split(",")]
        if "application/openmetrics-text" in kinds:
            told: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return Exposition(told, openmetrics.CONTENT_TYPE_LATEST)
        return Exposition(generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4)


class _Observed(Collector):
    """What others know, as gauges."""

    def __init__(self, live: Live, answerer: Answerer) -> None:
        self._live, self._answerer = live, answerer

    def collect(self) -> Iterator[Metric]:
        """Yield what is so now."""
        state, load = self._live.observe(), self._answerer.observe()
        yield _gauge("ptp_serve_waiting", "Texts that wait for an answer or get one", load.waiting)
        yield _gauge("ptp_serve_generating", "Texts that are being generated", load.generating)
        yield _count("ptp_serve_batches", "Batches of texts that were classified", load.batches)
        yield _count("ptp_serve_batched_texts", "Texts in these batches", load.texts)
        yield _gauge("ptp_serve_cache_bytes", "Bytes of prefix caches in memory", load.cache_bytes)
        yield _count("ptp_serve_cache_hits", "Prefix caches that were in memory", load.cache_hits)
        yield _count("ptp_serve_cache_misses", "Prefix caches that had to be computed", load.cache_misses)
        yield _gauge("ptp_serve_held_versions", "Versions that are loaded", state.held)
        if state.away is not None:
            yield _gauge("ptp_serve_store_age_seconds", "Since the store was last reached", state.away)
        version = GaugeMetricFamily("ptp_serve_version", "Version by which an alias answers", labels=["task", "alias"])
        for promotion in state.promotions:
            version.add_metric([promotion.task, promotion.alias], promotion.version)
        refused = GaugeMetricFamily(
            "ptp_serve_refused", "Aliases whose newest promotion was refused", labels=["task", "alias"]
        )
        for refusal in state.refused:
            refused.add_metric([refusal.task, refusal.alias], 1)
        yield from (version, refused)


def _gauge(name: str, text: str, value: float) -> Metric:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge


def _count(name: str, text: str, value: float) -> Metric:
    counter = CounterMetricFamily(name, text)
    counter.add_metric([], value)
    return counter
