"""Makes a lost ledger anew, or brings an older copy of it up to date, from the object store alone.

Taken is what the store proves: versions by their names, the history of every alias row by row, how each prompt was
made, measured and judged, releases, snapshots. What contradicts the ledger or itself is reported and left. Rows are
only added, so that it may be killed at any point and repeated.

Who can write to the store could also invent a consistent history, as he could move a production pointer: signed prompts
(PTP_TRUSTED_KEYS) keep bytes of his out, because a version whose manifest no trusted key signed is not taken.
"""

import logging
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from ptpipeline.data.parquet import table_in
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.records import PromptVersion, Snapshot, now
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
from registry.listing import TaskListing, ask_all, list_tasks, read_all
from registry.registry import Registry
from registry.repair.inventory import Missing, Refused, Survey, missing, survey, unsound
from registry.versions.mlflow_alias import Action
from registry.versions.provenance import Dossier

log = logging.getLogger(__name__)


def rebuild(registry: Registry) -> list[Action]:
    """Add to the ledger all that the store proves and it does not know; an Action not done says what cannot be taken.

    Afterwards `reconcile` brings pointers and MLflow up. Raises ServiceUnavailable where the store or the ledger does
    not answer.
    """
    actions = _snapshots(registry)
    for shelf in list_tasks(registry.store):
        actions += _task(registry, shelf)
        reached("rebuild task taken")
    return actions + _releases(registry)


def _task(registry: Registry, shelf: TaskListing) -> list[Action]:
    found, books = survey(registry.store, shelf), holdings(registry.ledger, shelf.task)
    bad = unsound(registry.store, shelf.task, found, books)
    sound = found._replace(
        dossiers={
            key: dossier for key, dossier in found.dossiers.items() if dossier.publication.tuned.digest not in bad
        }
    )
    lacking = missing(shelf.task, sound, books, bad)
    recover_task(
        registry.ledger,
        Recovery(
            task=shelf.task,
            prompts=[_prompt(registry, dossier, shelf.at(key)) for key, dossier in sound.dossiers.items()],
            versions=_versions(shelf, lacking),
            promotions=lacking.promotions,
            intents=[
                Intent(task=shelf.task, digest=digest, at=at)
                for digest, at in _begun(shelf, sound, books, lacking).items()
            ],
        ),
    )
    refused = [*found.refused, *lacking.refused, *_pointers(shelf.task, found, books, lacking)]
    return [*_taken(shelf, lacking, books, sound), *(_left(shelf.task, refusal) for refusal in refused)]


def _begun(shelf: TaskListing, found: Survey, books: Holdings, lacking: Missing) -> dict[str, str]:
    """Prompts that were being published: stored with a dossier, and no version; with the time of the dossier."""
    known = {*books.versions.values(), *lacking.versions.values(), *books.tombstones}
    begun = {dossier.publication.tuned.digest: shelf.at(key) for key, dossier in found.dossiers.items()}
    return {digest: at for digest, at in begun.items() if digest in shelf.complete() - known}


# ---------------------------------------------------------------- rows


def _versions(shelf: TaskListing, lacking: Missing) -> list[PromptVersion]:
    collected = _collected(shelf, lacking)
    versions = []
    for number, digest in lacking.versions.items():
        key = version_key(shelf.task, number)
        versions.append(
            PromptVersion(
                task=shelf.task,
                number=number,
                digest=digest,
                verdict=None,
                passed=None,
                registered_at=shelf.at(key) if key in shelf.objects else now(),
                collected=digest in collected,
            )
        )
    return versions


def _collected(shelf: TaskListing, lacking: Missing) -> set[str]:
    """Versions of which a garbage collection left the number alone: nothing else of them is there, and no alias ever
    named them.
    """
    return {*lacking.versions.values()} - shelf.digests() - {row.digest for row in lacking.promotions}


def _prompt(registry: Registry, dossier: Dossier, at: str) -> RecoveredPrompt:
    look = dossier.verdict.look if dossier.verdict else None
    rows = _looked_at(registry, dossier) if look else []
    return RecoveredPrompt(dossier.publication, dossier.report, dossier.verdict, rows, at)


def _looked_at(registry: Registry, dossier: Dossier) -> list[str]:
    """The ids of the test rows behind a verdict; none, with a warning, where the results of its rows are gone."""
    report = dossier.report
    try:
        body = registry.store.read(report.rows_key).body if report else b""
        return [str(row) for row in table_in(body, ["id"])["id"].to_pylist()]
    except (KeyError, NotFound, OSError, ValueError):  # pyarrow's own errors are the last two
        log.warning(
            "%s: a look at test rows of prompt %s is counted without its rows, whose results are gone",
            dossier.publication.tuned.task,
            dossier.publication.tuned.digest[:12],
        )
        return []


def _snapshots(registry: Registry) -> list[Action]:
    """Every complete snapshot under its source key, so that an unchanged source is not read again."""
    from ptpipeline.data.snapshot import read_snapshot

    written = {
        address: item.modified
        for item in registry.store.listed(SNAPSHOTS)
        if isinstance(address := parse(item.key), SnapshotObject) and address.is_manifest
    }

    def read(address: SnapshotObject) -> Snapshot | str:
        try:
            return read_snapshot(registry.store, address.task, address.digest)
        except (ArtifactError, NotFound) as error:
            return str(error)

    answers = ask_all(read, written)
    sound = [
        StoredSnapshot(answer, written[place]) for place, answer in answers.items() if isinstance(answer, Snapshot)
    ]
    recover_snapshots(registry.ledger, sound)
    return [
        Action(task=address.task, what=f"not taken: {why}", done=False)
        for address, why in answers.items()
        if isinstance(why, str)
    ]


def _releases(registry: Registry) -> list[Action]:
    """Every release whose versions are registered."""
    known = {release.name: release for release in registry.ledger.releases()}
    keys = list(registry.store.keys(RELEASES))
    bodies = read_all(registry.store, [key for key in keys if isinstance(parse(key), StoredRelease)])
    actions, taken = (
        [
            _left("releases", Refused(key, "no name of that form stands there"))
            for key in keys
            if not isinstance(parse(key), StoredRelease)
        ],
        [],
    )
    for key, body in bodies.items():
        try:
            release = Release.model_validate_json(body)
        except ValidationError:
            actions.append(_left("releases", Refused(key, "is no release: it was altered")))
            continue
        why = _why_no_release(registry, release, key, known)
        if why:
            actions.append(_left("releases", Refused(key, why)))
        elif release.name not in known:
            taken.append(release)
    recover_releases(registry.ledger, taken)
    return actions + [Action(task="releases", what=f"release {release.name} taken") for release in taken]


def _why_no_release(registry: Registry, release: Release, key: str, known: Mapping[str, Release]) -> str:
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


# ---------------------------------------------------------------- words


def _pointers(task: str, found: Survey, books: Holdings, lacking: Missing) -> Iterator[Refused]:
    """Pointers that no row of the history, as it is now, stands behind."""
    rows = {(row.alias, row.seq): row for history in books.history.values() for row in history} | {
        (row.alias, row.seq): row for row in lacking.promotions
    }
    for alias, pointer in found.pointers.items():
        if pointer is None or rows.get((alias, pointer.seq)) != pointer:
            yield Refused(pointer_key(task, alias), "is the pointer to a promotion that the history does not hold")


def _taken(shelf: TaskListing, lacking: Missing, books: Holdings, found: Survey) -> list[Action]:
    made = {dossier.publication.tuned.digest for dossier in found.dossiers.values()} - books.published
    gone = _collected(shelf, lacking)
    words = [
        f"version {number} is prompt {digest[:12]}{', whose bytes were deleted' if digest in gone else ''}"
        for number, digest in lacking.versions.items()
    ]
    words += [f"{row.alias} promotion {row.seq}: version {row.version} by {row.actor}" for row in lacking.promotions]
    words += [f"how {len(made)} prompts were made, measured and judged"] if made else []
    return [Action(task=shelf.task, what=f"taken: {what}") for what in words]


def _left(task: str, refused: Refused) -> Action:
    log.warning("%s %s; not taken into the ledger", refused.key, refused.why)
    return Action(task=task, what=f"not taken: {refused.key} {refused.why}", done=False)
