"""One task as the ledger, the object store and its artifacts show it: both sides of every comparison."""

from functools import partial
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.versions import Promotion
from registry.ledger.holdings import Holdings, holdings
from registry.listing import TaskListing, ask_all
from registry.registry import Registry
from registry.repair.contents import Contents, read_contents
from registry.repair.losses import Losses, find_losses, find_unsound


class Inventory(NamedTuple):
    """What the ledger (`holdings`) and the store (`contents`) hold of a task, and what the ledger lost.

    `artifacts` are the manifests of registered prompts and of their members by digest, or why one cannot be read.
    """

    registry: Registry
    listing: TaskListing
    holdings: Holdings
    contents: Contents
    losses: Losses
    artifacts: dict[str, PromptManifest | str]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.listing.task

    def kept_versions(self) -> dict[int, str]:
        """Return the versions that nobody is collecting: number -> digest."""
        versions = sorted(self.holdings.versions.items())
        return {number: digest for number, digest in versions if digest not in self.holdings.tombstones}

    def head(self, alias: str) -> Promotion | None:
        """Return the promotion that decides what the alias names, by the ledger."""
        history = self.holdings.history.get(alias)
        return history[-1] if history else None

    def is_ahead(self, alias: str, pointer: Promotion | None) -> bool:
        """Return whether the pointer follows the store's history, whose newest rows the ledger lost."""
        head = self.head(alias)
        return (
            pointer is not None
            and pointer.seq > (head.seq if head else 0)
            and pointer in self.contents.history.get(alias, [])
        )


def take_inventory(registry: Registry, listing: TaskListing) -> Inventory:
    """Read what one task consists of: the ledger first, since what it knows is in the store already."""
    held = holdings(registry.ledger, listing.task)
    contents = read_contents(registry.store, listing)
    unsound = find_unsound(registry.store, listing.task, contents, held)
    losses = find_losses(listing.task, contents, held, unsound)
    artifacts = _artifacts(registry, listing.task, {*held.versions.values()} - held.tombstones)
    return Inventory(registry, listing, held, contents, losses, artifacts)


def _artifacts(registry: Registry, task: str, digests: set[str]) -> dict[str, PromptManifest | str]:
    """The manifests of those prompts and of the members of ensembles, or why one cannot be read; each is read once."""
    prompts = ask_all(partial(_manifest, registry, task), digests)
    members = {
        digest
        for manifest in prompts.values()
        if isinstance(manifest, PromptManifest) and manifest.members
        for digest in manifest.members.digests
    }
    return prompts | ask_all(partial(_manifest, registry, task), members - prompts.keys())


def _manifest(registry: Registry, task: str, digest: str) -> PromptManifest | str:
    try:
        return read_artifact(registry.store, task, digest).manifest
    except (ArtifactError, NotFound) as error:
        return str(error)
