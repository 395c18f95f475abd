"""Rebuilds a lost ledger, or brings an older copy of it up to date, from the object store alone.

It takes what the store proves: versions by their names, the history of every alias row by row, how each prompt was
made, measured and judged, releases, snapshots. What contradicts the ledger or itself is reported and left. Rows are
only added, so that it may be killed at any point and repeated.

Without keys, anybody who can write to the store could invent a consistent history, just as he could move a production
pointer. With trusted keys (PTP_TRUSTED_KEYS) only what one of them signed is taken: names, promotions, dossiers,
releases, snapshots and prompts. What needs the signature of one of the task's promoters is taken with that alone.
"""

import logging
from collections.abc import Iterator, Mapping

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.records.base import now
from ptpipeline.records.data import Snapshot
from ptpipeline.records.reports import Report
from ptpipeline.records.versions import PromptVersion
from ptpipeline.storage.addresses import SnapshotObject, StoredRelease, parse
from ptpipeline.storage.keys import RELEASES, SNAPSHOTS, pointer_key, release_key, version_key
from registry.failpoints import reached
from registry.ledger.holdings import Holdings, holdings
from registry.ledger.ledger import Intent, Release
from registry.ledger.recovery import (
    RecoveredPrompt,
    Recovery,
    StoredSnapshot,
    recover_releases,
    recover_snapshots,
    recover_task,
)
from registry.listing import TaskListing, ask_all, list_tasks, read_accepted
from registry.registry import Registry
from registry.repair.contents import Contents, Refused, read_contents
from registry.repair.losses import Losses, find_losses, find_unpromoted, find_unsound
from registry.versions.dossier import Dossier
from registry.versions.mlflow_alias import Action

log = logging.getLogger(__name__)


def rebuild(registry: Registry) -> list[Action]:
    """Add to the ledger all that the store proves and it does not know; an Action not done says what cannot be taken.

    Afterwards `reconcile` brings pointers and MLflow up to date. Raises ServiceUnavailable if the store or the ledger
    does not answer.
    """
    actions = _take_snapshots(registry)
    for listing in list_tasks(registry.store):
        actions += _take_task(registry, listing)
        reached("rebuild task taken")
    return actions + _take_releases(registry)


def _take_task(registry: Registry, listing: TaskListing) -> list[Action]:
    contents, held = read_contents(registry.store, listing), holdings(registry.ledger, listing.task)
    unsound = find_unsound(registry.store, listing.task, contents, held)
    sound = {
        key: dossier for key, dossier in contents.dossiers.items() if dossier.publication.tuned.digest not in unsound
    }
    believed = contents._replace(dossiers=sound)
    losses = find_losses(listing.task, believed, held, unsound, find_unpromoted(registry, listing.task, believed, held))
    recover_task(
        registry.ledger,
        Recovery(
            task=listing.task,
            prompts=[
                _prompt(registry, dossier, listing.at(key), contents.times[key]) for key, dossier in sound.items()
            ],
            versions=_versions(listing, losses),
            promotions=losses.promotions,
            intents=_intents(listing, sound, held, losses),
        ),
    )
    refused = [*contents.refused, *losses.refused, *_pointers(listing.task, contents, held, losses)]
    return [*_describe(listing, losses, held, believed), *(_report(listing.task, refusal) for refusal in refused)]


def _intents(listing: TaskListing, dossiers: Mapping[str, Dossier], held: Holdings, losses: Losses) -> list[Intent]:
    """The publishes that did not end: prompts that are stored with a dossier and are no version. They began when the
    dossier was written.
    """
    known = {*held.versions.values(), *losses.versions.values(), *held.tombstones}
    began = {dossier.publication.tuned.digest: listing.at(key) for key, dossier in dossiers.items()}
    unknown = listing.complete() - known
    return [Intent(task=listing.task, digest=digest, at=at) for digest, at in began.items() if digest in unknown]


# ---------------------------------------------------------------- what one task lost


def _versions(listing: TaskListing, losses: Losses) -> list[PromptVersion]:
    collected = _find_collected(listing, losses)
    versions = []
    for number, digest in losses.versions.items():
        key = version_key(listing.task, number)
        versions.append(
            PromptVersion(
                task=listing.task,
                number=number,
                digest=digest,
                verdict=None,
                passed=None,
                registered_at=listing.at(key) if key in listing.objects else now(),
                collected=digest in collected,
            )
        )
    return versions


def _find_collected(listing: TaskListing, losses: Losses) -> set[str]:
    """Versions of which the garbage collection left nothing but the number, and that no alias ever named."""
    return {*losses.versions.values()} - listing.digests() - {row.digest for row in losses.promotions}


def _prompt(registry: Registry, dossier: Dossier, at: str, judged_at: str) -> RecoveredPrompt:
    verdict = dossier.verdict
    rows = _read_rows(registry, dossier) if verdict and (verdict.look or verdict.reveal) else []
    return RecoveredPrompt(dossier.publication, dossier.report, verdict, rows, at, judged_at)


def _read_rows(registry: Registry, dossier: Dossier) -> list[str]:
    """The ids of the test rows behind a verdict: of its results, else of the snapshot that they were measured on.

    None, with a warning, if neither is there as it was.
    """
    if dossier.report is not None:
        for read in (_read_measured, _read_split):
            try:
                return read(registry, dossier.report)
            except (NotFound, ArtifactError) as error:
                log.info("%s", error)
    log.warning(
        "%s: the look at test rows for prompt %s is counted without its rows, because neither their results nor their "
        "snapshot are there",
        dossier.publication.tuned.task,
        dossier.publication.tuned.digest[:12],
    )
    return []


def _read_measured(registry: Registry, report: Report) -> list[str]:
    from ptpipeline.evaluation.results import Results

    return Results.of(registry.store, report).ids


def _read_split(registry: Registry, report: Report) -> list[str]:
    from ptpipeline.data.snapshot import load_split, read_snapshot

    snapshot = read_snapshot(registry.store, report.task, report.snapshot)
    if snapshot.split(report.split).digest != report.test_digest:
        raise ArtifactError(f"{report.task}: snapshot {report.snapshot[:12]} does not hold the rows of its report")
    return [row.id for row in load_split(registry.store, snapshot, report.split)]


# ---------------------------------------------------------------- snapshots and releases


def _take_snapshots(registry: Registry) -> list[Action]:
    """Take every complete snapshot under its source key, so that an unchanged source is not read again."""
    from ptpipeline.data.snapshot import read_snapshot

    written = {
        address: item.modified
        for item in registry.store.list_objects(SNAPSHOTS)
        if isinstance(address := parse(item.key), SnapshotObject) and address.is_manifest
    }

    def read(address: SnapshotObject) -> Snapshot | str:
        try:
            return read_snapshot(registry.store, address.task, address.digest)
        except (ArtifactError, NotFound) as error:
            return str(error)

    answers = ask_all(read, written)
    sound = [StoredSnapshot(answer, written[at]) for at, answer in answers.items() if isinstance(answer, Snapshot)]
    recover_snapshots(registry.ledger, sound)
    return [
        Action(task=address.task, what=f"not taken: {why}", done=False)
        for address, why in answers.items()
        if isinstance(why, str)
    ]


def _take_releases(registry: Registry) -> list[Action]:
    """Take every release whose versions are registered."""
    known = {release.name: release for release in registry.ledger.releases()}
    keys = {key: isinstance(parse(key), StoredRelease) for key in registry.store.keys(RELEASES)}
    refused = [Refused(key, "has no key of the expected form") for key, is_release in keys.items() if not is_release]
    lost = []
    for key, answer in read_accepted(registry.store, [key for key, is_release in keys.items() if is_release]).items():
        if isinstance(answer, str):
            refused.append(Refused(key, f"is refused: {answer}"))
            continue
        try:
            release = parse_record(Release, answer, "is no release")
        except ArtifactError as error:
            refused.append(Refused(key, str(error)))
            continue
        why = _why_not(registry, release, key, known)
        if why:
            refused.append(Refused(key, why))
        elif release.name not in known:
            lost.append(release)
    recover_releases(registry.ledger, lost)
    taken = [Action(task="releases", what=f"release {release.name} taken") for release in lost]
    return [*(_report("releases", refusal) for refusal in refused), *taken]


def _why_not(registry: Registry, release: Release, key: str, known: Mapping[str, Release]) -> str:
    """Why the release cannot be taken; empty if it can."""
    if key != release_key(release.name):
        return f"belongs to {release_key(release.name)}: it was altered or copied"
    if known.get(release.name, release) != release:
        return "is another release of that name than the ledger's"
    try:
        for task, number in release.versions.items():
            registry.ledger.version(task, number)
    except NotFound as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- the report


def _pointers(task: str, contents: Contents, held: Holdings, losses: Losses) -> Iterator[Refused]:
    """Pointers to a promotion that the history, as it is now, does not hold."""
    rows = {(row.alias, row.seq): row for history in held.history.values() for row in history} | {
        (row.alias, row.seq): row for row in losses.promotions
    }
    for alias, pointer in contents.pointers.items():
        if pointer is None or rows.get((alias, pointer.seq)) != pointer:
            yield Refused(pointer_key(task, alias), "is the pointer to a promotion that the history does not hold")


def _describe(listing: TaskListing, losses: Losses, held: Holdings, contents: Contents) -> list[Action]:
    """What was taken."""
    made = contents.described_digests() - held.published
    gone = _find_collected(listing, losses)
    sentences = [
        f"version {number} is prompt {digest[:12]}{', whose bytes were deleted' if digest in gone else ''}"
        for number, digest in losses.versions.items()
    ]
    sentences += [f"{row.alias} promotion {row.seq}: version {row.version} by {row.actor}" for row in losses.promotions]
    sentences += [f"how {len(made)} prompts were made, measured and judged"] if made else []
    return [Action(task=listing.task, what=f"taken: {what}") for what in sentences]


def _report(task: str, refused: Refused) -> Action:
    """What was not taken, and why."""
    log.warning("%s %s; not taken into the ledger", refused.key, refused.why)
    return Action(task=task, what=f"not taken: {refused.key} {refused.why}", done=False)
