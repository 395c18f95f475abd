"""Who may promote: a task's promoters, whose signature its overrides need, or all its promotions."""

from collections.abc import Iterable

from ptpipeline.errors import PromotionRefused, TaskFileError
from ptpipeline.records.versions import Promotion
from ptpipeline.storage.signed import find_signer
from ptpipeline.task.folder import load_task
from ptpipeline.task.promoters import Promoters
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.projection import history_object


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
