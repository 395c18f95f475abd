"""Publishing: from the bytes of a trained prompt to a numbered version; every step may be repeated."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from ptpipeline.errors import NotFound, Terminal
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_members, write_artifact
from ptpipeline.records import PromptVersion, Report, TunedPrompt, Verdict, VersionName, prompt_prefix, version_key
from ptpipeline.storage import ObjectStore
from registry.dossier import Dossier, verdicts_told, write_dossier
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
    for part in (artifact, *members):
        ledger.intend(part.manifest.task, part.digest)
    reached("publish intended")
    for member in members:
        write_artifact(store, member)
    digest = write_artifact(store, artifact)
    for member in members:  # from here on the manifest that names them keeps them
        ledger.fulfil(member.manifest.task, member.digest)
    reached("publish staged")
    return digest


def register(registry: Registry, request: Request) -> PromptVersion:
    """Make the staged prompt a version; a repeat finds what is there and finishes it.

    Raises NotFound or ArtifactError where the stored bytes are missing or altered, Terminal where the store knows versions
    that the ledger does not, ServiceUnavailable where the store, the ledger or MLflow does not answer: then repeat it.
    """
    ledger, task, digest = registry.ledger, request.tuned.task, request.tuned.digest
    ledger.intend(task, digest)
    artifact = read_artifact(registry.store, task, digest)
    read_members(registry.store, artifact)
    _check_number(registry, task, digest)
    publication = _remember(registry, request)
    reached("publish remembered")
    entry = _entry(registry, artifact, publication, request.plots)
    if request.verdict:
        entry = replace(entry, verdict=request.verdict)
    if registry.mlflow:
        registry.mlflow.ensure(entry)
    reached("publish shown")
    version = ledger.add_version(task, digest, request.verdict)
    reached("publish numbered")
    name_version(registry.store, version)
    reached("publish named")
    if registry.mlflow:
        registry.mlflow.describe(entry, version)
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
    kept = f"prompts/{version.task}/quarantine/version-{version.number}-{hashlib.sha256(stored.body).hexdigest()[:16]}.json"
    store.create(kept, stored.body)
    log.warning("%s/%s named another prompt than the ledger's %s; kept as %s and replaced", store.url, key, version.digest[:12], kept)
    store.replace(key, body, stored.etag)
    return True


def _check_number(registry: Registry, task: str, digest: str) -> None:
    """A ledger that was restored from an older backup would give a number a second time: the store names what it stood for."""
    number = 0
    while True:
        newest = registry.ledger.versions(task, limit=1)
        following = newest[0].number + 1 if newest else 1
        named = _named(registry.store, task, following)
        if named in (None, digest) or _is_version(registry.ledger, task, digest):
            return
        if following == number:  # else another publish took the number since the ledger was read
            raise Terminal(
                f"{task}: the store names prompt {(named or '')[:12]} as version {number}, which the ledger does not know; was it restored from an older backup? "
                "`ptp doctor --rebuild-ledger` brings it up"
            )
        number = following


def _is_version(ledger: Ledger, task: str, digest: str) -> bool:
    try:
        return ledger.version_of(task, digest).digest == digest
    except NotFound:
        return False


def _named(store: ObjectStore, task: str, number: int) -> str | None:
    """The digest that the store knows under that number; None where it names nothing readable."""
    try:
        return VersionName.model_validate_json(store.read(version_key(task, number)).body).digest
    except (NotFound, ValidationError):
        return None


def entry_of(registry: Registry, task: str, digest: str) -> Entry:
    """All that is known about a prompt, from the ledger and its verified bytes.

    Raises NotFound where the ledger does not know how it was made, ArtifactError where its bytes are altered.
    """
    publication = registry.ledger.publication(task, digest)
    if publication is None:
        raise NotFound(f"{task}: the ledger does not know how prompt {digest[:12]} was made; `ptp run {task}` publishes it")
    return _entry(registry, read_artifact(registry.store, task, digest), publication, {})


def _entry(registry: Registry, artifact: Artifact, publication: Publication, plots: Mapping[str, bytes]) -> Entry:
    """The entry of a verified artifact; those plots that are not at hand are read from the store."""
    ledger, task, digest = registry.ledger, artifact.manifest.task, artifact.digest
    return Entry(
        artifact=artifact,
        tuned=publication.tuned,
        snapshot=ledger.snapshot(task, artifact.manifest.snapshot),
        report=ledger.report_of(task, digest),
        verdict=ledger.latest_verdict(task, digest),
        plots={name: plots[name] if name in plots else registry.store.read(key).body for name, key in publication.plots.items()},
        commit=publication.commit,
        store=registry.store.url,
    )


def _remember(registry: Registry, request: Request) -> Publication:
    """Keep what MLflow shows in our own ledger and store, so that a lost MLflow can be rebuilt."""
    ledger, tuned = registry.ledger, request.tuned
    known = ledger.publication(tuned.task, tuned.digest)
    plots = dict(known.plots) if known else {}
    for name, body in request.plots.items():
        plots[name] = f"{prompt_prefix(tuned.task, tuned.digest)}/plots/{name}-{hashlib.sha256(body).hexdigest()[:12]}.png"
        registry.store.create(plots[name], body)
    publication = Publication(tuned=tuned, commit=request.commit or (known.commit if known else None), plots=plots)
    ledger.save_publication(publication, request.report)
    earlier = [verdict for verdict in reversed(ledger.verdicts(tuned.task, tuned.digest)) if verdict != request.verdict]
    held = verdicts_told(registry.store, tuned.task, tuned.digest) if earlier else set()
    for verdict in earlier:  # a collection deletes dossiers and keeps verdicts; the newest verdict has to be written last
        if verdict.verdict_digest() not in held:
            write_dossier(registry.store, Dossier(publication=publication, report=ledger.report(verdict.evaluation_key), verdict=verdict))
    write_dossier(registry.store, Dossier(publication=publication, report=request.report, verdict=request.verdict))
    return publication
