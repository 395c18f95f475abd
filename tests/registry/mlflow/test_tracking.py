"""A training, followed in a real MLflow while it runs; one that is away ends nothing."""

import threading
from http.server import BaseHTTPRequestHandler

import pytest
from mlflow import MlflowClient

from benchmarks.fixtures.prompts import a_request, an_artifact
from ptpipeline.progress import Standing
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.task.task import Task
from registry.mlflow.client import LIMITS
from registry.mlflow.tracking import Tracking
from registry.registry import Registry
from registry.versions.publish import register, stage
from tests.http_server import Quiet, serve

pytestmark = pytest.mark.servers

POINT = CurvePoint(step=10, loss=0.5, learning_rate=0.01, dev=0.8, token_norms=[1.0, 2.0], token_gradients=[0.1, 0.3])


def test_a_training_is_followed_and_registered(
    shown: Registry, task: Task, mlflow_url: str, client: MlflowClient
) -> None:
    tracking = Tracking(mlflow_url)
    run = tracking.start(task.name, {"steps": 10, "method": "prompt"}, {"ptp.gang": "g"})
    tracking.log_point(run, POINT)
    tracking.finish(run, "FINISHED")
    stage(shown.ledger, shown.store, an_artifact(task))
    request = a_request(task)
    register(shown, type(request)(request.tuned.model_copy(update={"tracking_run": run})))
    assert run is not None
    found = client.get_run(run)
    assert (found.info.status, found.data.params) == ("FINISHED", {"steps": "10", "method": "prompt"})
    assert {name: found.data.metrics[name] for name in ("loss", "dev", "token_norm", "token_gradient")} == {
        "loss": 0.5,
        "dev": 0.8,
        "token_norm": 1.5,
        "token_gradient": 0.2,
    }
    assert client.get_model_version(task.name, "1").run_id == run


def test_how_far_work_has_come_is_shown_in_the_open_runs_or_in_one_that_ended(
    task: Task, mlflow_url: str, client: MlflowClient
) -> None:
    tracking = Tracking(mlflow_url)
    runs = [tracking.start(task.name, {}, {}) for _ in range(3)]
    tracking.finish(runs[0], "FINISHED")
    tracking.log_standing(None, Standing("training", 30, 120, "steps", 30, 9.0))
    tracking.log_standing(runs[0], Standing("mood: test rows: prompt", 5, 10, "rows", 5, 9.0))
    tracking.log_standing(runs[0], Standing("mood: norms", 0, 0, "rows", 0, 9.0))
    assert [client.get_run(str(run)).data.metrics for run in runs] == [
        {"progress/mood/test rows/prompt": 0.5},
        {"progress/training": 0.25},
        {"progress/training": 0.25},
    ]
    assert client.get_run(str(runs[0])).info.status == "FINISHED"
    assert tracking.lost == 0


def test_a_resumed_training_goes_on_in_its_run(task: Task, mlflow_url: str, client: MlflowClient) -> None:
    tracking = Tracking(mlflow_url)
    run = tracking.start(task.name, {"steps": 10}, {}, None)
    assert run is not None
    tracking.finish(run, "KILLED")
    resumed = Tracking(mlflow_url)
    assert resumed.start(task.name, {"steps": 10}, {}, run) == run
    assert client.get_run(run).info.status == "RUNNING"
    resumed.log_standing(None, Standing("training", 30, 120, "steps", 30, 9.0))
    assert client.get_run(run).data.metrics == {"progress/training": 0.25}
    tracking.finish(run, "FINISHED")
    assert client.get_run(run).info.status == "FINISHED"


def test_a_training_outlives_its_tracking(caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking("http://127.0.0.1:9")
    assert tracking.start("mood", {}, {}) is None
    for _ in range(2):
        tracking.log_point("a-run", POINT)
    tracking.finish(None, "FAILED")
    assert tracking.lost == 3
    assert len([record for record in caplog.records if "MLflow does not show" in record.message]) == 1


def test_a_training_does_not_wait_at_each_step_for_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = list[str](), threading.Event()

    class Hanging(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            over.wait(20)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # which puts back what the client sets
    monkeypatch.setitem(LIMITS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with serve(Hanging) as url:
        tracking = Tracking(url)
        for _ in range(5):
            tracking.log_point("a-run", POINT)
        assert (len(asked), tracking.lost) == (1, 5)
        tracking.finish("a-run", "FINISHED")  # else it runs for ever on MLflow's page
        assert len(asked) == 2
        over.set()


def test_a_trial_is_a_run_of_its_task_and_leads_to_the_flow_run(
    task: Task, mlflow_url: str, client: MlflowClient
) -> None:
    run = client.get_run(str(Tracking(mlflow_url, "http://prefect/run").start(f"{task.name}/seed 1", {}, {"a": "b"})))
    assert client.get_experiment(run.info.experiment_id).name == f"ptpipeline/{task.name}"
    assert (run.data.tags["a"], run.data.tags["ptp.flow_run"]) == ("b", "http://prefect/run")
    assert run.data.tags["mlflow.note.content"] == "Trained by [this flow run](http://prefect/run) in Prefect"


def test_what_mlflow_refuses_delays_nothing_else(task: Task, mlflow_url: str) -> None:
    """A server that answers is asked again at once, whatever it refused."""
    tracking = Tracking(mlflow_url)
    tracking.log_point("0" * 32, POINT)
    assert tracking.lost == 1
    assert tracking.start(task.name, {}, {}) is not None
