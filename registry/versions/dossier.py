"""What the ledger knows about a prompt, stored beside its bytes, so that a lost ledger can be rebuilt."""

import re
from collections.abc import Set
from datetime import datetime
from typing import ClassVar, Literal

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.records.base import Grown, Time
from ptpipeline.records.reports import Report
from ptpipeline.records.verdicts import Verdict
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import PromptObject, is_content_of, is_dossier, parse
from ptpipeline.storage.keys import dossier_key, dossiers_prefix
from registry.card.card import Provenance
from registry.ledger.results import Publication, Results
from registry.versions.content import write_content

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00")  # as `now` writes it


class Dossier(Grown):
    """A prompt's provenance as it is stored, at one time; a prompt that is judged again has several.

    `judged_at` says when the verdict became the newest on its prompt, if there are others: a dossier that was lost is
    written again after newer ones. Without it, that is when the object was stored.
    """

    LATER: ClassVar = frozenset({"judged_at"})

    schema_version: Literal[1] = 1
    publication: Publication
    report: Report | None
    verdict: Verdict | None
    judged_at: Time | None = None

    @property
    def provenance(self) -> Provenance:
        """The provenance, without what lies in objects of its own: plots, neighbours and mistakes."""
        return Provenance(self.publication.tuned, self.report, self.verdict, commit=self.publication.commit)


def lost_dossiers(
    ledger: Results, publication: Publication, stored: Set[str], newest: Verdict | None = None
) -> list[Dossier]:
    """Return a dossier for each verdict on the prompt that is not `stored`, by digest, the oldest first.

    `newest` is a verdict that the ledger may not know yet, and whose dossier is written behind these: so they say when
    theirs were given.
    """
    tuned = publication.tuned
    times = ledger.verdict_times(tuned.task, tuned.digest)
    others = {newest.verdict_digest()} if newest else set()
    return [
        Dossier(
            publication=publication,
            report=ledger.report(verdict.evaluation_key),
            verdict=verdict,
            judged_at=times[verdict.verdict_digest()] if len(times.keys() | others) > 1 else None,
        )
        for verdict in reversed(ledger.verdicts(tuned.task, tuned.digest))
        if verdict.verdict_digest() not in stored | others
    ]


def write_dossier(store: ObjectStore, dossier: Dossier) -> str:
    """Store the dossier under a key that names its content, so that a repeat changes nothing; returns the key."""
    body = dossier.model_dump_json().encode()
    tuned = dossier.publication.tuned
    key = dossier_key(tuned.task, tuned.digest, body)
    write_content(store, key, body)
    return key


def read_dossier(store: ObjectStore, key: str) -> Dossier:
    """Return the dossier at that key; raises NotFound, or ArtifactError if it is altered."""
    return check_dossier(key, store.read(key).body)


def stored_verdicts(store: ObjectStore, task: str, digest: str) -> set[str]:
    """Return the digests of the verdicts in the stored dossiers of the prompt; an altered dossier counts for none."""
    verdicts = set()
    for key in store.keys(dossiers_prefix(task, digest)):
        try:
            verdict = read_dossier(store, key).verdict
        except (ArtifactError, NotFound):
            continue
        if verdict:
            verdicts.add(verdict.verdict_digest())
    return verdicts


def check_dossier(key: str, body: bytes) -> Dossier:
    """Return the dossier in those bytes; ArtifactError if the key names another one, or it is about several prompts."""
    dossier = parse_record(Dossier, body, f"{key}: not a dossier")
    tuned, report, verdict = dossier.publication.tuned, dossier.report, dossier.verdict
    address = parse(key)
    placed = isinstance(address, PromptObject) and (address.task, address.digest) == (tuned.task, tuned.digest)
    if not (placed and is_dossier(key) and is_content_of(key, body)):
        raise ArtifactError(f"{key}: its content belongs to another key; it was altered")
    if any((record.task, record.digest) != (tuned.task, tuned.digest) for record in (report, verdict) if record):
        raise ArtifactError(f"{key}: its report or verdict is of another prompt; it was altered")
    if dossier.judged_at is not None and not _is_time(dossier.judged_at):
        raise ArtifactError(f"{key}: {dossier.judged_at!r} is no time in UTC; it was altered")
    if verdict and verdict.passed == any(check.blocks for check in verdict.checks):
        raise ArtifactError(f"{key}: its verdict contradicts its checks; it was altered")
    return dossier


def _is_time(text: str) -> bool:
    try:
        return _TIME.fullmatch(text) is not None and bool(datetime.fromisoformat(text))
    except ValueError:
        return False
