"""What the object store says of a task: names of versions, history, pointers and dossiers, each checked against its
place.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from ptpipeline.errors import ArtifactError
from ptpipeline.foreign import parse_record
from ptpipeline.records.base import DIGEST_PATTERN, Record
from ptpipeline.records.versions import Promotion, VersionName
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import history_key, version_key
from registry.listing import TaskListing, read_accepted
from registry.versions.dossier import Dossier, check_dossier
from registry.versions.projection import pointer_in

_Known = TypeVar("_Known", bound=Record)


class Refused(NamedTuple):
    """An object that cannot be what it claims, and why."""

    key: str
    why: str


class Contents(NamedTuple):
    """What the store holds of a task and is in its place.

    `names` are version number -> digest, `history` is alias -> promotions by seq, `pointers` are None if unreadable,
    `dossiers` key -> dossier, the one with the oldest verdict first. `times` are those of the dossiers by key: when its
    verdict became the newest on its prompt, or when it was stored if no dossier says more.
    """

    names: dict[int, str]
    history: dict[str, list[Promotion]]
    pointers: dict[str, Promotion | None]
    dossiers: dict[str, Dossier]
    times: dict[str, str]
    refused: list[Refused]

    def described_digests(self) -> set[str]:
        """Return the digests of the prompts that have a dossier."""
        return {dossier.publication.tuned.digest for dossier in self.dossiers.values()}

    def latest_verdicts(self) -> dict[str, str]:
        """Return the newest verdict on each prompt by the dossiers: the prompt's digest -> the verdict's."""
        return {dossier.publication.tuned.digest: verdict for dossier, verdict in self._list_judged()}

    def verdict_digests(self) -> set[str]:
        """Return the digests of the verdicts that the dossiers hold."""
        return {verdict for _, verdict in self._list_judged()}

    def _list_judged(self) -> Iterator[tuple[Dossier, str]]:
        """The dossiers that hold a verdict, with its digest."""
        for dossier in self.dossiers.values():
            if dossier.verdict:
                yield dossier, dossier.verdict.verdict_digest()

    def stated_versions(self) -> dict[int, str]:
        """Return number -> digest by the names of versions and, if a name was lost, by the promotions that cite it."""
        cited = {row.version: row.digest for rows in self.history.values() for row in rows}
        return cited | self.names


def read_contents(store: ObjectStore, listing: TaskListing) -> Contents:
    """Read the small objects of the listing, each once."""
    numbered, promotions, pointers, dossiers = listing.versions, listing.history, listing.pointers, listing.dossiers()
    answers = read_accepted(store, [*numbered, *promotions, *pointers, *dossiers])
    bodies = {key: answer for key, answer in answers.items() if isinstance(answer, bytes)}
    refused = [Refused(key, "has no key of the expected form") for key in listing.malformed()]
    refused += [
        Refused(key, f"is refused: {why}")
        for key, why in answers.items()
        if isinstance(why, str) and key not in pointers
    ]
    names = _parse_sound(VersionName, numbered, bodies, refused)
    history: dict[str, list[Promotion]] = {}
    for row in _parse_sound(Promotion, promotions, bodies, refused):
        history.setdefault(row.alias, []).append(row)
    known = _dossiers(dossiers, bodies, refused)
    times = _times(listing, known)
    return Contents(
        names={name.number: name.digest for name in names},
        history={alias: sorted(rows, key=lambda row: row.seq) for alias, rows in history.items()},
        pointers={
            pointer.alias: pointer_in(bodies[key]) if key in bodies else None
            for key, pointer in pointers.items()
            if key in answers
        },
        dossiers={key: known[key] for key in sorted(known, key=lambda key: times[key])},
        times=times,
        refused=refused,
    )


def _parse_sound(
    kind: type[_Known], keys: Iterable[str], bodies: Mapping[str, bytes], refused: list[Refused]
) -> list[_Known]:
    """The records that say of themselves what their keys say; the others are added to `refused`."""
    sound = []
    for key in keys:
        if key not in bodies:
            continue
        try:
            record = parse_record(kind, bodies[key], f"is no {kind.__name__}")
        except ArtifactError as error:
            refused.append(Refused(key, str(error)))
            continue
        if key != _place(record):
            refused.append(Refused(key, f"belongs to {_place(record)}: it was altered or copied"))
        else:
            sound.append(record)
    return sound


def _place(record: Record) -> str:
    if isinstance(record, VersionName):
        return version_key(record.task, record.number) if re.fullmatch(DIGEST_PATTERN, record.digest) else "nowhere"
    return history_key(record.task, record.alias, record.seq) if isinstance(record, Promotion) else "nowhere"


def _dossiers(keys: list[str], bodies: Mapping[str, bytes], refused: list[Refused]) -> dict[str, Dossier]:
    dossiers = {}
    for key in keys:
        try:
            if key in bodies:
                dossiers[key] = check_dossier(key, bodies[key])
        except ArtifactError as error:
            refused.append(Refused(key, str(error).removeprefix(f"{key}: ")))
    return dossiers


def _times(listing: TaskListing, dossiers: Mapping[str, Dossier]) -> dict[str, str]:
    """When each dossier's verdict became the newest: as a dossier with it states, but not after that was stored.

    S3 dates an object by the whole second in which it was stored, so the end of that second is what limits it.
    """
    stated: dict[str, str] = {}
    for key, dossier in dossiers.items():
        if dossier.verdict and dossier.judged_at:
            verdict = dossier.verdict.verdict_digest()
            stated[verdict] = max(stated.get(verdict, ""), min(dossier.judged_at, _end_of_second(listing.at(key))))
    return {
        key: stated.get(dossier.verdict.verdict_digest() if dossier.verdict else "", listing.at(key))
        for key, dossier in dossiers.items()
    }


def _end_of_second(time: str) -> str:
    return f"{time[: len('2026-01-01T00:00:00')]}.999999+00:00"
