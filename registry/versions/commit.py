"""The commit of promotions: who moves an alias and why, signed before the ledger holds it.

What is signed is the object that the store's history will hold. So whoever writes that object later, after a crash,
need not have the key.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ptpipeline.errors import PromotionConflict, PromotionRefused
from ptpipeline.records.versions import Promotion
from ptpipeline.signing import SigningKey
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import release_key
from ptpipeline.storage.signed import SignedStore
from registry.ledger.ledger import Move, Release
from registry.registry import Registry
from registry.versions.projection import history_object


@dataclass(frozen=True)
class Cause:
    """Who moves an alias, and why; the history keeps both permanently.

    `override` says that this person takes responsibility for a version that the gate refuses, or has not judged.
    `signer` is the key of the person who asks, if this process is theirs; a process that acts on a request, or on what
    it sees in MLflow, has none of theirs.
    """

    actor: str
    reason: str
    override: bool = False
    signer: SigningKey | None = None


def check_cause(cause: Cause) -> None:
    """Raise PromotionRefused if the actor or the reason is empty, or holds what the history cannot keep."""
    if not (cause.actor.strip() and cause.reason.strip()):
        raise PromotionRefused(
            "a promotion needs an actor and a reason, which the history keeps permanently; one of them is empty"
        )
    if re.search("[\0\ud800-\udfff]", cause.actor + cause.reason):
        raise PromotionRefused(
            "the actor or the reason holds a zero character or bytes that are not UTF-8, which the history cannot "
            "keep; write it in plain text"
        )


def commit(registry: Registry, moves: Sequence[Move], release: Release | None = None) -> list[Promotion]:
    """Sign what the moves become, then add it to the ledger: all moves, with the release that they make, or none.

    Raises as `Ledger.append` does; SettingsError if readers ask for signatures and there is no key to sign with.
    """
    rows = [registry.ledger.draft(move) for move in moves]
    signed = [*map(history_object, rows), *([(release_key(release.name), encode_release(release))] if release else [])]
    if isinstance(registry.store, SignedStore):
        for key, body in signed:
            registry.store.sign(key, body)
    try:
        return registry.ledger.append_release(release, moves) if release else [*map(registry.ledger.append, moves)]
    except (PromotionConflict, PromotionRefused):
        if isinstance(registry.store, SignedStore):
            for row in rows:  # what was not promoted must not look as if it had been
                registry.store.withdraw(*history_object(row))
        raise


def write_release(store: ObjectStore, release: Release) -> None:
    """Store the release, which never changes; PreconditionFailed if another release of that name is stored."""
    store.create(release_key(release.name), encode_release(release))


def encode_release(release: Release) -> bytes:
    """Return the bytes of a release in the store."""
    return release.model_dump_json().encode()
