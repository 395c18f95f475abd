"""One disagreement with the ledger, and what mends it."""

from typing import Literal

from ptpipeline.records.base import Record
from ptpipeline.records.versions import Promotion

Kind = Literal[
    "bytes",
    "name",
    "pointer",
    "history",
    "ledger",
    "foreign",
    "dossier",
    "orphan",
    "publish",
    "release",
    "lease",
    "model",
    "alias",
    "edit",
    "file",
    "results",
    "snapshot",
    "checkpoint",
    "server",
    "base",
]

RECONCILE, FIX, REBUILD = "ptp reconcile", "ptp doctor --fix", "ptp doctor --rebuild-ledger"


class Difference(Record):
    """One disagreement with the ledger, and the command that mends it.

    `safe` differences are mended by `ptp doctor --fix`; the others need a person, who reads `mend`.
    """

    task: str
    kind: Kind
    what: str
    expected: str
    found: str
    mend: str
    safe: bool


def describe_object(task: str, kind: Kind, key: str, expected: str, found: str, mend: str) -> Difference:
    """Return what is wrong with an object of the store; it is safe if `ptp doctor --fix` mends it."""
    return Difference(
        task=task, kind=kind, what=f"object {key}", expected=expected, found=found, mend=mend, safe=mend == FIX
    )


def describe_head(head: Promotion | None) -> str:
    """Say what the ledger's newest promotion of an alias names."""
    return f"version {head.version} (seq {head.seq})" if head else "no such alias in the ledger"


def how_to_finish(task: str) -> str:
    """Say how a publish that was interrupted is finished: by the verb that began it."""
    return f"`ptp run {task}`; of a shared prompt `ptp run` a task that starts from it, of an import `ptp import` again"


def how_to_end(task: str) -> str:
    """Say how a publish that was interrupted is finished, or given up."""
    return f"{how_to_finish(task)}; `ptp gc --apply` gives up what nobody began again for a day"
