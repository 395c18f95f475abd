"""What appears in MLflow under which names, seen on a real server; descriptions may say other words."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.mlflow_server import running_mlflow
from tests.golden import product
from tests.golden.pins import assert_same, pinned

OURS = (
    "ptp.",
    "mlflow.source.git.commit",
    "mlflow.linkedPrompts",
    "mlflow.prompt",
    "mlflow.runName",
    "mlflow.data.context",
)
NEW_EACH_TIME = ("ptp.report",)


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that holds nothing else, so that all that it shows may be pinned."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.mark.servers
def test_mlflow_shows_the_same_names(mlflow_url: str, tmp_path: Path) -> None:
    registry = product.registered(tmp_path, mlflow_url)
    product.follow_a_training(mlflow_url)
    product.refuse_an_alias(registry)
    assert_same(everything(MlflowClient(mlflow_url, mlflow_url)), pinned("pins/mlflow.json"))


def everything(client: MlflowClient) -> dict[str, Any]:
    """All experiments, models and prompts of the server by name."""
    experiments = {found.name: found.experiment_id for found in client.search_experiments() if found.name != "Default"}
    runs = [run for place in experiments.values() for run in client.search_runs([place])]
    logged = [model for place in experiments.values() for model in client.search_logged_models([place])]
    return {
        "experiments": sorted(experiments),
        "runs": sorted(map(a_run, runs), key=str),
        "logged models": sorted((a_logged_model(client, model) for model in logged), key=str),
        "registered models": {
            model.name: {"tags": ours(model.tags), "aliases": model.aliases}
            for model in client.search_registered_models()
        },
        "versions": sorted(
            (
                {"name": found.name, "version": found.version, "tags": ours(found.tags)}
                for found in client.search_model_versions()
            ),
            key=str,
        ),
        "prompts": {
            "mood.template": [
                [found.template, ours(found.tags)] for found in client.search_prompt_versions("mood.template")
            ]
        },
    }


def a_run(run: Any) -> dict[str, Any]:
    """A run without its ids and times."""
    data = [
        [
            found.dataset.name,
            found.dataset.digest,
            found.dataset.source_type,
            ours({tag.key: tag.value for tag in found.tags}),
        ]
        for found in run.inputs.dataset_inputs
    ]
    return {
        "name": timeless(run.info.run_name),
        "status": run.info.status,
        "tags": ours(run.data.tags),
        "params": run.data.params,
        "metrics": run.data.metrics,
        "data sets": sorted(data, key=str),
    }


def a_logged_model(client: MlflowClient, model: Any) -> dict[str, Any]:
    """A logged model without its ids and times."""
    metrics = sorted([found.key, found.value, found.step, found.dataset_name or ""] for found in model.metrics)
    files = sorted(found.path for found in client.list_logged_model_artifacts(model.model_id))
    return {
        "name": model.name,
        "type": model.model_type,
        "status": str(model.status),
        "tags": ours(model.tags),
        "params": model.params,
        "metrics": metrics,
        "files": files,
    }


def timeless(text: str) -> str:
    """The words without the minute in which they were written."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "TIME", text)


def ours(tags: dict[str, str]) -> dict[str, str]:
    """The tags that we set."""
    return {
        name: "new each time" if name in NEW_EACH_TIME else timeless(value)
        for name, value in sorted(tags.items())
        if name.startswith(OURS)
    }
