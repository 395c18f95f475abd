"""What Prometheus is told, and that docs/serving.md tells the same."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ptpipeline.server.metrics import RECENT, Figures, Metrics
from ptpipeline.serving.served import Served
from tests.server.serving import Running, running
from tests.serving.registered import a_prompt

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
    assert found["ptp_serve_read_tokens_total"] == {("writer", "writer@1"): 2 * usage["prompt_tokens"]}
    assert found["ptp_serve_generated_tokens_total"] == {("writer", "writer@1"): 2 * usage["completion_tokens"]}
    assert found["ptp_serve_batched_texts_total"][()] == 2
    httpx.post(
        f"{served.url}/v1/completions", json=body | {"model": "movies", "stream": True}
    )  # it answers with labels
    assert read(served)["ptp_serve_errors_total"][("movies", "movies@2")] == 2
    assert found["ptp_serve_requests_total"][("/v1/completions", "200")] == 2
    assert found["ptp_serve_version"][("production", "movies")] == 2
    assert found["ptp_serve_store_age_seconds"][()] < 30


def test_the_page_is_told_the_median_and_the_slowest_of_the_last_answers() -> None:
    metrics = Metrics(None, None)  # type: ignore[arg-type]  # nothing is asked of them
    assert metrics.figures("a" * 64) == Figures(0, 0, 0.0, 0.0)
    served = Served("movies", 1, "a" * 64, "", a_prompt(" yes").manifest)
    for seconds in (9.0, *[0.3] * (RECENT // 2), *[0.1] * (RECENT // 2)):
        metrics.count_answers(served, 2, 1, seconds)
    found = metrics.figures("a" * 64)
    assert (found.answers, found.errors) == (2 * (RECENT + 1), RECENT + 1)
    assert (found.median_ms, found.slowest_ms) == pytest.approx((300, 300))


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
