"""MLflow, real: what its pages show, a request lost anywhere, a database dropped, and a training followed while it
runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.store.entities import PagedList

from benchmarks.fixtures.mlflow_server import running_mlflow
from benchmarks.fixtures.prompts import a_request, an_artifact, published
from ptpipeline.errors import ServiceUnavailable
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.storage.keys import prompt_prefix
from ptpipeline.task.task import Task
from registry.mlflow.client import connect
from registry.mlflow.store import MlflowStore, _pages
from registry.mlflow.write import mlflow_template
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.reconcile import reconcile
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.promotion import promote, rollback
from registry.versions.publish import register, stage
from tests.http_server import Quiet, serve

pytestmark = pytest.mark.servers
ME = Cause("me", "because")


@contextmanager
def losing(url: str, nth: int) -> Iterator[tuple[str, list[str]]]:
    """A proxy of `url` that forwards every request and loses the answer of the n-th; yields its address and its log."""
    log: list[str] = []

    class Proxy(Quiet, BaseHTTPRequestHandler):
        def forward(self) -> None:
            log.append(f"{self.command} {self.path}")
            lost = len(log) == nth
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            answer = httpx.request(self.command, url + self.path, content=body, headers=headers)
            kind = answer.headers.get("Content-Type", "application/json")
            self.answer(503, b"{}", kind) if lost else self.answer(answer.status_code, answer.content, kind)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

    with serve(Proxy) as address:
        yield address, log


def test_an_imported_prompt_has_a_page_without_a_curve(shown: Registry, task: Task, client: MlflowClient) -> None:
    request = a_request(task)
    tuned = request.tuned.model_copy(
        update={"steps": 0, "best_step": 0, "seconds": 0.0, "tokens_per_second": 0.0, "curve": []}
    )
    stage(shown.ledger, shown.store, an_artifact(task))
    register(shown, replace(request, tuned=tuned))
    [version] = client.search_model_versions(f"name='{task.name}'")
    assert "- imported, not trained here: dev score 0.750" in version.description
    assert client.get_run(version.run_id).data.metrics["best_dev"] == 0.75


def test_a_curve_longer_than_a_request_is_shown_whole(shown: Registry, task: Task, client: MlflowClient) -> None:
    request = a_request(task)
    curve = [CurvePoint(step=step, loss=1.0, learning_rate=0.1, dev=0.5) for step in range(700)]
    stage(shown.ledger, shown.store, an_artifact(task))
    register(shown, replace(request, tuned=request.tuned.model_copy(update={"curve": curve})))
    [version] = client.search_model_versions(f"name='{task.name}'")
    assert len(client.get_metric_history(version.run_id, "dev")) == len(curve)
    run = client.get_run(version.run_id)
    assert (run.data.params["method"], run.data.tags["ptp.digest"]) == ("prompt", an_artifact(task).digest)
    assert run.info.status == "FINISHED"


def test_mlflow_tells_since_when_by_whom_and_why_a_version_is_in_production(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    version = client.get_model_version(task.name, "1")
    since = f"since {first.at[:16].replace('T', ' ')} UTC, by me, because: because"
    assert version.tags["ptp.alias.production"] == since
    assert f"### In production\n- **production** {since}" in version.description
    published(shown, task, 2, first.digest)
    second = promote(shown, task, 2, Cause("ada", "more [rows](http://x)"))
    before, now = (client.get_model_version(task.name, number) for number in ("1", "2"))
    assert "ptp.alias.production" not in before.tags
    assert "by me, because: because; then version 2, by ada: more \\[rows\\]" in before.description
    assert "### In production" not in before.description
    assert now.tags["ptp.alias.production"].endswith("by ada, because: more [rows](http://x)")
    assert second.previous == 1


def test_a_page_that_does_not_follow_its_aliases_is_named_and_mended(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    promote(shown, task, published(shown, task, 1), ME)
    told = client.get_model_version(task.name, "1").tags["ptp.alias.production"]
    client.delete_model_version_tag(task.name, "1", "ptp.alias.production")  # as a process leaves it that died before
    assert [difference.what for difference in examine(shown, task.name)] == ["MLflow's page of version 1"]
    reconcile(shown, {task.name: task}, task.name)
    assert client.get_model_version(task.name, "1").tags["ptp.alias.production"] == told
    assert examine(shown, task.name) == []
    assert reconcile(shown, {task.name: task}, task.name) == []


def test_a_version_whose_bytes_are_damaged_keeps_its_page_and_stops_nothing(
    shown: Registry, task: Task, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)
    key = f"{prompt_prefix(task.name, first.digest)}/prompt.safetensors"
    shown.store.replace(key, b"rot", shown.store.read(key).etag)
    promote(shown, task, 2, ME)
    assert "MLflow's page of version 1 does not follow the ledger" in caplog.text
    assert client.get_model_version_by_alias(task.name, "production").version == "2"
    assert shown.ledger.applied("mlflow", task.name, "production") == (2, 2)


def test_mlflow_shows_a_second_version_and_what_became_of_it(shown: Registry, task: Task, client: MlflowClient) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)

    def tags() -> list[str | None]:
        return [client.get_model_version(task.name, number).tags.get("ptp.alias.production") for number in ("1", "2")]

    canary = place_beside(shown, task, 2, 10, Cause("ada", "new data"))
    since = f"since {canary.at[:16].replace('T', ' ')} UTC, by ada, because: new data"
    own = f"since {first.at[:16].replace('T', ' ')} UTC, by me, because: because"
    assert tags() == [own, f"canary at 10% beside version 1 {since}"]
    description = client.get_model_version(task.name, "2").description
    assert f"### Aliases\n- **production** canary at 10% beside version 1 {since}" in description
    assert client.get_model_version_by_alias(task.name, "production").version == "1"
    assert examine(shown, task.name) == []

    client.delete_model_version_tag(task.name, "2", "ptp.alias.production")  # as a process leaves it that died before
    assert [difference.what for difference in examine(shown, task.name)] == ["MLflow's page of version 2"]
    reconcile(shown, {task.name: task}, task.name)
    assert tags() == [own, f"canary at 10% beside version 1 {since}"]
    assert reconcile(shown, {task.name: task}, task.name) == []

    place_beside(shown, task, 2, 0, ME)
    assert (tags()[1] or "").startswith("shadow beside version 1 since ")
    rollback(shown, task.name, Cause("ada", "complaints"))
    assert tags() == [own, None]
    assert "; ended by ada: complaints" in client.get_model_version(task.name, "2").description
    assert examine(shown, task.name) == []


def test_template_and_model_lead_to_each_other(shown: Registry, task: Task, client: MlflowClient) -> None:
    promote(shown, task, published(shown, task, 1), ME)
    template = client.get_prompt_version_by_alias(f"{task.name}.template", "production")
    assert template.version == 1
    prompt = client.get_prompt(f"{task.name}.template")
    assert prompt is not None
    assert prompt.tags["ptp.model"] == f"/#/models/{task.name}"
    assert f"(#/prompts/{task.name}.template)" in client.get_model_version(task.name, "1").description


def test_a_version_page_tells_everything(shown: Registry, task: Task, client: MlflowClient) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)
    version = client.get_model_version(task.name, "2")
    digest = an_artifact(task, 2).digest
    for line in (
        f'- `ptp predict {task.name}@2 "..."`',
        "accuracy: **0.900** (0.800 to 1.000); zero-shot 0.600, majority 0.500",
        "accuracy **+0.020**",
        "- ✓ minimum: 0.90, required >= 0.80",
        "(80 train, 10 dev, 20 test rows)",
    ):
        assert line in version.description
    assert "|" not in version.description
    assert {name: version.tags[name] for name in ("ptp.digest", "ptp.version", "ptp.verdict", "ptp.base_model")} == {
        "ptp.digest": digest,
        "ptp.version": "2",
        "ptp.verdict": "passed",
        "ptp.base_model": "tiny",
    }
    about = client.get_registered_model(task.name).description
    assert f"Soft prompts for **{task.name}** on the frozen `tiny`, answering labels bad, good. " in about
    assert about.endswith(f"`ptp show {task.name}` tells what is in production and why.")
    assert client.get_registered_model(task.name).aliases == {"production": "1"}


def test_publishing_prints_nothing(shown: Registry, task: Task, capfd: pytest.CaptureFixture[str]) -> None:
    promote(shown, task, published(shown, task, 1), ME)
    assert capfd.readouterr().out == ""


def test_a_version_leads_to_run_data_and_files(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1)
    version = client.get_model_version(task.name, "1")
    run = client.get_run(version.run_id)
    assert {(i.dataset.name, i.tags[0].value) for i in run.inputs.dataset_inputs} == {
        (f"{task.name}-{split}", split) for split in ("train", "dev", "test")
    }
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.params["num_virtual_tokens"] == "4"
    assert [point.value for point in client.get_metric_history(version.run_id, "token_norm")] == [2.0, 2.0]
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {file.path for file in client.list_logged_model_artifacts(model.model_id)} == {
        "manifest.json",
        "prompt.safetensors",
        "plots",
        "report.html",
    }
    measured = {(m.key, m.dataset_name): m.value for m in model.metrics}
    assert measured["accuracy", f"{task.name}-test"] == 0.9
    assert measured["best_dev", f"{task.name}-dev"] == 0.75


def test_the_template_is_one_prompt(shown: Registry, task: Task, client: MlflowClient) -> None:
    for seed in (1, 2):
        published(shown, task, seed)
    name = f"{task.name}.template"
    prompts = client.search_prompt_versions(name)
    assert [(prompt.version, prompt.template) for prompt in prompts] == [(1, "{{text}}\nMood:")]
    assert client.get_prompt_version(name, 1).tags["ptp.digest"] == an_artifact(task, 2).digest
    source = client.get_model_version(task.name, "2").source.removeprefix("models:/")
    assert client.get_logged_model(source).tags["mlflow.linkedPrompts"] == f'[{{"name": "{name}", "version": "1"}}]'


def test_another_template_is_another_prompt_version(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1)
    published(shown, task.model_copy(update={"template": "Review: {text}\nMood:"}), 1)
    assert sorted(prompt.version for prompt in client.search_prompt_versions(f"{task.name}.template")) == [1, 2]


def test_mlflow_templates_double_the_braces() -> None:
    assert mlflow_template("{{not a field}} {text}\nMood:") == "{not a field} {{text}}\nMood:"
    assert mlflow_template("{premise}\nClaim: {hypothesis}") == "{{premise}}\nClaim: {{hypothesis}}"


def test_a_new_verdict_changes_the_page(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1, kind="failed")
    published(shown, task, 1)
    version = client.get_model_version(task.name, "1")
    assert version.tags["ptp.verdict"] == "passed"
    assert "### Verdict: passed" in version.description


def shown_page(client: MlflowClient, task: Task) -> str:
    model = client.get_logged_model(client.get_model_version(task.name, "1").source.removeprefix("models:/"))
    return Path(
        download_artifacts(f"{model.artifact_location}/report.html", tracking_uri=client.tracking_uri)
    ).read_text()


def test_the_page_of_a_version_follows_its_verdict(shown: Registry, task: Task, client: MlflowClient) -> None:
    published(shown, task, 1, kind="failed")
    assert "failed the gate" in shown_page(client, task)
    before = client.get_model_version(task.name, "1").tags["ptp.report"]
    published(shown, task, 1)
    assert "passed the gate" in shown_page(client, task)
    assert client.get_model_version(task.name, "1").tags["ptp.report"] != before


def test_a_version_without_a_logged_model_is_described_all_the_same(
    shown: Registry, task: Task, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    run = client.create_run("0").info
    client.create_registered_model(task.name)
    client.create_model_version(
        task.name, run.artifact_uri, run.run_id, tags={"ptp.digest": an_artifact(task, 1).digest}
    )
    published(shown, task, 1)
    assert client.get_model_version(task.name, "1").tags["ptp.verdict"] == "passed"
    assert "its page is not shown" in caplog.text


REQUESTS = 38


@pytest.mark.parametrize("nth", range(2, REQUESTS, 3))
def test_a_lost_answer_is_mended_by_a_repeat(shown: Registry, task: Task, mlflow_url: str, nth: int) -> None:
    with losing(mlflow_url, nth) as (url, log):
        try:
            promote(
                Registry(shown.ledger, shown.store, MlflowStore(url)),
                task,
                published(Registry(shown.ledger, shown.store, MlflowStore(url)), task, 1),
                ME,
            )
        except ServiceUnavailable:
            promote(shown, task, published(shown, task, 1), ME)
    assert len(log) >= nth
    reconcile(shown, {}, task.name)
    assert examine(shown, task.name) == []
    assert MlflowStore(mlflow_url).digests(task.name) == {"1": an_artifact(task, 1).digest}


def test_an_alias_edited_in_the_ui_is_seen(shown: Registry, task: Task, client: MlflowClient) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    published(shown, task, 2, first.digest)
    client.set_registered_model_alias(task.name, "production", "2")
    client.set_registered_model_alias(task.name, "mine", "2")
    assert [(d.what, d.mend) for d in examine(shown, task.name)] == [
        ("MLflow alias mine", f"ptp promote {task.name}@2 --alias mine --reason ..."),
        ("MLflow alias production", "ptp reconcile"),
    ]


def test_a_version_deleted_in_the_ui_comes_back(shown: Registry, task: Task, client: MlflowClient) -> None:
    promote(shown, task, published(shown, task, 1), ME)
    client.delete_model_version(task.name, "1")
    assert [d.what for d in examine(shown, task.name)] == ["MLflow version of version 1", "MLflow alias production"]
    reconcile(shown, {}, task.name)
    assert examine(shown, task.name) == []


def test_a_registry_without_mlflow_catches_up(plain: Registry, shown: Registry, task: Task) -> None:
    first = promote(plain, task, published(plain, task, 1), ME)
    promote(plain, task, published(plain, task, 2, first.digest), ME)
    assert all(action.done for action in reconcile(shown, {}, task.name))
    assert examine(shown, task.name) == []
    assert reconcile(shown, {}, task.name) == []


def test_a_dropped_mlflow_database_is_rebuilt(
    plain: Registry, shown: Registry, task: Task, client: MlflowClient, tmp_path: Path
) -> None:
    first = promote(shown, task, published(shown, task, 1), ME)
    promote(shown, task, published(shown, task, 2, first.digest), ME)
    promote(shown, task, 1, ME, "canary")
    pages = [client.get_model_version(task.name, number).description for number in ("1", "2")]
    with running_mlflow(tmp_path) as url:
        after = Registry(plain.ledger, plain.store, MlflowStore(url))
        assert len(examine(after)) == 4
        assert all(action.done for action in reconcile(after, {}))
        assert examine(after) == []
        assert [connect(url).get_model_version(task.name, number).description for number in ("1", "2")] == pages
        assert connect(url).get_registered_model(task.name).aliases == {"production": "2", "canary": "1"}


def test_a_version_that_mlflow_refuses_is_registered_and_named(
    shown: Registry, task: Task, client: MlflowClient
) -> None:
    client.create_prompt(task.name)
    assert published(shown, task, 1) == shown.ledger.version(task.name, 1).number
    assert shown.ledger.intents(task.name) == []
    [action] = reconcile(shown, {}, task.name)
    assert (action.done, "refuses the request" in action.what) == (False, True)
    client.delete_prompt(task.name)
    assert all(action.done for action in reconcile(shown, {}, task.name))
    assert reconcile(shown, {}, task.name) == []


def test_a_sequence_number_that_a_person_wrote_is_none(shown: Registry, task: Task, client: MlflowClient) -> None:
    promote(shown, task, published(shown, task, 1), ME)
    client.set_registered_model_tag(task.name, "ptp.applied.production", "9" * 5000)
    assert reconcile(shown, {task.name: task}, task.name) == []
    assert client.get_registered_model(task.name).tags["ptp.applied.production"] == "1"


def test_of_several_versions_of_a_prompt_the_first_is_found(shown: Registry, task: Task, client: MlflowClient) -> None:
    run, digest = client.create_run("0").info, an_artifact(task, 1).digest
    client.create_registered_model(task.name)
    for number in range(1, 11):
        tags = {"ptp.digest": digest} if number >= 9 else {}
        client.create_model_version(task.name, run.artifact_uri, run.run_id, tags=tags, await_creation_for=0)
    assert shown.mlflow is not None
    assert shown.mlflow.find(task.name, digest) == "9"


def test_pages_are_read_to_the_last() -> None:
    answers = {None: PagedList([1, 2], "more"), "more": PagedList([], "last"), "last": PagedList([3], "")}
    assert list(_pages(answers.__getitem__)) == [1, 2, 3]
