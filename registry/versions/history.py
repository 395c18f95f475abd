"""The path of an alias through its promotions, and the target of a rollback; computed from the rows alone."""

from collections.abc import Sequence

from ptpipeline.errors import PromotionRefused
from ptpipeline.records.versions import Promotion
from registry.card.card import Naming
from registry.ledger.ledger import Ledger


def path_of(history: list[Promotion]) -> list[Promotion]:
    """Return the path of an alias to its head, one row per version: returning to a version drops what followed it."""
    path: list[Promotion] = []
    for row in history:
        before = next((place for place, earlier in enumerate(path) if earlier.version == row.version), len(path))
        path = [*path[:before], row]
    return path


def is_return(history: list[Promotion]) -> bool:
    """Return whether the newest promotion went back to a version that the alias had named before."""
    return history[-1].version in {row.version for row in history[:-1]}


def rollback_target(history: list[Promotion], to: int | None) -> int:
    """Return the version to go back to: `to`, else the one before the head on the alias's path.

    Raises PromotionRefused if the alias never named `to`, or if there is no version before.
    """
    head = history[-1]
    if to is not None:
        if to not in {row.version for row in history}:
            promoted = ", ".join(map(str, dict.fromkeys(row.version for row in history)))
            raise PromotionRefused(
                f"{head.task}@{head.alias}: version {to} was never promoted to it, only {promoted}; `ptp promote` "
                "gates a new one"
            )
        return to
    path = path_of(history)
    if len(path) < 2:
        raise PromotionRefused(
            f"{head.task}@{head.alias}: version {head.version} is the first promotion; there is nothing to roll back "
            "to (returning to a version drops what followed it); name a version with --to"
        )
    return path[-2].version


def version_before(history: list[Promotion], release: str) -> int:
    """Return the version that the alias named before the release, whose promotion is the head.

    Raises PromotionRefused if it named none.
    """
    head = history[-1]
    if head.previous is None:
        raise PromotionRefused(
            f"{head.task}@{head.alias}: it named nothing before release {release!r}; choose a version with "
            f"`ptp rollback {head.task} --to N`"
        )
    return head.previous


def row_of(history: list[Promotion], version: int) -> Promotion:
    """Return the newest promotion that moved the alias to that version."""
    return next(row for row in reversed(history) if row.version == version)


def find_namings(history: Sequence[Promotion], digest: str) -> list[Naming]:
    """Return the times in which an alias named the prompt, by what began and what ended each, oldest first.

    Another share of a canary begins another time. If no head repeats the version before it, the heads alone give the
    times that have not ended.
    """
    begun: dict[str, Promotion] = {}
    stood: dict[str, Naming] = {}
    namings = []
    for row in sorted(history, key=lambda row: row.seq):
        if row.digest == digest:
            begun.setdefault(row.alias, row)
        elif row.alias in begun:
            namings.append(Naming(begun.pop(row.alias), row))
        beside = row.beside if row.beside and row.beside.digest == digest else None
        before = stood.get(row.alias)
        if before and before.beside != beside:
            namings.append(stood.pop(row.alias)._replace(ended=row))
        if beside:
            stood.setdefault(row.alias, Naming(row, None, beside))
    return sorted([*namings, *map(Naming, begun.values()), *stood.values()], key=lambda naming: naming.promotion.at)


def list_rows(ledger: Ledger, task: str, heads: Sequence[Promotion]) -> Sequence[Promotion]:
    """Return what `find_namings` needs to tell what the task's aliases name now: mostly these heads alone."""
    return ledger.history(task) if any(head.previous == head.version for head in heads) else heads
