"""One task as the ledger, the object store and its artifacts show it: both sides of every comparison."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.evaluation.results import read_results
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.reports import Report
from ptpipeline.records.versions import Promotion
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.signed import without_checks
from registry.ledger.holdings import Holdings, holdings
from registry.ledger.results import Publication
from registry.ledger.usage import publications, reports
from registry.lineage.ancestry import is_shared, parts_of
from registry.listing import TaskListing, ask_all
from registry.registry import Registry
from registry.repair.contents import Contents, read_contents
from registry.repair.losses import Losses, find_losses, find_unpromoted, find_unsound
from registry.versions.content import read_content


class Inventory(NamedTuple):
    """What the ledger (`holdings`) and the store (`contents`) hold of a task, and what the ledger lost.

    `artifacts` are the manifests of registered prompts and of their parts by digest, or why one cannot be read.
    `altered` are the keys of files that are not what they name, and of results that are not their report's: key -> why.
    `publications` name the files of the kept versions. `away` are the digests that are or were collected, and those of
    a collected prompt whose publish began again and did not end: what it lacks is told as that publish.
    """

    registry: Registry
    listing: TaskListing
    holdings: Holdings
    contents: Contents
    losses: Losses
    artifacts: dict[str, PromptManifest | str]
    altered: dict[str, str]
    publications: list[Publication]
    away: set[str]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.listing.task

    def kept_versions(self) -> dict[int, str]:
        """Return the versions that nobody is collecting: number -> digest."""
        versions = sorted(self.holdings.versions.items())
        return {number: digest for number, digest in versions if digest not in self.away}

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
    held, task = holdings(registry.ledger, listing.task), listing.task
    contents = read_contents(registry.store, listing)
    away = held.tombstones | _find_begun(held, contents)
    known = [report for report in reports(registry.ledger, task) if report.digest not in away]
    made = [item for item in publications(registry.ledger, task) if item.tuned.digest not in away]
    unsound = find_unsound(registry.store, listing.task, contents, held)
    losses = find_losses(task, contents, held, unsound, find_unpromoted(registry, task, contents, held))
    artifacts = _artifacts(registry, listing, {*held.versions.values()} - away)
    altered = _find_altered(registry.store, listing, known)
    return Inventory(registry, listing, held, contents, losses, artifacts, altered, made, away)


def _find_begun(held: Holdings, contents: Contents) -> set[str]:
    """The versions that a collection took and whose publish began again: it has not come to say in the store how they
    were made. An alias that named one would have kept it.
    """
    promoted = {row.digest for rows in held.history.values() for row in rows}
    begun = {*held.versions.values()} & held.intents.keys()
    return begun - contents.described_digests() - promoted


def _artifacts(registry: Registry, listing: TaskListing, digests: set[str]) -> dict[str, PromptManifest | str]:
    """The manifests of those prompts and of their parts, or why one cannot be read; each is read once.

    Their parts are members of ensembles, and of the prompts that they descend from those that lie in this task.
    """
    ask, stored = partial(_manifest, registry, listing.task), listing.digests()
    prompts: dict[str, PromptManifest | str] = {}
    while digests:
        found = ask_all(ask, digests)
        prompts |= found
        manifests = [manifest for manifest in found.values() if isinstance(manifest, PromptManifest)]
        digests = {part for manifest in manifests for part in own_parts_of(manifest, stored)} - prompts.keys()
    return prompts


def own_parts_of(manifest: PromptManifest, stored: set[str]) -> list[str]:
    """Return a prompt's members, its teachers, and what it descends from if that is `stored` in its own task."""
    members = manifest.members.digests if manifest.members else ()
    needed = {*members, *(manifest.parents if is_shared(manifest) else ())}
    return [part for part in parts_of(manifest) if part in needed or part in stored]


def _find_altered(store: ObjectStore, listing: TaskListing, known: list[Report]) -> dict[str, str]:
    """The files and results that are there and altered, key -> why; what is gone is no such.

    Reports of an older ptpipeline state no results: nothing is decided on these before they are measured again.
    """
    stated = {report.rows_key: report for report in known if report.rows_sha256}
    bare = without_checks(store)  # nobody signs what a later page replaced
    questions = {key: partial(read_content, bare, key) for key in listing.files()}
    questions |= {key: partial(read_results, store, report) for key, report in stated.items()}
    return {key: why for key, why in ask_all(lambda key: _why_altered(questions[key]), questions).items() if why}


def _why_altered(read: Callable[[], bytes]) -> str:
    try:
        read()
    except ArtifactError as error:
        return str(error)
    except NotFound:
        pass
    return ""


def _manifest(registry: Registry, task: str, digest: str) -> PromptManifest | str:
    try:
        return read_artifact(registry.store, task, digest).manifest
    except (ArtifactError, NotFound) as error:
        return str(error)
