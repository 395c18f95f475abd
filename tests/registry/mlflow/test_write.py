"""What an interrupted or a cleaned up MLflow holds of a prompt is found, finished, or made once more."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.rest_store import RestStore

from benchmarks.fixtures.prompts import a_request, a_snapshot, an_artifact, published
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.task.task import Task
from registry.mlflow.store import MlflowStore
from registry.mlflow.write import ensure_experiment
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.promotion import promote
from registry.versions.publish import load_card, register, stage
from tests.registry.mlflow.test_store import losing

pytestmark = pytest.mark.servers
ME = Cause("me", "because")


def published_with(registry: Registry, task: Task, **changes: object) -> None:
    """Publish the prompt, whose training says so much else."""
    stage(registry.ledger, registry.store, an_artifact(task))
    request = a_request(task)
    register(registry, replace(request, tuned=request.tuned.model_copy(update=changes)))


def test_an_experiment_that_was_deleted_comes_back(shown: Registry, task: Task, client: MlflowClient) -> None:
    experiment = ensure_experiment(client, task.name)
    client.delete_experiment(experiment)
    published(shown, task, 1)
    assert ensure_experiment(client, task.name) == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "unknown"])
def test_a_training_run_that_is_gone_is_filled_from_the_ledger(
    shown: Registry, task: Task, client: MlflowClient, deleted: bool
) -> None:
    run = uuid.uuid4().hex
    if deleted:
        run = client.create_run(ensure_experiment(client, task.name)).info.run_id
        client.delete_run(run)
    published_with(shown, task, tracking_run=run)
    found = client.get_run(client.get_model_version(task.name, "1").run_id)
    assert found.info.run_id != run
    assert (found.info.lifecycle_stage, found.data.tags["ptp.digest"]) == ("active", an_artifact(task).digest)


def test_a_run_that_an_interrupted_publish_left_is_the_versions(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    tags = {"ptp.digest": an_artifact(task, 1).digest}
    run = client.create_run(ensure_experiment(client, task.name), tags=tags).info.run_id
    published(shown, task, 1)
    assert client.get_model_version(task.name, "1").run_id == run


def test_a_logged_model_that_was_left_half_written_is_replaced(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    experiment, digest = ensure_experiment(client, task.name), an_artifact(task, 1).digest
    half = client.create_logged_model(experiment, tags={"ptp.digest": digest}).model_id
    published(shown, task, 1)
    (whole,) = client.search_logged_models([experiment], filter_string=f"tags.`ptp.digest` = '{digest}'")
    assert client.get_model_version(task.name, "1").source == f"models:/{whole.model_id}" != f"models:/{half}"


def test_a_logged_model_that_is_whole_is_kept(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1)
    source = client.get_model_version(task.name, "1").source
    client.delete_model_version(task.name, "1")
    published(shown, task, 1)
    assert client.get_model_version(task.name, "2").source == source


def test_a_long_curve_is_shown_to_its_end(shown: Registry, task: Task, client: MlflowClient) -> None:
    curve = [CurvePoint(step=step, loss=0.5, learning_rate=0.1, dev=0.5, token_norms=[1.0]) for step in range(260)]
    published_with(shown, task, curve=curve)
    run = client.get_model_version(task.name, "1").run_id
    assert {point.step for point in client.get_metric_history(run, "token_norm")} == set(range(260))


def test_the_data_of_a_run_are_the_splits_of_its_snapshot(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1)
    inputs = client.get_run(client.get_model_version(task.name, "1").run_id).inputs.dataset_inputs
    snapshot = a_snapshot(task)
    assert {one.dataset.name: one.dataset.digest for one in inputs} == {
        f"{task.name}-{name}": info.digest[:32] for name, info in snapshot.splits().items()
    }


def test_a_template_is_named_by_the_aliases_that_name_its_version_now(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    other = task.model_copy(update={"template": "Review: {text}\nMood:"})
    first = promote(shown, task, published(shown, task, 1), ME)
    second = published(shown, other, 2, first.digest)

    def template() -> int:
        return int(client.get_prompt_version_by_alias(f"{task.name}.template", "production").version)

    place_beside(shown, task, second, 0, ME)
    assert template() == 1
    promote(shown, task, second, Cause("me", "because", override=True))
    assert template() == 2
    published(shown, task, 1)  # which production named before
    assert template() == 2


@pytest.mark.parametrize("tags", [{}, {"ptp.task": "another"}], ids=["somebody's", "another task's"])
def test_a_model_of_the_same_name_keeps_its_versions_and_aliases(
    shown: Registry, task: Task, client: MlflowClient, tags: dict[str, str]
) -> None:
    client.create_registered_model(task.name, tags=tags)
    client.create_model_version(task.name, "s3://somewhere/else", await_creation_for=0)
    client.set_registered_model_alias(task.name, "production", "1")
    promote(shown, task, published(shown, task, 1), ME)
    told = {action.what for action in reconcile(shown, {}, task.name)}
    assert [("is not the task's" in words, "rename that model there" in words) for words in told] == [(True, True)]
    assert client.get_registered_model(task.name).aliases == {"production": "1"}
    client.rename_registered_model(task.name, f"{task.name}-theirs")
    assert all(action.done for action in reconcile(shown, {}, task.name))
    assert (examine(shown, task.name), reconcile(shown, {}, task.name)) == ([], [])


@pytest.mark.parametrize(("owner", "versions"), [("ours", 1), ("another", 0)])
def test_a_model_that_another_process_makes_meanwhile_is_used_if_it_is_the_tasks(
    shown: Registry, task: Task, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, owner: str, versions: int
) -> None:
    ask = MlflowClient.get_registered_model

    def make_after(asked: MlflowClient, name: str) -> Any:
        monkeypatch.undo()
        try:
            return ask(asked, name)
        finally:
            client.create_registered_model(name, tags={"ptp.task": task.name if owner == "ours" else owner})

    monkeypatch.setattr(MlflowClient, "get_registered_model", make_after)
    published(shown, task, 1)
    assert len(client.search_model_versions(f"name='{task.name}'")) == versions


def test_a_promotion_to_a_version_of_the_same_template_writes_nothing_there(
    shown: Registry, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    second, written, write = published(shown, task, 2, first.digest), [], RestStore.set_registered_model_alias

    def note(store: RestStore, name: str, alias: str, version: str) -> None:
        written.append(name)
        write(store, name, alias, version)

    monkeypatch.setattr(RestStore, "set_registered_model_alias", note)
    promote(shown, task, second, ME)
    assert written == [task.name]


def test_a_model_without_its_tag_is_the_tasks_if_it_holds_a_version_of_ours(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    published(shown, task, 1)
    client.delete_registered_model_tag(task.name, "ptp.task")
    published(shown, task, 2)
    assert len(client.search_model_versions(f"name='{task.name}'")) == 2


def test_files_that_only_clients_may_write_and_this_one_cannot_are_told_in_one_sentence(
    shown: Registry, task: Task, client: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    experiment = client.create_experiment(f"ptpipeline/{task.name}", f"file://{tmp_path}/file/below")
    published(shown, task, 1)
    [action] = reconcile(shown, {}, task.name)
    assert f"MLflow lets its clients write files to file://{tmp_path}/file/below" in action.what
    assert "rename an older one in MLflow" in action.what
    client.rename_experiment(experiment, f"{task.name} of ann")
    assert [action.done for action in reconcile(shown, {}, task.name)] == [True]
    assert reconcile(shown, {}, task.name) == []


def test_a_verdict_that_is_withheld_by_now_loses_the_tag_of_its_digest(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    published(shown, task, 1, kind="failed")
    assert "ptp.verdict_digest" in client.get_model_version(task.name, "1").tags
    request = a_request(task, 1, passed=False)
    assert request.verdict is not None
    register(shown, replace(request, verdict=request.verdict.model_copy(update={"figures": "quiet"})))
    tags = client.get_model_version(task.name, "1").tags
    assert ("ptp.verdict_digest" in tags, tags["ptp.verdict"]) == (False, "failed")


def test_why_an_edit_was_refused_is_cut_to_what_mlflow_keeps(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1)
    assert shown.mlflow is not None
    shown.mlflow.refuse(task.name, "1", "x" * 6000)
    assert client.get_model_version(task.name, "1").tags["ptp.refused"] == "x" * 5000


def make_another(client: MlflowClient, task: Task) -> None:
    """Make version 2 of the model of version 1, as a person can."""
    source = client.get_model_version(task.name, "1").source
    client.create_model_version(task.name, source, model_id=source.removeprefix("models:/"), await_creation_for=0)


def test_a_version_that_lost_the_tag_of_its_digest_is_found_by_its_model(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    """The first, if somebody made more of it."""
    published(shown, task, 1)
    make_another(client, task)
    client.delete_model_version_tag(task.name, "1", "ptp.digest")
    published(shown, task, 1)
    shown_as = {one.version: one.tags.get("ptp.digest") for one in client.search_model_versions(f"name='{task.name}'")}
    assert shown_as == {"1": an_artifact(task, 1).digest, "2": None}


def test_a_model_version_that_an_alias_names_is_described_itself(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    """Though it is not the first of its prompt: a person looks at the page that the alias leads to."""
    published(shown, task, 1)
    make_another(client, task)
    card, version = load_card(shown, task.name, an_artifact(task, 1).digest), shown.ledger.version(task.name, 1)
    assert shown.mlflow is not None
    client.set_model_version_tag(task.name, "2", "mine", "kept")
    shown.mlflow.describe(card, version, "2")
    first, second = (client.get_model_version(task.name, number) for number in ("1", "2"))
    assert (second.description, second.tags["ptp.version"]) == (first.description, "1")
    assert second.tags["mine"] == "kept"


def test_the_trainings_own_run_leads_to_its_prompt(shown: Registry, task: Task, client: MlflowClient) -> None:
    run = client.create_run(ensure_experiment(client, task.name)).info.run_id
    published_with(shown, task, tracking_run=run)
    tags = client.get_run(run).data.tags
    assert (tags["ptp.digest"], tags["mlflow.source.git.commit"]) == (an_artifact(task).digest, "c0ffee")
    assert tags["mlflow.linkedPrompts"] == f'[{{"name": "{task.name}.template", "version": "1"}}]'


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(task: Task, mlflow_url: str) -> None:
    class Overtaken(MlflowClient):
        def get_experiment_by_name(self, name: str) -> Any:
            found = super().get_experiment_by_name(name)
            if found is None:
                super().create_experiment(name)
            return found

    client = Overtaken(mlflow_url)
    assert (
        ensure_experiment(client, task.name) == client.get_experiment_by_name(f"ptpipeline/{task.name}").experiment_id
    )


def test_what_was_measured_names_its_own_rows_and_step(shown: Registry, task: Task, client: MlflowClient) -> None:
    """The test rows may have grown since the training."""
    request = a_request(task)
    assert request.report is not None
    report = request.report.model_copy(update={"test_digest": "7" * 64})
    tuned = request.tuned.model_copy(update={"best_step": 5})
    shown.ledger.save_snapshot(a_snapshot(task))
    stage(shown.ledger, shown.store, an_artifact(task))
    register(shown, replace(request, report=report, tuned=tuned))
    version = client.get_model_version(task.name, "1")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    measured = {(metric.key, metric.dataset_digest, metric.step) for metric in model.metrics}
    trained = a_snapshot(task).splits()
    assert {("accuracy", "7" * 32, 5), ("best_dev", trained["dev"].digest[:32], 5)} <= measured
    shown_as = {one.dataset.name: one.dataset for one in client.get_run(version.run_id).inputs.dataset_inputs}
    assert shown_as[f"{task.name}-test"].digest == "7" * 32
    assert shown_as[f"{task.name}-train"].digest == trained["train"].digest[:32]
    assert {one.source_type for one in shown_as.values()} == {"local"}


def test_a_page_that_is_as_it_should_be_is_not_written_again(shown: Registry, task: Task, mlflow_url: str) -> None:
    digest = an_artifact(task, 1).digest
    with losing(mlflow_url, 0) as (url, log):
        seen = Registry(shown.ledger, shown.store, MlflowStore(url))
        version = seen.ledger.version(task.name, published(seen, task, 1))
        published_by = len(log)
        MlflowStore(url).describe(load_card(seen, task.name, digest), version)
    assert [request for request in log[published_by:] if not request.startswith("GET ")] == []
    assert log[published_by:]


def test_a_logged_model_is_ready_last(shown: Registry, task: Task, mlflow_url: str) -> None:
    """One that is ready is never looked into again: an interrupted one would stay without its files."""
    with losing(mlflow_url, 0) as (url, log):
        published(Registry(shown.ledger, shown.store, MlflowStore(url)), task, 1)
    ready = next(
        place for place, request in enumerate(log) if request.startswith("PATCH") and "logged-models" in request
    )
    files = [log.index(request) for request in log if request.startswith("PUT") and "report.html" not in request]
    assert len(files) == 3
    assert max(files) < ready
