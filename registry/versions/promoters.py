"""Who may promote: a task's promoters, whose signature its overrides need, or all its promotions; and the commit of
what is signed.

A promotion is signed before the ledger holds it, as the object that the store's history will hold. So whoever writes
that object later, after a crash, need not have the key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ptpipeline.errors import PromotionConflict, PromotionRefused, TaskFileError
from ptpipeline.records.versions import Promotion
from ptpipeline.signing import SigningKey
from ptpipeline.storage.keys import release_key
from ptpipeline.storage.signed import SignedStore, find_signer
from ptpipeline.task.folder import load_task
from ptpipeline.task.promoters import Promoters
from registry.ledger.ledger import Move, Release
from registry.registry import Registry
from registry.versions.projection import history_object
from registry.versions.provenance import encode_release


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


def find_promoters(registry: Registry, task: str) -> Promoters | None:
    """Return the promoters that the task's file declares; None if it declares none, or there is no such file.

    Raises TaskFileError if the file is not valid.
    """
    path = registry.tasks / f"{task}.yaml" if registry.tasks else None
    if path is None or not path.is_file():
        return None
    return load_task(path).promoters


def check_promoter(promoters: Promoters | None, place: str, cause: Cause, override: bool) -> None:
    """Raise PromotionRefused if the promotion needs a promoter's signature, and the key of whoever asks is none's.

    place: `task@alias`. override: whether the gate refuses the version.
    """
    if promoters is None or not promoters.are_needed(override):
        return
    signer = cause.signer
    if signer is None or signer.id not in promoters.public_keys():
        by = f"key {signer.id} is none of them" if signer else f"{cause.actor} signed nothing"
        what = "an override" if promoters.required_for == "override" else "every promotion"
        raise PromotionRefused(
            f"{place}: its task file asks for a promoter's signature of {what} (`promoters`), and "
            f"{by}; a promoter runs `ptp` with PTP_SIGNING_KEY naming their key"
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


def is_overridden(row: Promotion) -> bool:
    """Return whether one of the versions that the promotion names answers although the gate refused it."""
    return row.override or (row.beside is not None and row.beside.override)


def lack_promoter(registry: Registry, task: str, rows: Iterable[Promotion]) -> dict[Promotion, str]:
    """Return which of those rows need a promoter's signature that the store does not hold, and why they count for
    nothing.
    """
    try:
        promoters = find_promoters(registry, task)
    except TaskFileError as error:  # nobody knows who its promoters are
        return {row: f"overrides the gate, and {error}" for row in rows if is_overridden(row)}
    if promoters is None:
        return {}
    keys = promoters.public_keys().values()
    return {
        row: "has no signature by a promoter of the task, which its file asks for"
        for row in rows
        if promoters.are_needed(is_overridden(row)) and find_signer(registry.store, *history_object(row), keys) is None
    }
