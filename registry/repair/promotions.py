"""Compares the promotions in the store, its history and its pointers, with the ledger's."""

from collections.abc import Iterator

from ptpipeline.records.versions import Promotion
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import history_key, pointer_key, version_key
from registry.repair.difference import FIX, REBUILD, RECONCILE, Difference, describe_head
from registry.repair.inventory import Inventory
from registry.versions.promoters import lack_promoter
from registry.versions.promotion import GATED


def compare_ledger(inventory: Inventory) -> Iterator[Difference]:
    """Yield what the store proves and the ledger lost, then what contradicts the ledger."""
    for number, digest in inventory.losses.versions.items():
        yield Difference(
            task=inventory.task,
            kind="ledger",
            what=f"version {number} in the ledger",
            expected=f"digest {digest[:12]}, as the store names it",
            found="no such version",
            mend=REBUILD,
            safe=False,
        )
    for row in inventory.losses.promotions:
        yield Difference(
            task=inventory.task,
            kind="ledger",
            what=f"promotion {row.seq} of {row.alias} in the ledger",
            expected=f"version {row.version}, as the store holds it",
            found="no such promotion",
            mend=REBUILD,
            safe=False,
        )
    yield from _foreign(inventory)


def _foreign(inventory: Inventory) -> Iterator[Difference]:
    """What contradicts the ledger, less what is a difference of its own: a name, a row of the history or a dossier."""
    task, histories = inventory.task, inventory.holdings.history.values()
    names = {version_key(task, number) for number in inventory.kept_versions()}
    rows = {history_key(task, row.alias, row.seq) for history in histories for row in history}
    unread = [refused for refused in inventory.contents.refused if refused.key not in rows]
    for refused in [*unread, *inventory.losses.refused]:
        if refused.key not in names and not is_dossier(refused.key):
            yield Difference(
                task=task,
                kind="foreign",
                what=f"object {refused.key}",
                expected="what the ledger holds",
                found=refused.why,
                mend=f"compare it with a backup of the ledger; if it is wrong, delete the object {refused.key}",
                safe=False,
            )


def compare_history(inventory: Inventory) -> Iterator[Difference]:
    """Yield aliases with promotions that the store does not hold."""
    stored = {
        history_key(inventory.task, row.alias, row.seq) for rows in inventory.contents.history.values() for row in rows
    }
    for alias, rows in sorted(inventory.holdings.history.items()):
        lost = [row.seq for row in rows if history_key(inventory.task, alias, row.seq) not in stored]
        if lost:
            yield Difference(
                task=inventory.task,
                kind="history",
                what=f"history of {alias}",
                expected=f"{len(rows)} promotions in the store",
                found=f"{_list_numbers(lost)} missing or unreadable",
                mend=FIX,
                safe=True,
            )


def compare_chains(inventory: Inventory) -> Iterator[Difference]:
    """Yield promotions of the ledger that do not follow the one before, or that no promoter signed."""
    for alias, rows in sorted(inventory.holdings.history.items()):
        for before, row in zip([None, *rows], rows, strict=False):
            if not row.follows(before):
                yield Difference(
                    task=inventory.task,
                    kind="ledger",
                    what=f"promotion {row.seq} of {alias} in the ledger",
                    expected="the digest of the promotion before it as its `chain`",
                    found="another one: a row of the history was altered",
                    mend="compare the ledger with a backup, and with the history that the store holds",
                    safe=False,
                )
    gated = [row for alias in GATED for row in inventory.holdings.history.get(alias, [])]
    for row, why in lack_promoter(inventory.registry, inventory.task, gated).items():
        yield Difference(
            task=inventory.task,
            kind="ledger",
            what=f"promotion {row.seq} of {row.alias} in the ledger",
            expected="the signature of one of the task's promoters",
            found=why,
            mend=f"a promoter who answers for it: `ptp sign {inventory.task}`; else `ptp rollback {inventory.task}`",
            safe=False,
        )


def compare_pointers(inventory: Inventory) -> Iterator[Difference]:
    """Yield pointers that name another promotion than the ledger's head."""
    for alias in sorted({*inventory.holdings.history, *inventory.contents.pointers}):
        head, pointer = inventory.head(alias), inventory.contents.pointers.get(alias)
        if (head is None or pointer != head) and not inventory.is_ahead(alias, pointer):
            # a ledger that knows nothing of the task may itself be what is lost: then the pointer is all that serves
            safe = head is not None or bool(inventory.holdings.versions)
            yield Difference(
                task=inventory.task,
                kind="pointer",
                what=f"pointer {alias}",
                expected=describe_head(head),
                found=_describe_pointer(inventory, alias, pointer),
                mend=_how_to_mend(pointer_key(inventory.task, alias), head, safe),
                safe=safe,
            )


def _describe_pointer(inventory: Inventory, alias: str, pointer: Promotion | None) -> str:
    if pointer_key(inventory.task, alias) not in inventory.listing.objects:
        return "no object"
    return "no readable pointer" if pointer is None else f"version {pointer.version} (seq {pointer.seq})"


def _how_to_mend(key: str, head: Promotion | None, safe: bool) -> str:
    if head:
        return RECONCILE
    return FIX if safe else f"{REBUILD}; if nobody promoted it, delete the object {key}"


def _list_numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
