"""Publishing: from the bytes of a trained prompt to a numbered version; every step may be repeated."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from ptpipeline.errors import NotFound, Terminal
from ptpipeline.evaluation.mistakes import Mistakes
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble, write_artifact
from ptpipeline.prompts.interpretation import Neighbours, Wayward
from ptpipeline.records import PromptVersion, Record, Report, TunedPrompt, Verdict, VersionName
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import companion_key, page_key, plot_key, quarantined_version_key, version_key
from registry.card.card import Entry
from registry.card.page import page
from registry.failpoints import reached
from registry.ledger.ledger import Ledger
from registry.ledger.results import Publication
from registry.registry import Registry
from registry.versions.provenance import Dossier, verdicts_told, write_dossier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is to be registered: a staged prompt, how it was trained, measured and judged, its plots as PNG bytes, the
    words near it.

    `mistakes` are the rows that it gets wrong, where the task lets their texts out.
    """

    tuned: TunedPrompt
    report: Report | None = None
    verdict: Verdict | None = None
    plots: dict[str, bytes] = field(default_factory=dict)
    commit: str | None = None
    neighbours: Neighbours | None = None
    mistakes: Mistakes | None = None


def stage(ledger: Ledger, store: ObjectStore, artifact: Artifact, members: Sequence[Artifact] = ()) -> str:
    """Note the intent, store the artifact, behind the members of an ensemble, and read all back; returns its digest. It
    is no version yet.

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

    Raises NotFound or ArtifactError where the stored bytes are missing or altered, Terminal where the store knows
    versions that the ledger does not, ServiceUnavailable where the store, the ledger or MLflow does not answer: then
    repeat it.
    """
    ledger, task, digest = registry.ledger, request.tuned.task, request.tuned.digest
    ledger.intend(task, digest)
    artifact = read_artifact(registry.store, task, digest)
    read_ensemble(registry.store, artifact)
    _check_number(registry, task, digest)
    publication = remember(registry, request)
    reached("publish remembered")
    entry = _entry(registry, artifact, publication, request)
    if registry.mlflow:
        registry.mlflow.ensure(entry)
    reached("publish shown")
    version = ledger.add_version(task, digest, request.verdict)
    reached("publish numbered")
    name_version(registry.store, version)
    reached("publish named")
    write_page(registry, entry, version)
    if registry.mlflow:
        registry.mlflow.describe(entry, version)
    read_ensemble(registry.store, read_artifact(registry.store, task, digest))
    reached("publish verified")
    ledger.fulfil(task, digest)
    return version


def name_version(store: ObjectStore, version: PromptVersion) -> bool:
    """Let readers of the store alone find the version by its number; whether anything had to be written."""
    key = version_key(version.task, version.number)
    body = (
        VersionName(task=version.task, number=version.number, digest=version.digest).model_dump_json(indent=1).encode()
    )
    try:
        stored = store.read(key)
    except NotFound:
        store.create(key, body)
        return True
    if stored.body == body:
        return False
    kept = quarantined_version_key(version.task, version.number, stored.body)
    store.create(kept, stored.body)
    log.warning(
        "%s/%s named another prompt than the ledger's %s; kept as %s and replaced",
        store.url,
        key,
        version.digest[:12],
        kept,
    )
    store.replace(key, body, stored.etag)
    return True


def _check_number(registry: Registry, task: str, digest: str) -> None:
    """A ledger that was restored from an older backup would give a number a second time: the store names what it stood
    for.
    """
    number = 0
    while True:
        newest = registry.ledger.versions(task, limit=1)
        following = newest[0].number + 1 if newest else 1
        named = _named(registry.store, task, following)
        if named in (None, digest) or _is_version(registry.ledger, task, digest):
            return
        if following == number:  # else another publish took the number since the ledger was read
            raise Terminal(
                f"{task}: the store names prompt {(named or '')[:12]} as version {number}, which the ledger "
                "does not know; was it restored from an older backup? "
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
        raise NotFound(
            f"{task}: the ledger does not know how prompt {digest[:12]} was made; `ptp run {task}` publishes it"
        )
    return _entry(registry, read_artifact(registry.store, task, digest), publication)


def write_page(registry: Registry, entry: Entry, version: PromptVersion) -> str:
    """Store the version's page under a name made of its content, so that a repeat changes nothing; returns its key."""
    body = page(entry, version)
    key = page_key(entry.task, entry.digest, body)
    registry.store.create(key, body)
    return key


def withhold_texts(registry: Registry, task: str) -> None:
    """Take the texts of rows off the pages of all the task's versions. Files of HTML that were stored before
    are left.
    """
    for publication in registry.ledger.with_texts(task):
        digest = publication.tuned.digest
        try:
            entry, version = (
                replace(entry_of(registry, task, digest), mistakes=None),
                registry.ledger.version_of(task, digest),
            )
        except NotFound:  # collected since: nobody shows it anew
            pass
        else:
            write_page(registry, entry, version)
            if registry.mlflow:
                registry.mlflow.describe(entry, version)
        registry.ledger.save_publication(
            publication.model_copy(update={"mistakes": None})
        )  # last: killed before, it is done again


def attach(registry: Registry, digest: str, found: Wayward) -> str:
    """Let the page of the version of that digest tell of an experiment with its task; returns the new page's key.

    Raises NotFound where the ledger does not know how it was made, or it is no version.
    """
    ledger, task = registry.ledger, found.task
    publication, version = ledger.publication(task, digest), ledger.version_of(task, digest)
    if publication is None:
        raise NotFound(
            f"{task}: the ledger does not know how prompt {digest[:12]} was made; `ptp run {task}` publishes it"
        )
    key = _kept(registry.store, task, digest, ("wayward", found))
    if key not in publication.wayward:
        publication = publication.model_copy(update={"wayward": (*publication.wayward, key)})
        ledger.save_publication(publication)
        entry = entry_of(registry, task, digest)
        write_dossier(registry.store, Dossier(publication=publication, report=entry.report, verdict=entry.verdict))
    return write_page(registry, entry_of(registry, task, digest), version)


def _kept(store: ObjectStore, task: str, digest: str, named: tuple[str, Record]) -> str:
    """The key of a record that is stored beside the prompt, under a name made of its content."""
    name, record = named
    body = record.model_dump_json().encode()
    key = companion_key(task, digest, name, body)
    store.create(key, body)
    return key


def _entry(registry: Registry, artifact: Artifact, publication: Publication, request: Request | None = None) -> Entry:
    """The entry of a verified artifact; what the request does not have at hand is read from ledger and store."""
    ledger, store, task, digest = registry.ledger, registry.store, artifact.manifest.task, artifact.digest
    plots = request.plots if request else {}
    verdict = request.verdict if request and request.verdict else ledger.latest_verdict(task, digest)
    return Entry(
        artifact=artifact,
        tuned=publication.tuned,
        snapshot=ledger.snapshot(task, artifact.manifest.snapshot),
        report=(ledger.report(verdict.evaluation_key) if verdict else None) or ledger.report_of(task, digest),
        verdict=verdict,
        plots={name: plots[name] if name in plots else store.read(key).body for name, key in publication.plots.items()},
        commit=publication.commit,
        store=store.url,
        champion=_number(ledger, task, verdict.champion) if verdict and verdict.champion else None,
        neighbours=Neighbours.model_validate_json(store.read(publication.neighbours).body)
        if publication.neighbours
        else None,
        mistakes=_mistakes(store, publication),
        wayward=[Wayward.model_validate_json(store.read(key).body) for key in publication.wayward],
    )


def _mistakes(store: ObjectStore, publication: Publication) -> Mistakes | None:
    """What the publication names; None where somebody deleted it for the sake of its texts."""
    try:
        return Mistakes.model_validate_json(store.read(publication.mistakes).body) if publication.mistakes else None
    except NotFound:
        return None


def _number(ledger: Ledger, task: str, digest: str) -> int | None:
    try:
        return ledger.version_of(task, digest).number
    except NotFound:
        return None


def remember(registry: Registry, request: Request) -> Publication:
    """Keep what MLflow shows in our own ledger and store, so that a lost MLflow can be rebuilt."""
    ledger, tuned = registry.ledger, request.tuned
    known = ledger.publication(tuned.task, tuned.digest)
    plots = dict(known.plots) if known else {}
    for name, body in request.plots.items():
        plots[name] = plot_key(tuned.task, tuned.digest, name, body)
        registry.store.create(plots[name], body)
    publication = Publication(tuned=tuned, commit=request.commit or (known.commit if known else None), plots=plots)
    if known:
        publication = publication.model_copy(
            update={
                "neighbours": known.neighbours,
                "wayward": tuple(key for key in known.wayward if registry.store.exists(key)),
            }
        )
    if request.neighbours:
        publication = publication.model_copy(
            update={"neighbours": _kept(registry.store, tuned.task, tuned.digest, ("neighbours", request.neighbours))}
        )
    if request.mistakes:
        publication = publication.model_copy(
            update={"mistakes": _kept(registry.store, tuned.task, tuned.digest, ("mistakes", request.mistakes))}
        )
    ledger.save_publication(publication, request.report)
    earlier = [verdict for verdict in reversed(ledger.verdicts(tuned.task, tuned.digest)) if verdict != request.verdict]
    held = verdicts_told(registry.store, tuned.task, tuned.digest) if earlier else set()
    for (
        verdict
    ) in earlier:  # a collection deletes dossiers and keeps verdicts; the newest verdict has to be written last
        if verdict.verdict_digest() not in held:
            write_dossier(
                registry.store,
                Dossier(publication=publication, report=ledger.report(verdict.evaluation_key), verdict=verdict),
            )
    write_dossier(registry.store, Dossier(publication=publication, report=request.report, verdict=request.verdict))
    return publication
