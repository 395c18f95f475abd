"""Publishing: from the bytes of a trained prompt to a numbered version; every step may be repeated."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ptpipeline.errors import ArtifactError, NotFound, PtpError
from ptpipeline.evaluation.mistakes import Mistakes
from ptpipeline.foreign import parse_record
from ptpipeline.gate.disclosure import WITHOUT_TEST_ROWS, disclose, is_withheld
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble, write_artifact
from ptpipeline.prompts.interpretation import Neighbours, Wayward
from ptpipeline.records.base import Record
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PromptVersion
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import companion_key, page_key, plot_key
from registry.card.card import Card, Provenance
from registry.card.page import render_page
from registry.failpoints import reached
from registry.ledger.ledger import Ledger
from registry.ledger.results import Publication
from registry.mlflow.store import MlflowStore
from registry.registry import Registry
from registry.versions.content import is_sound, read_content, write_content
from registry.versions.dossier import Dossier, lost_dossiers, stored_verdicts, write_dossier
from registry.versions.history import find_namings
from registry.versions.naming import check_number, name_version

log = logging.getLogger(__name__)

_Companion = TypeVar("_Companion", bound=Record)
_Answer = TypeVar("_Answer")


def stage(ledger: Ledger, store: ObjectStore, artifact: Artifact, members: Sequence[Artifact] = ()) -> str:
    """Note the intent, store the artifact after the members of an ensemble, and read all back; returns its digest. It
    is not a version yet.

    Raises ArtifactError if the bytes are not what the manifest states, or other bytes lie at their key.
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


def register(registry: Registry, provenance: Provenance) -> PromptVersion:
    """Make the staged prompt a version; a repeat finds what is there and finishes it.

    Raises NotFound or ArtifactError if the stored bytes are missing or altered, Terminal if the store knows versions
    that the ledger does not, ServiceUnavailable if the store or the ledger does not answer: then repeat it. MLflow may
    be away or refuse it: a reconcile adds the version there, or says why not.
    """
    ledger, task, digest = registry.ledger, provenance.tuned.task, provenance.tuned.digest
    ledger.intend(task, digest)
    artifact = read_artifact(registry.store, task, digest)
    read_ensemble(registry.store, artifact)
    check_number(registry, task, digest)
    publication, judged_at = remember(registry, provenance)
    reached("publish remembered")
    card = _make_card(registry, artifact, publication, provenance)
    shown = _show_in_mlflow(registry, task, lambda mlflow: mlflow.ensure(card))
    reached("publish shown")
    version = ledger.add_version(task, digest, provenance.verdict, judged_at)
    reached("publish numbered")
    name_version(registry.store, version)
    reached("publish named")
    show_version(registry, card, version, shown)
    read_ensemble(registry.store, read_artifact(registry.store, task, digest))
    reached("publish verified")
    ledger.fulfil(task, digest)
    return version


def _show_in_mlflow(registry: Registry, task: str, show: Callable[[MlflowStore], _Answer]) -> _Answer | None:
    """Show it in MLflow, which only follows the ledger: if that fails, the version is registered all the same."""
    if registry.mlflow is None:
        return None
    try:
        return show(registry.mlflow)
    except PtpError as error:
        log.warning("%s: MLflow does not show this version yet, its page lags until a reconcile: %s", task, error)
        return None


# ---------------------------------------------------------------- cards and pages


def load_card(registry: Registry, task: str, digest: str) -> Card:
    """Return all that is known about a prompt, from the ledger and its verified bytes.

    Raises NotFound if the ledger does not know how it was made, ArtifactError if its bytes are altered.
    """
    publication = _load_publication(registry.ledger, task, digest)
    return _make_card(registry, read_artifact(registry.store, task, digest), publication)


def show_version(registry: Registry, card: Card, version: PromptVersion, shown: str | None = None) -> None:
    """Write the version's page in the store, and in MLflow, which may be away. shown: the number that it has there."""
    write_page(registry, card, version)
    _show_in_mlflow(registry, card.task, lambda mlflow: mlflow.describe(card, version, shown))


def write_page(registry: Registry, card: Card, version: PromptVersion) -> str:
    """Store the version's page under a key that names its content, so that a repeat changes nothing; returns it."""
    body = render_page(card, version)
    key = page_key(card.task, card.digest, body)
    write_content(registry.store, key, body)
    return key


def withhold_texts(registry: Registry, task: str) -> None:
    """Take the texts of rows off the pages of all the task's versions. HTML files that were stored before remain."""
    for publication in registry.ledger.publications_with_texts(task):
        digest = publication.tuned.digest
        try:
            card, version = load_card(registry, task, digest), registry.ledger.version_of(task, digest)
        except NotFound:  # collected since: no page shows it again
            pass
        else:
            card = replace(card, provenance=replace(card.provenance, mistakes=None))
            write_page(registry, card, version)
            if registry.mlflow:
                registry.mlflow.describe(card, version)
        # last: if the process is killed before, the next run repeats it
        registry.ledger.save_publication(publication.model_copy(update={"mistakes": None}))


def attach(registry: Registry, digest: str, experiment: Wayward) -> str:
    """Add an experiment to the page of the version of that digest; returns the new page's key.

    Raises NotFound if the ledger does not know how the prompt was made, or it is not a version.
    """
    ledger, task = registry.ledger, experiment.task
    version, publication = ledger.version_of(task, digest), _load_publication(ledger, task, digest)
    key = _store_companion(registry.store, publication, "wayward", experiment)
    if key not in publication.wayward:
        publication = publication.model_copy(update={"wayward": (*publication.wayward, key)})
        ledger.save_publication(publication)
        verdict = ledger.latest_verdict(task, digest)
        report = _find_report(ledger, publication, verdict)
        write_dossier(registry.store, Dossier(publication=publication, report=report, verdict=verdict))
    return write_page(registry, load_card(registry, task, digest), version)


def forget_files(registry: Registry, publication: Publication, gone: Collection[str]) -> None:
    """Take stored files that are gone out of what the ledger, the dossiers and the page say of a version.

    The next run that leads to the version draws plots, and finds neighbours, where none are known.
    """
    task, digest = publication.tuned.task, publication.tuned.digest
    left = {
        "plots": {} if any(key in gone for key in publication.plots.values()) else publication.plots,
        "neighbours": None if publication.neighbours in gone else publication.neighbours,
        "wayward": tuple(key for key in publication.wayward if key not in gone),
        "mistakes": None if publication.mistakes in gone else publication.mistakes,
    }
    publication = publication.model_copy(update=left)
    registry.ledger.save_publication(publication)
    known = load_card(registry, task, digest).provenance
    write_dossier(registry.store, Dossier(publication=publication, report=known.report, verdict=known.verdict))


def _load_publication(ledger: Ledger, task: str, digest: str) -> Publication:
    publication = ledger.publication(task, digest)
    if publication is None:
        raise NotFound(
            f"{task}: the ledger does not know how prompt {digest[:12]} was made; `ptp run {task}` publishes it"
        )
    return publication


def _make_card(
    registry: Registry, artifact: Artifact, publication: Publication, given: Provenance | None = None
) -> Card:
    """Return the card of a verified artifact, as people may see it.

    What `given` does not hold is read from the ledger and the store.
    """
    ledger, store, task, digest = registry.ledger, registry.store, artifact.manifest.task, artifact.digest
    plots = given.plots if given else {}
    judged = given.verdict if given and given.verdict else ledger.latest_verdict(task, digest)
    report, verdict = disclose(_find_report(ledger, publication, judged), judged)
    quiet = is_withheld(judged)
    return Card(
        artifact=artifact,
        provenance=Provenance(
            tuned=publication.tuned,
            report=report,
            verdict=verdict,
            plots={
                name: body
                for name, body in (plots | _read_plots(store, publication, plots)).items()
                if name in WITHOUT_TEST_ROWS or not quiet
            },
            commit=publication.commit,
            neighbours=_read_companion(store, Neighbours, publication.neighbours),
            mistakes=None if quiet else _read_companion(store, Mistakes, publication.mistakes),
        ),
        snapshot=ledger.snapshot(task, artifact.manifest.snapshot),
        store=store.url,
        champion=_number_of(ledger, task, verdict.champion) if verdict and verdict.champion else None,
        wayward=[found for key in publication.wayward if not quiet and (found := _read_companion(store, Wayward, key))],
        namings=find_namings(ledger.history(task), digest),
    )


def _find_report(ledger: Ledger, publication: Publication, verdict: Verdict | None) -> Report | None:
    """Return the report behind the verdict; the newest one if there is no verdict, or its report is gone."""
    tuned = publication.tuned
    return (ledger.report(verdict.evaluation_key) if verdict else None) or ledger.report_of(tuned.task, tuned.digest)


def _read_plots(store: ObjectStore, publication: Publication, given: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the stored plots besides those that are `given`."""
    stored = {name: _read_shown(store, key) for name, key in publication.plots.items() if name not in given}
    return {name: body for name, body in stored.items() if body is not None}


def _read_companion(store: ObjectStore, kind: type[_Companion], key: str | None) -> _Companion | None:
    """Return the record that is stored beside a prompt under that key; None if there is no key, or nothing to show."""
    body = _read_shown(store, key) if key else None
    return parse_record(kind, body, f"{store.url}/{key}") if body is not None else None


def _read_shown(store: ObjectStore, key: str) -> bytes | None:
    """Return what a page shows; None, with a warning, if it is gone or altered: then the page goes without it."""
    try:
        return read_content(store, key)
    except (ArtifactError, NotFound) as error:
        log.warning("a page is written without one of its parts, which `ptp doctor` names: %s", error)
        return None


def _number_of(ledger: Ledger, task: str, digest: str) -> int | None:
    try:
        return ledger.version_of(task, digest).number
    except NotFound:
        return None


# ---------------------------------------------------------------- what the registry remembers


def keep_verdict(registry: Registry, provenance: Provenance) -> None:
    """Keep a new verdict on a version, first in the store: a lost ledger is rebuilt from it, and a promotion may name
    only a verdict that survives that.
    """
    _, judged_at = remember(registry, provenance)
    if provenance.verdict:
        registry.ledger.save_verdict(provenance.verdict, judged_at)


def remember(registry: Registry, provenance: Provenance) -> tuple[Publication, str | None]:
    """Keep what MLflow shows in our own ledger and store, so that a lost MLflow can be rebuilt. The verdict itself is
    the caller's to add to the ledger, as of the time that is returned with the publication, if there is one.
    """
    ledger, store, tuned = registry.ledger, registry.store, provenance.tuned
    publication = _publish_files(store, ledger.publication(tuned.task, tuned.digest), provenance)
    ledger.save_publication(publication, provenance.report)
    verdict = provenance.verdict
    judged_at = ledger.judging_time(verdict) if verdict else None
    if judged_at:  # there are others: a collection deletes dossiers and keeps verdicts
        stored = stored_verdicts(store, tuned.task, tuned.digest)
        for dossier in lost_dossiers(ledger, publication, stored, verdict):
            write_dossier(store, dossier)
    report = provenance.report
    write_dossier(store, Dossier(publication=publication, report=report, verdict=verdict, judged_at=judged_at))
    return publication, judged_at


def _publish_files(store: ObjectStore, known: Publication | None, provenance: Provenance) -> Publication:
    """Store plots, neighbours and mistakes; returns the publication that names them, and what was known before."""
    tuned = provenance.tuned
    known = known or Publication(tuned=tuned, commit=None, plots={})
    plots = dict(known.plots)
    for name, body in provenance.plots.items():
        plots[name] = plot_key(tuned.task, tuned.digest, name, body)
        write_content(store, plots[name], body)
    publication = Publication(
        tuned=tuned,
        commit=provenance.commit or known.commit,
        plots=plots,
        neighbours=known.neighbours,
        wayward=tuple(key for key in known.wayward if is_sound(store, key)),
    )
    for name, record in (("neighbours", provenance.neighbours), ("mistakes", provenance.mistakes)):
        if record:
            key = _store_companion(store, publication, name, record)
            publication = publication.model_copy(update={name: key})
    return publication


def _store_companion(store: ObjectStore, publication: Publication, name: str, record: Record) -> str:
    """Store a record beside the prompt, under a key that names its content; returns the key."""
    body = record.model_dump_json().encode()
    key = companion_key(publication.tuned.task, publication.tuned.digest, name, body)
    write_content(store, key, body)
    return key
