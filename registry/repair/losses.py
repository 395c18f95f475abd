"""What the ledger lost: what the object store proves and the ledger does not know."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records.versions import Beside, Promotion
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import history_key, version_key
from registry.ledger.holdings import Holdings
from registry.listing import ask_all
from registry.registry import Registry
from registry.repair.contents import Contents, Refused
from registry.versions.promoters import lack_promoter
from registry.versions.promotion import GATED


class Losses(NamedTuple):
    """What the store proves and the ledger does not know; `refused` is what contradicts the ledger, or itself."""

    versions: dict[int, str]
    promotions: list[Promotion]
    refused: list[Refused]


class _Facts(NamedTuple):
    """The versions that ledger or store know, number -> digest, their passed verdicts, verdict -> digest, and the
    promotions that lack a promoter's signature, with the reason.
    """

    versions: dict[int, str]
    passed: dict[str, str]
    unpromoted: Mapping[Promotion, str]


def find_unsound(store: ObjectStore, task: str, contents: Contents, holdings: Holdings) -> dict[str, str]:
    """Return which prompts unknown to the ledger have bytes that differ from their digest, or no signature: digest ->
    why.

    Nothing that is said of those is to be believed. A prompt whose bytes are gone is not among them: its number was
    given all the same, and doctor names what is missing.
    """
    stated = {*contents.stated_versions().values()} | contents.described_digests()
    answers = ask_all(partial(_why_unsound, store, task), sorted(stated - {*holdings.versions.values()}))
    return {digest: why for digest, why in answers.items() if why}


def _why_unsound(store: ObjectStore, task: str, digest: str) -> str:
    try:
        read_ensemble(store, read_artifact(store, task, digest))
    except NotFound:
        return ""
    except ArtifactError as error:
        return str(error)
    return ""


def find_unpromoted(registry: Registry, task: str, contents: Contents, holdings: Holdings) -> dict[Promotion, str]:
    """Return which promotions that the ledger does not know lack a promoter's signature that they need, and why."""
    known = {alias: len(rows) for alias, rows in holdings.history.items()}
    rows = [row for alias in GATED for row in contents.history.get(alias, []) if row.seq > known.get(alias, 0)]
    return lack_promoter(registry, task, rows)


def find_losses(
    task: str,
    contents: Contents,
    holdings: Holdings,
    unsound: Mapping[str, str],
    unpromoted: Mapping[Promotion, str],
) -> Losses:
    """Return what to add to the ledger, and what not: nothing of prompts that are `unsound`, digest -> why, nor
    promotions that are `unpromoted`, row -> why.

    A promotion counts if every one before it does and its chain names the one before, if it moves the alias from what
    it named to a version of that digest and, for a gated alias, if the store or the ledger holds the passed verdict
    that it cites, or it says openly that a person overrode the gate.
    """
    refused: list[Refused] = []
    versions = _versions(task, contents.stated_versions(), holdings, unsound, refused)
    facts = _Facts(versions | holdings.versions, _find_passed(contents, holdings), unpromoted)
    promotions = [
        row
        for alias in sorted(contents.history)
        for row in _promotions(contents.history[alias], holdings.history.get(alias, []), facts, refused)
    ]
    return Losses(versions, promotions, refused)


def _find_passed(contents: Contents, holdings: Holdings) -> dict[str, str]:
    """The passed verdicts that the store or the ledger holds: verdict -> digest of the prompt."""
    stored = [dossier.verdict for dossier in contents.dossiers.values() if dossier.verdict]
    passed = holdings.passed | {verdict.verdict_digest() for verdict in stored if verdict.passed}
    judged = holdings.verdicts | {verdict.verdict_digest(): verdict.digest for verdict in stored}
    return {verdict: digest for verdict, digest in judged.items() if verdict in passed}


def _versions(
    task: str, names: Mapping[int, str], holdings: Holdings, unsound: Mapping[str, str], refused: list[Refused]
) -> dict[int, str]:
    """The names that the ledger lost; those that contradict it are added to `refused`."""
    lost: dict[int, str] = {}
    numbers = {digest: number for number, digest in holdings.versions.items()}
    for number, digest in sorted(names.items()):
        registered = holdings.versions.get(number)
        if registered == digest:
            continue
        if registered is not None:
            why = f"the ledger's version {number} is {registered[:12]}"
        elif digest in unsound:
            why = f"which is unsound: {unsound[digest]}"
        elif digest in numbers:
            why = f"which is version {numbers[digest]} already"
        else:
            lost[number] = digest
            numbers[digest] = number
            continue
        refused.append(Refused(version_key(task, number), f"names prompt {digest[:12]}, {why}"))
    return lost


def _promotions(
    rows: list[Promotion], before: list[Promotion], facts: _Facts, refused: list[Refused]
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


def _why_not(row: Promotion, last: Promotion | None, facts: _Facts) -> str:
    """Why the row does not follow the last one; empty if it does."""
    expected = last.seq + 1 if last else 1
    if row.seq != expected:
        return f"is promotion {row.seq}, and promotion {expected} is missing"
    if row.previous != (last.version if last else None):
        return f"moves the alias from version {row.previous}, which it did not name then"
    if not row.follows(last):
        return f"does not follow promotion {row.seq - 1}: its `chain` is the digest of another row"
    if facts.versions.get(row.version) != row.digest:
        return f"names version {row.version} as prompt {row.digest[:12]}, which is not registered as that"
    if row.alias in GATED and not row.override and facts.passed.get(row.verdict or "") != row.digest:
        return f"takes version {row.version} to {row.alias}, and the passed verdict that it cites is nowhere"
    if row.beside and (why := _why_not_beside(row, row.beside, facts)):
        return why
    return facts.unpromoted.get(row, "")


def _why_not_beside(row: Promotion, beside: Beside, facts: _Facts) -> str:
    """Why the version beside the row's own may not stand there; empty if it may. A shadow answers nothing."""
    if facts.versions.get(beside.version) != beside.digest:
        return f"names version {beside.version} as prompt {beside.digest[:12]}, which is not registered as that"
    answers = row.alias in GATED and not beside.is_shadow
    if answers and not beside.override and facts.passed.get(beside.verdict or "") != beside.digest:
        return f"lets version {beside.version} answer for {row.alias}, and the passed verdict that it cites is nowhere"
    return ""
