"""Compares what belongs to no version with the ledger: snapshots, releases, checkpoints, reports of servers."""

from collections.abc import Iterator
from typing import NamedTuple

from ptpipeline.data.snapshot import load_split, read_snapshot
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.records.data import Snapshot
from ptpipeline.serving.servers import parse_server_report
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import SnapshotObject, parse
from ptpipeline.storage.keys import (
    CHECKPOINTS,
    RELEASES,
    SERVERS,
    SNAPSHOTS,
    release_key,
    snapshot_manifest_key,
    snapshots_prefix,
    split_key,
)
from ptpipeline.tuning.seal import unseal
from registry.ledger.ledger import Release
from registry.ledger.secret import CHECKPOINTS as SEALING
from registry.ledger.secret import find_secret
from registry.ledger.usage import Name, snapshots
from registry.listing import ask_all, read_all
from registry.registry import Registry
from registry.repair.difference import FIX, REBUILD, Difference, describe_object

# ---------------------------------------------------------------- snapshots


class Flaw(NamedTuple):
    """An object that is not what its snapshot's digest says; `record` is the ledger's, if that can restore it."""

    name: Name
    key: str
    why: str
    record: Snapshot | None = None


def compare_snapshots(registry: Registry, task: str | None) -> Iterator[Difference]:
    """Yield manifests and splits of stored snapshots that are not what their digests say."""
    for flaw in find_snapshot_flaws(registry, task):
        how = f"restore it from a backup; or delete it and manifest.json beside it, then `ptp ingest {flaw.name.task}`"
        expected, mend = f"snapshot {flaw.name.digest[:12]}", FIX if flaw.record else how
        yield describe_object(flaw.name.task, "snapshot", flaw.key, expected, flaw.why, mend)


def find_snapshot_flaws(registry: Registry, task: str | None) -> list[Flaw]:
    """Return the altered objects of the complete snapshots, of one task or all."""
    prefix = snapshots_prefix(task) if task else SNAPSHOTS
    names = [
        Name(address.task, address.digest)
        for key in registry.store.keys(prefix)
        if isinstance(address := parse(key), SnapshotObject) and address.is_manifest
    ]
    found = ask_all(lambda name: _check_snapshot(registry, name), names)
    return [flaw for flaws in found.values() for flaw in flaws]


def _check_snapshot(registry: Registry, name: Name) -> list[Flaw]:
    store, key, flaws = registry.store, snapshot_manifest_key(*name), list[Flaw]()
    records = snapshots(registry.ledger, name)
    known: Snapshot | None = records[0] if records else None
    try:
        stored = read_snapshot(store, *name)
    except NotFound:  # collected since it was listed
        return []
    except ArtifactError as error:
        flaws.append(Flaw(name, key, str(error), known))
    else:
        if records and stored not in records:  # source and checks are not part of the digest
            flaws.append(Flaw(name, key, "states another source or other checks than the ledger", known))
        known = known or stored
    if known is None:
        return flaws
    for split in known.splits():
        try:
            load_split(store, known, split)
        except ArtifactError as error:
            flaws.append(Flaw(name, split_key(*name, split), str(error)))
    return flaws


# ---------------------------------------------------------------- releases


def compare_releases(registry: Registry) -> Iterator[Difference]:
    """Yield releases that the store does not hold as the ledger does, then those that the ledger lost."""
    stored = {item.key for item in registry.store.list_objects(RELEASES)}
    known = {release_key(release.name): release for release in registry.ledger.releases()}
    bodies = read_all(registry.store, sorted(stored & known.keys()))
    for key, release in sorted(known.items()):
        if key not in bodies:
            yield Difference(
                task="releases",
                kind="release",
                what=f"release {release.name}",
                expected="an object in the store",
                found="none",
                mend=FIX,
                safe=True,
            )
        elif not is_release(bodies[key], release):
            other = "another, or none that can be read"
            yield describe_object("releases", "release", key, "the ledger's release", other, FIX)
    for key in sorted(stored - known.keys()):
        yield describe_object("releases", "ledger", key, "a release of the ledger", "no such release", REBUILD)


def is_release(body: bytes, release: Release) -> bool:
    """Return whether the bytes state exactly that release."""
    try:
        return parse_record(Release, body, "release") == release
    except ArtifactError:
        return False


# ---------------------------------------------------------------- checkpoints and servers


def compare_checkpoints(registry: Registry) -> Iterator[Difference]:
    """Yield checkpoints that the ledger's secret did not seal: no training resumes from them."""
    secret = find_secret(registry.ledger.database, SEALING)
    for key, body in _read_each(registry.store, CHECKPOINTS):
        why = "the ledger has no secret that could have sealed it"
        try:
            if isinstance(body, ArtifactError):
                raise body
            if secret is not None:
                unseal(secret, key, body)
                continue
        except ArtifactError as error:
            why = str(error)
        mend = f"its training starts from the beginning; delete the object {key}"
        yield describe_object(
            "checkpoints", "checkpoint", key, "a checkpoint sealed by this ledger's trainer", why, mend
        )


def compare_servers(registry: Registry) -> Iterator[Difference]:
    """Yield servers' reports that cannot be read: while there is one, nothing is collected."""
    for key, body in _read_each(registry.store, SERVERS):
        try:
            if isinstance(body, ArtifactError):
                raise body
            parse_server_report(registry.store, key, body)
        except ArtifactError as error:
            mend = f"let the server report again; if it is gone for good, delete the object {key}"
            yield describe_object("servers", "server", key, "a server's report", str(error), mend)


def _read_each(store: ObjectStore, prefix: str) -> Iterator[tuple[str, bytes | ArtifactError]]:
    """The objects below a folder one by one, or why one cannot be read; one that is gone by now is left out."""
    for key in store.keys(prefix):
        try:
            yield key, store.read(key).body
        except ArtifactError as error:
            yield key, error
        except NotFound:
            continue
