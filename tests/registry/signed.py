"""What tests of signed registries share: keys, and a registry whose store signs and asks for signatures."""

import base64
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.fixtures.prompts import a_task, published
from ptpipeline.signing import SigningKey
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.keys import PROMPTS, RELEASES, SNAPSHOTS
from ptpipeline.storage.signed import SignedStore, Trust, without_checks
from registry.ledger.ledger import Release
from registry.registry import Registry
from registry.versions.commit import Cause
from registry.versions.promotion import promote, promote_release

WORKER, ADA, EVE = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2, 3))
ME = Cause("me", "because")
TASK = a_task()


def fill(registry: Registry) -> None:
    """Promote three versions one after the other, the last one in a release."""
    first = promote(registry, TASK, published(registry, TASK, 1), ME)
    second = promote(registry, TASK, published(registry, TASK, 2, first.digest), ME)
    published(registry, TASK, 3, second.digest)
    release = Release(name="spring", actor="me", reason="why", versions={TASK.name: 3}, at="2026-01-01T00:00:00+00:00")
    promote_release(registry, {TASK.name: TASK}, release, ME)


def objects(registry: Registry) -> list[str]:
    """The keys of all objects but signatures."""
    return [key for folder in (PROMPTS, SNAPSHOTS, RELEASES) for key in registry.store.keys(folder)]


def trust(*keys: SigningKey) -> Trust:
    return Trust({key.id: key.public for key in keys}, Path("trusted.pem"))


def signed(registry: Registry, key: SigningKey | None, *trusted: SigningKey, tasks: Path | None = None) -> Registry:
    """The registry as a process with that key opens it, which trusts those keys."""
    store = SignedStore(without_checks(registry.store), trust(*trusted) if trusted else None, key)
    return Registry(registry.ledger, store, registry.mlflow, tasks)


def public_line(key: SigningKey) -> str:
    """The key as a task file names it."""
    return base64.b64encode(key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def overwrite(store: ObjectStore, key: str, body: bytes) -> None:
    """Write as somebody who may write to the bucket, and has no key."""
    bare = without_checks(store)
    bare.replace(key, body, bare.read(key).etag)


def folder_of(registry: Registry) -> Path:
    """The folder of the registry's store."""
    return Path(registry.store.url.removeprefix("file://"))
