"""Publishing: from the bytes of a trained prompt to a numbered version; every step may be repeated."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from ptpipeline.errors import NotFound
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_members, write_artifact
from ptpipeline.records import PromptVersion, Report, TunedPrompt, Verdict, VersionName, prompt_prefix, version_key
from ptpipeline.storage import ObjectStore
from registry.dossier import Dossier, write_dossier
from registry.entry import Entry
from registry.ledger import Ledger
from registry.memory import Publication
from registry.registry import Registry
from registry.steps import reached

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is to be registered: a staged prompt, how it was trained, measured and judged, and its plots as PNG bytes."""

    tuned: TunedPrompt
    report: Report | None = None
    verdict: Verdict | None = None
    plots: dict[str, bytes] = field(default_factory=dict)
    commit: str | None = None


def stage(ledger: Ledger, store: ObjectStore, artifact: Artifact, members: Sequence[Artifact] = ()) -> str:
    """Note the intent, store the artifact, behind the members of an ensemble, and read all back; returns its digest. It is no version yet.

    Raises ArtifactError where the bytes are not what the manifest states, or others lie at their place.
    """
    ledger.intend(artifact.manifest.task, artifact.digest)
    reached("publish intended")
    for member in members:
        write_artifact(store, member)
    digest = write_artifact(store, artifact)
    reached("publish staged")
    return digest


def register(registry: Registry, request: Request) -> PromptVersion:
    """Make the staged prompt a version; a repeat finds what is there and finishes it.

    Raises NotFound or ArtifactError where the stored bytes are missing or altered, ServiceUnavailable where the store,
    the ledger or MLflow does not answer: then repeat it.
    """
    ledger, task, digest = registry.ledger, request.tuned.task, request.tuned.digest
    ledger.intend(task, digest)
    read_members(registry.store, read_artifact(registry.store, task, digest))
    _remember(registry, request)
    reached("publish remembered")
    if registry.mlflow:
        registry.mlflow.ensure(entry_of(registry, task, digest))
    reached("publish shown")
    ledger.add_version(task, digest)
    reached("publish numbered")
    if request.verdict:
        ledger.save_verdict(request.verdict)
    version = ledger.version_of(task, digest)
    name_version(registry.store, version)
    reached("publish named")
    if registry.mlflow:
        registry.mlflow.describe(entry_of(registry, task, digest), version)
    read_members(registry.store, read_artifact(registry.store, task, digest))
    reached("publish verified")
    ledger.fulfil(task, digest)
    return version


def name_version(store: ObjectStore, version: PromptVersion) -> bool:
    """Let readers of the store alone find the version by its number; whether anything had to be written."""
    key = version_key(version.task, version.number)
    body = VersionName(task=version.task, number=version.number, digest=version.digest).model_dump_json(indent=1).encode()
    try:
        stored = store.read(key)
    except NotFound:
        store.create(key, body)
        return True
    if stored.body == body:
        return False
    log.warning("%s/%s named another prompt than the ledger's %s; replaced", store.url, key, version.digest[:12])
    store.replace(key, body, stored.etag)
    return True


def entry_of(registry: Registry, task: str, digest: str) -> Entry:
    """All that is known about a prompt, from the ledger and its verified bytes.

    Raises NotFound where the ledger does not know how it was made, ArtifactError where its bytes are altered.
    """
    ledger = registry.ledger
    publication = ledger.publication(task, digest)
    if publication is None:
        raise NotFound(f"{task}: the ledger does not know how prompt {digest[:12]} was made; `ptp run {task}` publishes it")
    artifact = read_artifact(registry.store, task, digest)
    return Entry(
        artifact=artifact,
        tuned=publication.tuned,
        snapshot=ledger.snapshot(task, artifact.manifest.snapshot),
        report=ledger.report_of(task, digest),
        verdict=ledger.latest_verdict(task, digest),
        plots={name: registry.store.read(key).body for name, key in publication.plots.items()},
        commit=publication.commit,
        store=registry.store.url,
    )


def _remember(registry: Registry, request: Request) -> None:
    """Keep what MLflow shows in our own ledger and store, so that a lost MLflow can be rebuilt."""
    ledger, tuned = registry.ledger, request.tuned
    known = ledger.publication(tuned.task, tuned.digest)
    plots = dict(known.plots) if known else {}
    for name, body in request.plots.items():
        plots[name] = f"{prompt_prefix(tuned.task, tuned.digest)}/plots/{name}-{hashlib.sha256(body).hexdigest()[:12]}.png"
        registry.store.create(plots[name], body)
    ledger.save_tuned(tuned)
    if request.report:
        ledger.save_report(request.report)
    publication = Publication(tuned=tuned, commit=request.commit or (known.commit if known else None), plots=plots)
    ledger.save_publication(publication)
    write_dossier(registry.store, Dossier(publication=publication, report=request.report, verdict=request.verdict))
