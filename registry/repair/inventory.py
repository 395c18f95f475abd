"""What the object store says of a task's versions, history and prompts, checked piece by piece: against its place,
against the rest, against the ledger.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records import DIGEST_PATTERN, Promotion, Record, VersionName
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import history_key, version_key
from registry.ledger.holdings import Holdings
from registry.listing import TaskListing, ask_all, read_all
from registry.versions.projection import pointer_in
from registry.versions.promotion import GATED
from registry.versions.provenance import Dossier, check_dossier

_Known = TypeVar("_Known", bound=Record)


class Refused(NamedTuple):
    """An object that cannot be what it claims, and why."""

    key: str
    why: str


class Survey(NamedTuple):
    """What the store holds of a task and is in its place; `pointers` are None where unreadable, `dossiers` come oldest
    first.
    """

    names: dict[int, str]
    rows: dict[str, list[Promotion]]
    pointers: dict[str, Promotion | None]
    dossiers: dict[str, Dossier]
    refused: list[Refused]


class Missing(NamedTuple):
    """What the store proves and the ledger does not know; `refused` is what contradicts the ledger, or itself."""

    versions: dict[int, str]
    promotions: list[Promotion]
    refused: list[Refused]


def survey(store: ObjectStore, shelf: TaskListing) -> Survey:
    """Read the small objects of the shelf, each once."""
    numbered, history_rows, pointers = shelf.versions, shelf.history, shelf.pointers
    dossiers = shelf.dossiers()
    bodies = read_all(store, [*numbered, *history_rows, *pointers, *dossiers])
    refused = [Refused(key, "no name of that form stands there") for key in shelf.malformed()]
    names, rows = (
        _sound(VersionName, numbered, bodies, refused),
        _sound(Promotion, history_rows, bodies, refused),
    )
    history: dict[str, list[Promotion]] = {}
    for row in rows:
        history.setdefault(row.alias, []).append(row)
    return Survey(
        names={name.number: name.digest for name in names},
        rows={alias: sorted(found, key=lambda row: row.seq) for alias, found in history.items()},
        pointers={pointer.alias: pointer_in(bodies[key]) for key, pointer in pointers.items() if key in bodies},
        dossiers=_dossiers(dossiers, bodies, refused),
        refused=refused,
    )


def versions_in(found: Survey) -> dict[int, str]:
    """Numbers and digests by the versions' names and, where a name was lost, by the promotions that speak of them."""
    return {row.version: row.digest for rows in found.rows.values() for row in rows} | found.names


def unsound(store: ObjectStore, task: str, found: Survey, books: Holdings) -> dict[str, str]:
    """Of the prompts that the ledger does not know: why their bytes are not what the digest says, or not signed, digest
    -> why.

    Nothing that is said of those is to be believed. One whose bytes are gone is none of them: its number was given all
    the same, and doctor names what is missing.
    """
    stated = {*versions_in(found).values(), *(dossier.publication.tuned.digest for dossier in found.dossiers.values())}
    answers = ask_all(partial(_why_unsound, store, task), sorted(stated - {*books.versions.values()}))
    return {digest: why for digest, why in answers.items() if why}


def _why_unsound(store: ObjectStore, task: str, digest: str) -> str:
    try:
        read_ensemble(store, read_artifact(store, task, digest))
    except NotFound:
        return ""
    except ArtifactError as error:
        return str(error)
    return ""


def missing(task: str, found: Survey, books: Holdings, unsound: Mapping[str, str]) -> Missing:
    """What to add to the ledger, and what not: nothing of prompts that are `unsound`, digest -> why.

    A promotion counts where every one before it does, where it moves the alias from what it named to a version of that
    digest and, for a gated alias, where the store or the ledger holds the passed verdict that it cites, or it says
    openly that a person overrode the gate.
    """
    refused: list[Refused] = []
    versions = _versions(task, versions_in(found), (books, unsound), refused)
    known = versions | books.versions
    passed = books.passed | {
        d.verdict.verdict_digest() for d in found.dossiers.values() if d.verdict and d.verdict.passed
    }
    passed_for = books.verdicts | {
        d.verdict.verdict_digest(): d.verdict.digest for d in found.dossiers.values() if d.verdict
    }
    judged = {verdict: digest for verdict, digest in passed_for.items() if verdict in passed}
    promotions = [
        row
        for alias in sorted(found.rows)
        for row in _promotions(found.rows[alias], books.history.get(alias, []), (known, judged), refused)
    ]
    return Missing(versions, promotions, refused)


def _versions(
    task: str, names: Mapping[int, str], against: tuple[Holdings, Mapping[str, str]], refused: list[Refused]
) -> dict[int, str]:
    books, unsound = against
    taken: dict[int, str] = {}
    numbers = {digest: number for number, digest in books.versions.items()}
    for number, digest in sorted(names.items()):
        if books.versions.get(number) == digest:
            continue
        if number in books.versions:
            refused.append(
                Refused(
                    version_key(task, number),
                    f"names prompt {digest[:12]}, the ledger's version {number} is {books.versions[number][:12]}",
                )
            )
        elif digest in unsound:
            refused.append(
                Refused(version_key(task, number), f"names prompt {digest[:12]}, which is unsound: {unsound[digest]}")
            )
        elif digest in numbers:
            refused.append(
                Refused(
                    version_key(task, number), f"names prompt {digest[:12]}, which is version {numbers[digest]} already"
                )
            )
        else:
            taken[number] = digest
            numbers[digest] = number
    return taken


def _promotions(
    rows: list[Promotion], before: list[Promotion], facts: tuple[dict[int, str], dict[str, str]], refused: list[Refused]
) -> Iterator[Promotion]:
    """The rows behind those that the ledger holds, as far as each follows from the one before it."""
    last = before[-1] if before else None
    sound = True
    for row in rows:
        if row.seq <= len(before):
            why = "" if row == before[row.seq - 1] else f"is another promotion {row.seq} than the ledger's"
        else:
            why = _why_not(row, last, facts) if sound else "follows one that cannot be taken"
        if why:
            sound = False
            refused.append(Refused(history_key(row.task, row.alias, row.seq), why))
        elif row.seq > len(before):
            last = row
            yield row


def _why_not(row: Promotion, last: Promotion | None, facts: tuple[dict[int, str], dict[str, str]]) -> str:
    """Why the row does not follow the last one; empty where it does."""
    versions, judged = facts
    expected = last.seq + 1 if last else 1
    if row.seq != expected:
        return f"is promotion {row.seq}, and promotion {expected} is missing"
    if row.previous != (last.version if last else None):
        return f"moves the alias from version {row.previous}, which it did not name then"
    if versions.get(row.version) != row.digest:
        return f"names version {row.version} as prompt {row.digest[:12]}, which is not registered as that"
    if row.alias in GATED and not row.override and judged.get(row.verdict or "") != row.digest:
        return f"takes version {row.version} to {row.alias}, and the passed verdict that it cites is nowhere"
    return ""


def _sound(
    kind: type[_Known], keys: Iterable[str], bodies: Mapping[str, bytes], refused: list[Refused]
) -> list[_Known]:
    """The records that say of themselves what their keys say."""
    found = []
    for key in keys:
        if key not in bodies:
            continue
        try:
            record = kind.model_validate_json(bodies[key])
        except ValidationError as error:
            refused.append(
                Refused(key, f"is no {kind.__name__} ({error.errors()[0]['msg']}): altered, or from a newer ptpipeline")
            )
            continue
        if key != _place(record):
            refused.append(Refused(key, f"belongs to {_place(record)}: it was altered or copied"))
        else:
            found.append(record)
    return found


def _place(record: Record) -> str:
    if isinstance(record, VersionName):
        return version_key(record.task, record.number) if re.fullmatch(DIGEST_PATTERN, record.digest) else "nowhere"
    return history_key(record.task, record.alias, record.seq) if isinstance(record, Promotion) else "nowhere"


def _dossiers(keys: list[str], bodies: Mapping[str, bytes], refused: list[Refused]) -> dict[str, Dossier]:
    found = {}
    for key in keys:
        try:
            if key in bodies:
                found[key] = check_dossier(key, bodies[key])
        except ArtifactError as error:
            refused.append(Refused(key, str(error).removeprefix(f"{key}: ")))
    return found
