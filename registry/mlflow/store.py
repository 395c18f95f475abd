"""MLflow as a view of the registry: model versions, their tags, aliases, and the webhook that reports edits.

Versions are found by the tag `ptp.digest`; MLflow's own numbers are replaceable. Explicit clients and ids only: the
fluent API keeps its run per thread and its address per process.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ptpipeline.errors import ServiceUnavailable
from ptpipeline.records.versions import PromptVersion
from registry.card.card import ALIAS_TAG, VERDICT_DIGEST_TAG, VERDICT_TAG, Card
from registry.card.description import render_description
from registry.card.page import render_page
from registry.failpoints import reached
from registry.mlflow.client import connect, translated_errors, without_password
from registry.mlflow.write import create_version, log_page, model_name, name_template

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.model_registry.rest_store import RestStore

log = logging.getLogger(__name__)

DIGEST_TAG, VERSION_TAG, REFUSED_TAG, PAGE_TAG = "ptp.digest", "ptp.version", "ptp.refused", "ptp.report"
APPLIED_TAG = (
    "ptp.applied."  # of a registered model, before an alias: the seq of the promotion that we wrote there last
)
PAGE = 1000  # model versions in one answer: with their descriptions about 3 MB
MAX_PAGES = 10_000
WEBHOOK = "ptpipeline"
EVENTS = [
    "registered_model.created",
    "model_version.created",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version_alias.created",
    "model_version_alias.deleted",
]


@dataclass(frozen=True)
class Shown:
    """A model version: its number, our digest and version number by its tags (empty if untagged), its source, and the
    tags that tell since when, by whom and why aliases name it, and the newest verdict.
    """

    number: str
    digest: str
    version: str
    source: str
    aliases: dict[str, str] = field(default_factory=dict)
    verdict: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A registered model: its versions by number, what its aliases name, and the seq last written by alias."""

    aliases: dict[str, str] = field(default_factory=dict)
    applied: dict[str, int] = field(default_factory=dict)
    versions: dict[str, Shown] = field(default_factory=dict)


class MlflowStore:
    """The registered models of one MLflow server. Every method raises ServiceUnavailable if it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._connected: MlflowClient | None = None

    def check(self) -> None:
        """Ask the server for something; raises SettingsError if it refuses this client."""
        with self._connection() as client:
            client.search_registered_models(max_results=1)

    # ------------------------------------------------------------ versions

    def ensure(self, card: Card) -> str:
        """Return the number of the model version of that digest, which is registered now if it is missing."""
        number = self.find(card.task, card.digest)
        if number is not None:
            return number
        with self._connection() as client:
            return create_version(client, card)

    def describe(self, card: Card, version: PromptVersion, number: str | None = None) -> None:
        """Update tags, description and page of the model version (that of the digest, or `number`); writes only what
        differs.
        """
        from mlflow.entities.model_registry import ModelVersionTag

        number = number or self.ensure(card)
        with self._connection() as client:
            shown = client.get_model_version(card.task, number)
            tags = card.tags(version) | self._show_page(client, shown, render_page(card, version))
        with self._writing() as registry:
            name_template(client, registry, card)
            if shown.description != render_description(card, version):
                registry.update_model_version(card.task, number, render_description(card, version))
            for key, value in tags.items():
                if shown.tags.get(key) != value:
                    registry.set_model_version_tag(card.task, number, ModelVersionTag(key, value))
            for key in shown.tags:
                if (key.startswith(ALIAS_TAG) or key == VERDICT_DIGEST_TAG) and key not in tags:
                    registry.delete_model_version_tag(card.task, number, key)

    def _show_page(self, client: "MlflowClient", shown: "ModelVersion", body: bytes) -> dict[str, str]:
        """Put the page into the version's logged model, if it holds another; returns the tag that says so. A version
        without a logged model gets no page.
        """
        from mlflow.exceptions import MlflowException

        tag, place = hashlib.sha256(body).hexdigest()[:12], str(shown.source)
        if shown.tags.get(PAGE_TAG) == tag:
            return {}
        try:
            if place.startswith("models:/"):
                log_page(client, place.removeprefix("models:/"), body)
                return {PAGE_TAG: tag}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        log.warning("%s: MLflow version %s has no logged model; its page is not shown", shown.name, shown.version)
        return {}

    def find(self, task: str, digest: str) -> str | None:
        """Return the lowest number under which that digest is registered; None if it is not."""
        with self._connection() as client:
            versions = client.search_model_versions(f"name='{task}' and tags.`{DIGEST_TAG}`='{digest}'")
        return min((str(version.version) for version in versions), key=int, default=None)

    def version(self, task: str, number: str) -> Shown | None:
        """Return the model version of that number; None if it is gone."""
        from mlflow.exceptions import MlflowException

        with self._connection() as client:
            try:
                return _read_shown(client.get_model_version(task, number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def digest_of_source(self, task: str, source: str, digests: list[str]) -> str | None:
        """Return which of the digests a model version of that source was registered for, independent of its tags."""
        from mlflow.exceptions import MlflowException

        model = re.fullmatch(r"models:/(m-\w+)", source)
        if model is None:
            return None
        with self._connection() as client:
            try:
                name = client.get_logged_model(model[1]).name
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return next((digest for digest in digests if model_name(task, digest) == name), None)

    def refuse(self, task: str, number: str, why: str) -> None:
        """Note on the model version why an alias was taken from it."""
        with self._connection() as client:
            client.set_model_version_tag(task, number, REFUSED_TAG, why[:5000])

    def digests(self, task: str) -> dict[str, str]:
        """Return number -> digest of every model version of the task; empty if the version is not ours."""
        return {number: shown.digest for number, shown in self._versions(f"name='{task}'").get(task, {}).items()}

    # ------------------------------------------------------------ aliases

    def aliases(self, task: str) -> dict[str, str]:
        """Return alias -> number of the model version that it names; empty if the task is not registered."""
        return self.model(task).aliases

    def model(self, task: str) -> Model:
        """Return the registered model of the task without its versions; empty if the task is not registered."""
        from mlflow.exceptions import MlflowException

        with self._connection() as client:
            try:
                return _model(client.get_registered_model(task), {})
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return Model()
                raise

    def models(self, task: str | None = None) -> dict[str, Model]:
        """Return that task's registered model, or all, with their versions, by name: one request per thousand versions,
        one per thousand models.

        Pages are read one after another, so an edit that happens meanwhile may be missed: look again before acting.
        """
        only = None if task is None else f"name='{task}'"
        versions = self._versions(only)
        with self._connection() as client:
            models = _pages(lambda token: client.search_registered_models(only, max_results=1000, page_token=token))
            return {str(model.name): _model(model, versions.get(str(model.name), {})) for model in models}

    def set_alias(self, task: str, alias: str, number: str, seq: int) -> None:
        """Let the alias name that model version, and note that promotion `seq` did so. The last writer wins, so hold
        the lease.
        """
        from mlflow.entities.model_registry import RegisteredModelTag

        with self._writing() as registry:
            registry.set_registered_model_alias(task, alias, number)
            reached("alias moved")
            registry.set_registered_model_tag(task, RegisteredModelTag(f"{APPLIED_TAG}{alias}", str(seq)))

    def page_url(self, task: str, number: str) -> str:
        """Return the address of the model version in MLflow's web interface."""
        return f"{without_password(self.uri)}/#/models/{task}/versions/{number}"

    # ------------------------------------------------------------ events

    def set_webhook(self, url: str, secret: str) -> None:
        """Let MLflow post every edit of a registered model to `url`, signed with `secret`; a repeat changes it.

        Raises Terminal if the server does not allow the address: see MLFLOW_WEBHOOK_ALLOWED_SCHEMES and
        MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS in its environment.
        """
        with self._connection() as client:
            known = next(
                (hook for hook in _pages(lambda token: client.list_webhooks(page_token=token)) if hook.name == WEBHOOK),
                None,
            )
            if known is None:
                client.create_webhook(WEBHOOK, url, EVENTS, "wakes the reconcile", secret, "ACTIVE")
            else:
                client.update_webhook(known.webhook_id, url=url, events=EVENTS, secret=secret, status="ACTIVE")

    def _versions(self, only: str | None) -> dict[str, dict[str, Shown]]:
        """Return model versions by task and number; in an order that edits do not change, so pages fit."""
        shown: dict[str, dict[str, Shown]] = {}
        with self._connection() as client:
            for version in _pages(
                lambda token: client.search_model_versions(only, PAGE, ["name ASC", "version_number ASC"], token)
            ):
                shown.setdefault(str(version.name), {})[str(version.version)] = _read_shown(version)
        return shown

    @contextmanager
    def _writing(self) -> Iterator["RestStore"]:
        """Yield the model registry's own client: MlflowClient asks before each write whether the name is a prompt's,
        and ours are not.
        """
        with self._connection():  # connecting sets the time-outs
            from mlflow.store.model_registry.rest_store import RestStore
            from mlflow.utils.credentials import get_default_host_creds

            yield RestStore(partial(get_default_host_creds, self.uri))

    @contextmanager
    def _connection(self) -> Iterator["MlflowClient"]:
        with translated_errors(self.uri):
            if self._connected is None:
                self._connected = connect(self.uri)
            yield self._connected


def _pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield what the pages hold; a server that goes round in a circle, or has more pages than anybody, is away."""
    tokens: set[str] = set()
    token: str | None = None
    while True:
        page = fetch(token)
        yield from page
        token = page.token
        if not token:
            return
        if token in tokens or len(tokens) == MAX_PAGES:
            raise ServiceUnavailable("MLflow's list does not end; check PTP_MLFLOW, and run again later")
        tokens.add(token)


def _read_shown(version: "ModelVersion") -> Shown:
    tags = version.tags
    return Shown(
        str(version.version),
        tags.get(DIGEST_TAG, ""),
        tags.get(VERSION_TAG, ""),
        str(version.source),
        {key: value for key, value in tags.items() if key.startswith(ALIAS_TAG)},
        {key: value for key, value in tags.items() if key in (VERDICT_TAG, VERDICT_DIGEST_TAG)},
    )


def _model(registered: Any, versions: dict[str, Shown]) -> Model:
    applied = {
        key.removeprefix(APPLIED_TAG): value for key, value in registered.tags.items() if key.startswith(APPLIED_TAG)
    }
    return Model(
        aliases={alias: str(number) for alias, number in registered.aliases.items()},
        applied={alias: int(seq) for alias, seq in applied.items() if re.fullmatch(r"[0-9]{1,9}", seq)},
        versions=versions,
    )
