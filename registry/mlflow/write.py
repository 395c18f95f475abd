"""One prompt written into MLflow: its run, logged model, text template and model version.

Every function finds what an interrupted run left, and finishes it.
"""

import json
import string
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ptpipeline.errors import Terminal
from ptpipeline.progress import Standing
from ptpipeline.records.base import digest_of
from ptpipeline.records.data import SPLITS, Split
from ptpipeline.records.prompts import CurvePoint
from ptpipeline.storage.keys import MANIFEST_FILE, TENSOR_FILE, split_key
from registry.card.card import Card
from registry.card.description import render_description
from registry.card.markdown import escape, quote
from registry.mlflow.client import log_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunTag
    from mlflow.store.model_registry.rest_store import RestStore

COMMIT_TAG = "mlflow.source.git.commit"
LINKED_PROMPTS_TAG = "mlflow.linkedPrompts"
PROMPT_EXPERIMENTS_TAG = "_mlflow_experiment_ids"
IS_PROMPT_TAG = "mlflow.prompt.is_prompt"
TASK_TAG = "ptp.task"  # of a registered model or a prompt that ptpipeline made
PAGE_OF_PROMPTS_TAG = "ptp.model"  # of a text template
PAGE_FILE = "report.html"
LAST_METRICS = 800  # in one request with parameters and tags: it may have at most 1,000 of all


class Place(NamedTuple):
    """Where a logged model belongs: its experiment, the run that made it, and the text template linked to it, as
    MLflow's tag states it.
    """

    experiment: str
    run: str
    template: str


def create_version(client: "MlflowClient", card: Card) -> str:
    """Create a model version for the card's digest, with its run and logged model; returns its number.

    Raises Terminal if the registered model of that name is not ours.
    """
    _ensure_registered_model(client, card)
    experiment = ensure_experiment(client, card.task)
    run = _ensure_run(client, experiment, card)
    template = json.dumps([_ensure_template(client, experiment, card)])
    model = _find_logged_model(client, experiment, card)
    if model is not None:
        known = client.search_model_versions(f"name='{card.task}' and source_path='models:/{model}'")
        if known:  # somebody altered the tags by which it is found
            return min((str(version.version) for version in known), key=int)
    else:
        model = _create_logged_model(client, Place(experiment, run, template), card)
    version = client.create_model_version(
        card.task,
        f"models:/{model}",
        run_id=run,
        tags=card.tags(),
        description=render_description(card),
        model_id=model,
        await_creation_for=0,
    )
    return str(version.version)


def ensure_experiment(client: "MlflowClient", task: str) -> str:
    """Return the id of the experiment `ptpipeline/<task>`, which is created or restored if needed."""
    from mlflow.exceptions import MlflowException

    name = f"ptpipeline/{task}"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def curve_metrics(point: CurvePoint) -> list[Any]:
    """Return a point of the learning curve as MLflow metrics; per-token norms and gradients as their means."""
    from mlflow.entities import Metric

    values = {"loss": point.loss, "learning_rate": point.learning_rate}
    if point.dev is not None:
        values["dev"] = point.dev
    for name, per_token in (("token_norm", point.token_norms), ("token_gradient", point.token_gradients)):
        if per_token:
            values[name] = sum(per_token) / len(per_token)
    return [Metric(name, value, int(time.time() * 1000), point.step) for name, value in values.items()]


def standing_metric(standing: Standing) -> Any:
    """Return the share of a phase that is done as a metric of its name."""
    from mlflow.entities import Metric

    name = f"progress/{standing.phase.replace(': ', '/')}"
    return Metric(name, standing.done / standing.total, int(time.time() * 1000), standing.done)


def model_name(task: str, digest: str) -> str:
    """Return the name of a logged model, which, unlike its tags, never changes."""
    return f"{task}-{digest[:12]}"


def _ensure_run(client: "MlflowClient", experiment: str, card: Card) -> str:
    """Return the run that made the prompt: the training's own, else one that is filled from the ledger."""
    from mlflow.entities import RunTag

    tags = {"ptp.digest": card.digest, **({COMMIT_TAG: card.provenance.commit} if card.provenance.commit else {})}
    run_tags = [RunTag(key, value) for key, value in tags.items()]
    run = _training_run(client, card.provenance.tuned.tracking_run)
    if run is None:
        earlier = client.search_runs([experiment], f"tags.`ptp.digest` = '{card.digest}'", max_results=1)
        run = str(earlier[0].info.run_id) if earlier else _create_run(client, experiment, card, run_tags)
    else:
        client.log_batch(run, tags=run_tags)
    _log_datasets(client, run, card)
    return run


def _training_run(client: "MlflowClient", run: str | None) -> str | None:
    from mlflow.exceptions import MlflowException

    if run is None:
        return None
    try:
        return run if client.get_run(run).info.lifecycle_stage == "active" else None
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _create_run(client: "MlflowClient", experiment: str, card: Card, tags: list["RunTag"]) -> str:
    """Fill a new run from the ledger; its tags come last, by which an interrupted one is not found."""
    from mlflow.entities import Param

    run = str(client.create_run(experiment, run_name=f"{card.task}-{card.digest[:12]}").info.run_id)
    client.set_terminated(run)
    metrics = [metric for point in card.provenance.tuned.curve for metric in curve_metrics(point)]
    client.log_batch(run, metrics[:-LAST_METRICS])  # MLflow splits what is long, and would send the tags first
    client.log_batch(run, metrics[-LAST_METRICS:], [Param(name, value) for name, value in card.params().items()], tags)
    return run


def _log_datasets(client: "MlflowClient", run: str, card: Card) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if card.snapshot is None:
        return
    inputs = []
    for split in SPLITS:
        info = card.snapshot.split(split)
        uri = f"{card.store}/{split_key(card.task, card.snapshot.digest, split)}"
        profile = json.dumps({"num_rows": info.rows, "labels": info.labels})
        dataset = Dataset(
            *_dataset_of(card, split),
            source_type="s3" if uri.startswith("s3:") else "local",
            source=json.dumps({"uri": uri}),
            profile=profile,
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
    client.log_inputs(run, inputs)


class _DatasetName(NamedTuple):
    """A data set by its name and digest, of which MLflow keeps 36 characters."""

    name: str
    digest: str


def _dataset_of(card: Card, split: Split) -> _DatasetName:
    """Return the data set of a split; the split that was measured on may have grown since the training."""
    if card.provenance.report and card.provenance.report.split == split:
        digest = card.provenance.report.test_digest
    else:
        digest = card.snapshot.split(split).digest if card.snapshot else card.artifact.manifest.snapshot
    return _DatasetName(f"{card.task}-{split}", digest[:32])


def _find_logged_model(client: "MlflowClient", experiment: str, card: Card) -> str | None:
    """Return the complete logged model of that digest; one that was left half-written is deleted."""
    for model in client.search_logged_models([experiment], filter_string=f"tags.`ptp.digest` = '{card.digest}'"):
        if str(model.status) in ("READY", "LoggedModelStatus.READY"):
            return str(model.model_id)
        client.delete_logged_model(model.model_id)
    return None


def _create_logged_model(client: "MlflowClient", place: Place, card: Card) -> str:
    tags = {**card.tags(), LINKED_PROMPTS_TAG: place.template}
    model = client.create_logged_model(
        place.experiment, model_name(card.task, card.digest), place.run, tags, card.params(), "soft-prompt"
    )
    _log_files(client, model.model_id, card)
    _log_metrics(client, place, str(model.model_id), card)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _log_files(client: "MlflowClient", model: str, card: Card) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / TENSOR_FILE).write_bytes(card.artifact.tensors)
        (root / MANIFEST_FILE).write_text(json.dumps(card.artifact.manifest.to_json(), indent=1, sort_keys=True))
        for name, body in card.provenance.plots.items():
            (root / "plots").mkdir(exist_ok=True)
            (root / "plots" / f"{name}.png").write_bytes(body)
        log_files(client, model, str(root))


def log_page(client: "MlflowClient", model: str, body: bytes) -> None:
    """Log the version's page among the logged model's files, in place of an earlier one."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PAGE_FILE).write_bytes(body)
        log_files(client, model, folder)


def _log_metrics(client: "MlflowClient", place: Place, model: str, card: Card) -> None:
    """Log the metrics of the logged model, and the template that is linked to it, to the run."""
    from mlflow.entities import Metric, RunTag

    at = int(time.time() * 1000)
    split = card.provenance.report.split if card.provenance.report else "test"
    measured = {(split, name): value for name, value in card.metrics().items()} | {
        ("dev", "best_dev"): card.provenance.tuned.best_dev
    }
    metrics = [
        Metric(name, value, at, card.provenance.tuned.best_step, model, *_dataset_of(card, of), place.run)
        for (of, name), value in measured.items()
    ]
    client.log_batch(place.run, metrics=metrics, tags=[RunTag(LINKED_PROMPTS_TAG, place.template)])


def _ensure_registered_model(client: "MlflowClient", card: Card) -> None:
    from mlflow.exceptions import MlflowException

    manifest = card.artifact.manifest
    description = (
        f"Soft prompts for **{card.task}** on the frozen {quote(manifest.base_model.name)}, answering "
        f"{escape(manifest.answers)}. `ptp show {card.task}` tells what is in production and why."
    )
    try:
        model = client.get_registered_model(card.task)  # raises if the name is a prompt's
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        try:
            client.create_registered_model(card.task, tags={TASK_TAG: card.task}, description=description)
            return
        except MlflowException as made:
            if made.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model = client.get_registered_model(card.task)  # another process made it since, or it is a prompt's
    if not _is_ours(client, model.tags.get(TASK_TAG), card.task):
        raise Terminal(
            f"MLflow has a registered model {card.task} that is not the task's, so it shows none of its versions; "
            f"rename that model there, or set its tag {TASK_TAG} to {card.task} if ptpipeline may move its aliases"
        )


def _is_ours(client: "MlflowClient", tag: str | None, task: str) -> bool:
    """Whether the task's versions belong into the registered model of its name, which names that task in its tag."""
    if tag is not None:
        return tag == task
    shown = client.search_model_versions(f"name='{task}'")  # somebody may have deleted the tag
    return not shown or any("ptp.digest" in version.tags for version in shown)


def _ensure_template(client: "MlflowClient", experiment: str, card: Card) -> dict[str, str]:
    """Return name and version of the text template in MLflow's Prompt Registry, which has a version per text."""
    manifest = card.artifact.manifest
    name, text = f"{card.task}.template", mlflow_template(manifest.template)
    tags = {
        "ptp.template": digest_of(manifest.template),
        "ptp.digest": card.digest,
        "ptp.base_model": manifest.base_model.name,
    }
    version = _find_template(client, name, tags["ptp.template"])
    if version is None:
        if client.get_prompt(name) is None:
            shown_in = {PROMPT_EXPERIMENTS_TAG: f",{experiment},", TASK_TAG: card.task}
            client.create_prompt(
                name,
                description=f"The text that stands behind the soft prompts of {card.task}",
                tags=shown_in,
            )
        described = f"answers {escape(manifest.answers)}"
        made = client.create_prompt_version(name, text, description=described, tags=tags)
        return {"name": name, "version": str(made.version)}
    client.set_prompt_version_tag(name, version, "ptp.digest", card.digest)
    return {"name": name, "version": version}


def name_template(client: "MlflowClient", registry: "RestStore", card: Card) -> None:
    """Let the aliases that name the card's version name its text template too, on MLflow's page of prompts, which shows
    no description: a tag leads to the page of the soft prompts. Writes only what differs.

    registry: the model registry's own client; `client` asks for name and version before each write.
    """
    from mlflow.entities.model_registry import RegisteredModelTag

    aliases = [one.promotion.alias for one in card.namings if one.ended is None and one.beside is None]
    name, page = f"{card.task}.template", f"/#/models/{card.task}"
    version = _find_template(client, name, digest_of(card.artifact.manifest.template)) if aliases else None
    if version is None:
        return
    shown = registry.get_registered_model(name)
    if shown.tags.get(PAGE_OF_PROMPTS_TAG) != page:
        registry.set_registered_model_tag(name, RegisteredModelTag(PAGE_OF_PROMPTS_TAG, page))
    for alias in aliases:
        if str(shown.aliases.get(alias)) != version:
            registry.set_registered_model_alias(name, alias, version)


def _find_template(client: "MlflowClient", name: str, digest: str) -> str | None:
    """Return the lowest version of the template with the text of that digest."""
    versions = client.search_model_versions(
        f"name='{name}' and tags.`{IS_PROMPT_TAG}`='true' and tags.`ptp.template`='{digest}'"
    )
    return min((str(version.version) for version in versions), key=int, default=None)


def mlflow_template(template: str) -> str:
    """Return our template in the notation of MLflow's prompts: `{{premise}}` for `{premise}`."""
    return "".join(
        literal + ("{{" + name + "}}" if name else "") for literal, name, _, _ in string.Formatter().parse(template)
    )
