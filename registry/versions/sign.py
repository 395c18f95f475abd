"""Signs what was stored before there was a key, or under an older one: by what the ledger says, never the store.

What the ledger can tell is written again, which signs it. Prompts, plots and what else lies beside them are held
against the digests that the ledger knows.
"""

from functools import partial

from ptpipeline.data.snapshot import encode_manifest
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records.versions import Pointer, Promotion, PromptVersion
from ptpipeline.storage.addresses import SnapshotObject, is_content_of, is_dossier, parse
from ptpipeline.storage.keys import (
    dossiers_prefix,
    manifest_key,
    pointer_key,
    snapshots_prefix,
    version_key,
)
from ptpipeline.storage.signed import SignedStore, without_checks
from registry.ledger.results import Publication
from registry.registry import Registry
from registry.versions.commit import write_release
from registry.versions.dossier import Dossier, check_dossier, lost_dossiers, write_dossier
from registry.versions.mlflow_alias import Action
from registry.versions.naming import encode_name, name_version
from registry.versions.projection import LEASE_SECONDS, attempt, pointer_in, settle, write_history
from registry.versions.publish import load_card, write_page


def sign_task(registry: Registry, store: SignedStore, task: str) -> list[Action]:
    """Sign all that the ledger knows of a task: history, versions, pointers, snapshots, and the releases that hold it.

    store: the registry's, with the key. What cannot be signed is an Action not done that says why.
    """
    actions = attempt(task, partial(_sign_history, registry, task))
    actions += attempt(task, partial(_sign_snapshots, registry, store, task))
    for version in reversed(registry.ledger.versions(task, limit=None)):
        if not version.collected:
            actions += attempt(task, partial(sign_version, registry, store, version))
    for head in registry.ledger.heads(task):
        actions += attempt(task, partial(_sign_pointer, registry, store, head))
    return actions + attempt(task, partial(_sign_releases, registry, task))


def sign_version(registry: Registry, store: SignedStore, version: PromptVersion) -> list[Action]:
    """Sign a version: its prompt and an ensemble's members, its number, what lies beside the prompt, its page.

    All bytes are verified first. Idempotent. Raises NotFound, or ArtifactError if bytes are altered or an invalid
    signature is there.
    """
    task, bare = version.task, without_checks(store)
    artifact = read_artifact(bare, task, version.digest)
    digests = [*(member.digest for member in read_ensemble(bare, artifact)), version.digest]
    for digest in digests:
        store.sign(manifest_key(task, digest), b"")  # the digest says it all
    name_version(store, version)
    store.sign(version_key(task, version.number), encode_name(version))
    publication = registry.ledger.publication(task, version.digest)
    count = _sign_beside(registry, store, publication) if publication else 0
    if publication:
        write_page(registry, load_card(registry, task, version.digest), version)
    what = f"version {version.number} signed: prompt {', '.join(digest[:12] for digest in digests)}"
    return [Action(task=task, what=f"{what}, and {count} objects beside it")]


def _sign_beside(registry: Registry, store: SignedStore, publication: Publication) -> int:
    """Sign plots, companions and dossiers that are what the ledger says, and write the dossiers that are missing."""
    bare, signed = without_checks(store), 0
    companions = (publication.neighbours, publication.mistakes, *publication.wayward)
    for key in [*publication.plots.values(), *(key for key in companions if key)]:
        try:
            body = bare.read(key).body
        except NotFound:  # texts of rows may be deleted
            continue
        if not is_content_of(key, body):
            raise ArtifactError(f"{store.url}/{key}: it is not the content that its key names; `ptp doctor` shows more")
        store.sign(key, body)
        signed += 1
    return signed + _sign_dossiers(registry, store, publication)


def _sign_dossiers(registry: Registry, store: SignedStore, publication: Publication) -> int:
    ledger, bare, tuned = registry.ledger, without_checks(store), publication.tuned
    verdicts = ledger.verdict_times(tuned.task, tuned.digest)
    signed: set[str] = set()
    for key in filter(is_dossier, bare.keys(dossiers_prefix(tuned.task, tuned.digest))):
        body = bare.read(key).body
        try:
            dossier = check_dossier(key, body)
        except ArtifactError:  # `ptp doctor --fix` sets it aside
            continue
        judged = dossier.verdict.verdict_digest() if dossier.verdict else None
        expected = ledger.report(dossier.verdict.evaluation_key) if dossier.verdict else dossier.report
        if judged in verdicts and (dossier.report, dossier.publication.tuned) == (expected, tuned):
            store.sign(key, body)
            signed.add(str(judged))
    for dossier in lost_dossiers(ledger, publication, signed):
        write_dossier(store, dossier)
    if not verdicts:
        report = ledger.report_of(tuned.task, tuned.digest)
        write_dossier(store, Dossier(publication=publication, report=report, verdict=None))
    return max(len(verdicts), 1)


def _sign_history(registry: Registry, task: str) -> list[Action]:
    rows = registry.ledger.history(task)
    write_history(registry, rows)
    return [Action(task=task, what=f"{len(rows)} promotions signed")]


def _sign_pointer(registry: Registry, store: SignedStore, head: Promotion) -> list[Action]:
    """Sign the pointer if it shows the head as we write it; one that does not is replaced first."""
    key = pointer_key(head.task, head.alias)
    settle(registry, head, LEASE_SECONDS)
    body = without_checks(store).read(key).body
    if pointer_in(body) != head or body != _as_written(body):
        raise ArtifactError(
            f"{store.url}/{key}: not written by `ptp`; remove it, run `ptp reconcile {head.task}` and sign again"
        )
    store.sign(key, body)
    return [Action(task=head.task, what=f"pointer {head.alias} signed: version {head.version} (seq {head.seq})")]


def _as_written(body: bytes) -> bytes:
    """Return the pointer in those bytes as this program writes it, so that nothing else is signed with it."""
    return parse_record(Pointer, body, "pointer").model_dump_json(indent=1).encode()


def _sign_releases(registry: Registry, task: str) -> list[Action]:
    releases = [release for release in registry.ledger.releases() if task in release.versions]
    for release in releases:
        write_release(registry.store, release)
    return [Action(task=task, what=f"release {release.name} signed") for release in releases]


def _sign_snapshots(registry: Registry, store: SignedStore, task: str) -> list[Action]:
    """Sign the manifests of snapshots that the ledger knows; one that says something else is replaced."""
    signed = []
    for key in without_checks(store).keys(snapshots_prefix(task)):
        address = parse(key)
        if not (isinstance(address, SnapshotObject) and address.is_manifest):
            continue
        known = registry.ledger.snapshot(task, address.digest)
        if known:
            stored, body = without_checks(store).read(key), encode_manifest(known)
            if stored.body != body:
                store.replace(key, body, stored.etag)
            store.sign(key, body)
            signed.append(address.digest[:12])
    return [Action(task=task, what=f"snapshot {digest} signed") for digest in signed]
