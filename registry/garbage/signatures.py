"""Signatures that nothing needs: of pointers that were replaced, and of promotions that were signed and not made.

Signatures of what belongs to a prompt or a snapshot are collected with it (`collect`). The bytes of the others never
return once they are replaced, because pointers hold a nonce and promotions a time: so nobody stores them again.
"""

import hashlib
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.records.base import read_clock
from ptpipeline.storage import Listed, ObjectStore
from ptpipeline.storage.addresses import HistoryRow, ObjectSignature, PromptObject, SnapshotObject, parse, parse_task
from ptpipeline.storage.keys import PROMPTS, RELEASES, SIGNATURES
from registry.garbage.plan import Collected
from registry.garbage.roots import ABANDONED
from registry.ledger.ledger import Ledger
from registry.versions.projection import history_object


class Stale(NamedTuple):
    """A signature that nothing needs, and its key."""

    item: Collected
    key: str


def find_stale_signatures(ledger: Ledger, store: ObjectStore, task: str | None) -> list[Stale]:
    """Return the signatures, of one task or all, of bytes that do not lie at their key and never will.

    One that is younger than a day may be of an object that is about to be stored.
    """
    groups: dict[str, list[tuple[Listed, ObjectSignature]]] = {}
    for item in store.list_objects(SIGNATURES):
        address = parse(item.key)
        if isinstance(address, ObjectSignature) and _is_of(address.signed, task):
            groups.setdefault(address.signed, []).append((item, address))
    stored = {*store.keys(PROMPTS), *store.keys(RELEASES)} if groups else set()
    stale = []
    for signed, signatures in groups.items():
        if signed in stored and len({address.digest for _, address in signatures}) == 1:
            continue  # without a read: a pointer that was never replaced, a promotion, a name
        needed = _needed_digests(ledger, store, signed)
        stale += [
            Stale(_describe(item, address), item.key)
            for item, address in signatures
            if needed is not None and address.digest not in needed and read_clock() - item.modified > ABANDONED
        ]
    return stale


def _is_of(signed: str, task: str | None) -> bool:
    if isinstance(parse(signed), PromptObject | SnapshotObject):
        return False
    return task in (None, parse_task(signed))


def _needed_digests(ledger: Ledger, store: ObjectStore, signed: str) -> set[str] | None:
    """Return the hashes of what lies at the key and of what the ledger will write there; None if nobody knows."""
    bodies, address = [], parse(signed)
    try:
        bodies.append(store.read(signed).body)
    except NotFound:
        pass
    except ArtifactError:  # too large to be read
        return None
    if isinstance(address, HistoryRow):
        row = ledger.promotion(address.task, address.alias, address.seq)
        bodies += [history_object(row).body] if row else []
    return {hashlib.sha256(body).hexdigest() for body in bodies}


def _describe(item: Listed, address: ObjectSignature) -> Collected:
    return Collected(
        task=parse_task(address.signed),
        digest=address.digest,
        version=None,
        what="signature",
        bytes=item.bytes,
        why=f"of bytes that do not lie at {address.signed}: they were replaced, or never stored",
    )
