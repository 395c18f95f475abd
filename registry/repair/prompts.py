"""Compares the prompts in the store with the ledger's versions: their bytes, names and dossiers, and what is no
version.
"""

from collections import Counter
from collections.abc import Iterator

from ptpipeline.records.prompts import PromptManifest
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import prompt_prefix
from registry.lineage.ancestry import parts_of
from registry.mlflow.copy import load_copy
from registry.repair.difference import FIX, RECONCILE, Difference, how_to_end, how_to_finish
from registry.repair.inventory import Inventory, own_parts_of

INTERRUPTED = "the run that gave it was interrupted"


def compare_bytes(inventory: Inventory) -> Iterator[Difference]:
    """Yield versions whose bytes, or whose parts' bytes, are missing or damaged."""
    for number, digest in inventory.kept_versions().items():
        own = inventory.artifacts[digest]
        parts = own_parts_of(own, inventory.listing.digests()) if isinstance(own, PromptManifest) else []
        registered = {*inventory.kept_versions().values()}
        for part in (digest, *(part for part in parts if part not in registered)):
            problem = inventory.artifacts[part]
            if isinstance(problem, str):
                copied = part == digest and has_copy(inventory, digest)
                yield Difference(
                    task=inventory.task,
                    kind="bytes",
                    what=f"bytes of version {number}",
                    expected=f"digest {part[:12]}",
                    found=problem,
                    mend=FIX if copied else _how_to_restore(inventory.task, part, digest),
                    safe=copied,
                )


def has_copy(inventory: Inventory, digest: str) -> bool:
    """Return whether MLflow keeps a sound copy of the prompt."""
    mlflow = inventory.registry.mlflow
    return mlflow is not None and load_copy(mlflow, inventory.task, digest) is not None


def _how_to_restore(task: str, part: str, digest: str) -> str:
    manifest = "" if part == digest else f", and the manifest of {digest[:12]},"
    left = f"what is left of manifest.json and prompt.safetensors in {prompt_prefix(task, part)}{manifest}"
    return f"restore them from a backup, or delete {left} and {how_to_finish(task)}"


def compare_names(inventory: Inventory) -> Iterator[Difference]:
    """Yield versions whose number names another prompt in the store, or none."""
    for number, digest in inventory.kept_versions().items():
        named = inventory.contents.names.get(number, "nothing")
        if named != digest:
            yield Difference(
                task=inventory.task,
                kind="name",
                what=f"number {number} in the store",
                expected=f"digest {digest[:12]}",
                found=named[:12],
                mend=f"{RECONCILE} {inventory.task}",
                safe=True,
            )


def compare_dossiers(inventory: Inventory) -> Iterator[Difference]:
    """Yield versions of which the store does not tell, for a lost ledger, how they were made and judged."""
    described, stored = inventory.contents.described_digests(), inventory.contents.verdict_digests()
    misplaced, newest = find_misplaced(inventory), inventory.contents.latest_verdicts()
    lost = Counter(digest for verdict, digest in inventory.holdings.verdicts.items() if verdict not in stored)
    for number, digest in inventory.kept_versions().items():
        if digest in described and not lost[digest] and digest not in misplaced:
            continue
        safe = digest in inventory.holdings.published
        if not safe:
            state = "nothing in the store or the ledger"
        elif digest not in described:
            state = "nothing in the store"
        elif lost[digest]:
            state = f"{lost[digest]} verdicts are not in the store"
        elif newest[digest] in inventory.holdings.verdicts:
            state = "another verdict as the newest"
        else:
            state = f"a newer verdict, which the ledger lacks: {INTERRUPTED}, and may be repeated"
        yield Difference(
            task=inventory.task,
            kind="dossier",
            what=f"records of version {number}",
            expected="how it was made and judged",
            found=state,
            mend=FIX if safe else how_to_end(inventory.task),
            safe=safe,
        )
    for refused in inventory.contents.refused:
        if is_dossier(refused.key):
            yield Difference(
                task=inventory.task,
                kind="dossier",
                what=f"object {refused.key}",
                expected="how a prompt was made and judged",
                found=refused.why,
                mend=FIX,
                safe=True,
            )


def find_misplaced(inventory: Inventory) -> set[str]:
    """Return the prompts of which the store holds another verdict as the newest than the ledger."""
    latest = {digest: verdict for verdict, digest in inventory.holdings.verdicts.items()}
    return {
        digest
        for digest, verdict in inventory.contents.latest_verdicts().items()
        if latest.get(digest, verdict) != verdict
    }


def compare_publishes(inventory: Inventory) -> Iterator[Difference]:
    """Yield publishes that began and did not end."""
    described = inventory.contents.described_digests()
    for digest, at in sorted(inventory.holdings.intents.items()):
        safe = digest in described  # the dossier says all that the publish was asked to do
        yield Difference(
            task=inventory.task,
            kind="publish",
            what=f"publish of {digest[:12]}",
            expected="finished",
            found=f"interrupted, or under way since {at}",
            mend=FIX if safe else how_to_end(inventory.task),
            safe=safe,
        )


def find_orphans(inventory: Inventory) -> Iterator[Difference]:
    """Yield stored prompts that are no version, and part of none."""
    held = inventory.holdings
    known = {*held.versions.values(), *held.intents, *held.tombstones, *inventory.losses.versions.values()}
    for manifest in inventory.artifacts.values():
        if isinstance(manifest, PromptManifest):
            known.update(parts_of(manifest))
    for digest in sorted(inventory.listing.digests() - known):
        yield Difference(
            task=inventory.task,
            kind="orphan",
            what=f"stored prompt {digest[:12]}",
            expected="a registered version",
            found="no row in the ledger",
            mend=f"{how_to_finish(inventory.task)}; or `ptp gc --apply` deletes it",
            safe=False,
        )
