"""What the ledger knows about a prompt, beside its bytes in the store: so that a lost ledger can be made anew."""

from typing import Literal

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.records import Record, Report, Verdict
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import dossier_key, dossiers_prefix, release_key
from registry.ledger.ledger import Release
from registry.ledger.results import Publication


class Dossier(Record):
    """How a prompt was made, measured and judged, at one time; a prompt that is judged again has several."""

    schema_version: Literal[1] = 1
    publication: Publication
    report: Report | None
    verdict: Verdict | None


def write_dossier(store: ObjectStore, dossier: Dossier) -> str:
    """Store the dossier under a name made of its content, so that a repeat changes nothing; returns its key."""
    body = dossier.model_dump_json().encode()
    tuned = dossier.publication.tuned
    key = dossier_key(tuned.task, tuned.digest, body)
    store.create(key, body)
    return key


def read_dossier(store: ObjectStore, key: str) -> Dossier:
    """The dossier at that key; NotFound, or ArtifactError where it is altered."""
    return checked_dossier(key, store.read(key).body)


def verdicts_told(store: ObjectStore, task: str, digest: str) -> set[str]:
    """Digests of the verdicts that the stored dossiers of the prompt hold; an altered dossier holds none."""
    found = set()
    for key in store.keys(dossiers_prefix(task, digest)):
        try:
            verdict = read_dossier(store, key).verdict
        except (ArtifactError, NotFound):
            continue
        if verdict:
            found.add(verdict.verdict_digest())
    return found


def checked_dossier(key: str, body: bytes) -> Dossier:
    """The dossier in those bytes; ArtifactError where it is not the one that the key names, or speaks of several
    prompts.
    """
    try:
        dossier = Dossier.model_validate_json(body)
    except ValidationError as error:
        raise ArtifactError(
            f"{key}: not a dossier: {error.errors()[0]['msg']}; it is altered or from a newer ptpipeline"
        ) from None
    tuned, report, verdict = dossier.publication.tuned, dossier.report, dossier.verdict
    if key != dossier_key(tuned.task, tuned.digest, body):
        raise ArtifactError(f"{key}: its content belongs elsewhere; it was altered")
    if any((record.task, record.digest) != (tuned.task, tuned.digest) for record in (report, verdict) if record):
        raise ArtifactError(f"{key}: its report or verdict is of another prompt; it was altered")
    if verdict and verdict.passed == any(check.blocks for check in verdict.checks):
        raise ArtifactError(f"{key}: its verdict says otherwise than its checks; it was altered")
    return dossier


def write_release(store: ObjectStore, release: Release) -> None:
    """Store the release, which never changes; PreconditionFailed where another of that name lies there."""
    store.create(release_key(release.name), release.model_dump_json().encode())
