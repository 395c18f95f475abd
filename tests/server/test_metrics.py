"""What Prometheus is told, and that docs/serving.md tells the same."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from ptpipeline.server.metrics import RECENT, Figures, Metrics
from ptpipeline.serving.answerer import Load
from ptpipeline.serving.live import Live
from ptpipeline.serving.served import Served
from ptpipeline.storage import FolderStore
from tests.evaluation.probed import tiny
from tests.server.serving import Running, running
from tests.serving.registered import TASK, OnEngine, a_prompt, add_version, point

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("served")) as server:
        yield server


def read(served: Running) -> dict[str, dict[tuple[str, ...], float]]:
    """The values of each sample by those of its labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_answers_tokens_and_batches_are_counted(served: Running) -> None:
    asked = {"model": "movies", "input": ["a good film", "plot " * 500, "awful"]}
    httpx.post(f"{served.url}/v1/classify", json=asked).raise_for_status()
    body = {"model": "writer", "prompt": "a film"}
    usage = httpx.post(f"{served.url}/v1/completions", json=body).json()["usage"]
    httpx.post(f"{served.url}/v1/completions", json=body | {"stream": True}).raise_for_status()
    found = read(served)
    assert found["ptp_serve_answers_total"] == {("movies", "movies@2"): 2, ("writer", "writer@1"): 2}
    assert found["ptp_serve_errors_total"][("movies", "movies@2")] == 1
    read_by_labels = [len(tiny().encode(f"{text}\nSentiment:", True)) for text in ("a good film", "awful")]
    virtual = len(tiny().encode(" the film", False))
    assert found["ptp_serve_read_tokens_total"] == {
        ("movies", "movies@2"): sum(read_by_labels) + 2 * virtual,
        ("writer", "writer@1"): 2 * usage["prompt_tokens"],
    }
    assert found["ptp_serve_generated_tokens_total"] == {
        ("movies", "movies@2"): 0, ("writer", "writer@1"): 2 * usage["completion_tokens"]
    }  # fmt: skip
    assert found["ptp_serve_batched_texts_total"][()] == 2
    httpx.post(
        f"{served.url}/v1/completions", json=body | {"model": "movies", "stream": True}
    )  # it answers with labels
    assert read(served)["ptp_serve_errors_total"][("movies", "movies@2")] == 2
    assert found["ptp_serve_requests_total"][("/v1/completions", "200")] == 2
    assert found["ptp_serve_request_seconds_count"][("/v1/completions",)] == 2
    versions = {(alias, task): version for (alias, task), version in found["ptp_serve_version"].items()}
    assert versions == {("production", "movies"): 2, ("production", "pairs"): 1, ("production", "writer"): 1}
    assert found["ptp_serve_store_age_seconds"][()] < 30


ACCEPTED = "application/openmetrics-text; version=1.0.0; q=0.5, text/plain;version=0.0.4;q=0.4"  # by Prometheus


@pytest.mark.parametrize(
    ("accept", "kind"),
    [(ACCEPTED, "application/openmetrics-text; version=1.0.0"), ("*/*", "text/plain; version=0.0.4")],
)
def test_whoever_accepts_openmetrics_gets_it_and_everybody_else_the_older_text(
    served: Running, accept: str, kind: str
) -> None:
    answer = httpx.get(f"{served.url}/metrics", headers={"accept": accept})
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    parse = openmetrics.text_string_to_metric_families if "open" in kind else text_string_to_metric_families
    assert "ptp_serve_requests" in {family.name for family in parse(answer.text)}


def test_the_page_is_told_the_median_and_the_slowest_of_the_last_answers() -> None:
    metrics = Metrics(None, None)  # type: ignore[arg-type]  # nothing is asked of them
    assert metrics.figures("a" * 64) == Figures(0, 0, 0.0, 0.0)
    served = Served("movies", 1, "a" * 64, "", a_prompt(" yes").manifest)
    for seconds in (9.0, *[0.3] * (RECENT // 2), *[0.1] * (RECENT // 2)):
        metrics.count_answers(served, 2, 1, seconds)
    found = metrics.figures("a" * 64)
    assert (found.answers, found.errors) == (2 * (RECENT + 1), RECENT + 1)
    assert (found.median_ms, found.slowest_ms) == pytest.approx((300, 300))


class Counted:
    """An answerer that has done so much."""

    def observe(self) -> Load:
        return Load(11, 12, 13, 14, 15, 16, 17, alive=True)


def test_each_figure_is_told_under_its_name_also_before_the_store_was_reached(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    live = Live(store, OnEngine(), tmp_path / "home")
    told = Metrics(live, Counted()).render("").body.decode()  # type: ignore[arg-type]
    figures = dict(re.findall(r"^ptp_serve_(\w+) (.+)$", told, re.MULTILINE))
    assert figures == {
        "waiting": "11.0", "generating": "12.0", "batches_total": "13.0", "batched_texts_total": "14.0",
        "cache_bytes": "15.0", "cache_hits_total": "16.0", "cache_misses_total": "17.0", "held_versions": "0.0",
    }  # fmt: skip
    point(store, 1, add_version(store, a_prompt(" yes"), 1), 7)
    live.poll()
    assert (
        f'ptp_serve_version{{alias="production",task="{TASK}"}} 1.0'
        in Metrics(live, Counted()).render("").body.decode()
    )  # type: ignore[arg-type]


def test_a_stranger_cannot_make_new_series(served: Running) -> None:
    for number in range(20):
        httpx.get(f"{served.url}/v1/{number}")
        httpx.get(f"{served.url}/v1/models/task{number}")
        httpx.post(f"{served.url}/v1/classify", json={"model": f"task{number}", "input": "x"})
    routes = {labels[0] for labels in read(served)["ptp_serve_requests_total"]}
    assert routes <= {
        "other", "/metrics", "/v1/models/{model}", "/v1/classify", "/v1/completions",
    }  # fmt: skip


def test_the_page_names_every_metric_and_no_other(served: Running) -> None:
    told = {
        name.removesuffix("_total")
        for row in re.findall(r"^\| (`ptp_serve_.*?) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"ptp_serve_[a-z_]+", row)
    }
    families = text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text)
    assert told == {family.name for family in families}


def test_the_page_names_every_address_and_no_other(served: Running) -> None:
    rows = [row for row in PAGE.splitlines() if re.match(r"\| `(GET|POST) ", row)]
    told = {found.replace("NAME", "{model}") for row in rows for found in re.findall(r"`((?:GET|POST) /[^`]*)`", row)}
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    shown = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert told == shown | {"GET /openapi.json"}
