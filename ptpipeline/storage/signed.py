"""The store that returns only what a trusted key signed, and signs what it writes, so that no caller can forget it.

A signature is an object of its own, one per key, so that a key can be replaced while what the old one signed is in
use. It is written before its object. Of a prompt's manifest it lies beside it (`keys.signature_key`), of any other
object below `signatures/`, by the object's key and hash. What has no signature is bound otherwise: a prompt's tensors
and a snapshot's splits by their manifests, signatures by themselves; checkpoints and results are sealed. What a server
reports of itself is believed by nobody but the garbage collection, which then keeps more.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.settings import Settings
from ptpipeline.signing import (
    MAX_SIGNATURE_BYTES,
    SigningKey,
    Statement,
    compute_key_id,
    find_flaw,
    read_signing_key,
    read_trusted_keys,
    state_object,
    state_prompt,
)
from ptpipeline.storage import Listed, ObjectStore, Stored, open_store
from ptpipeline.storage.addresses import claimed_prompt, is_believed, parse_task, signer_id
from ptpipeline.storage.keys import (
    object_signature_key,
    object_signatures_prefix,
    prompt_prefix,
    signature_key,
)


class Signable(NamedTuple):
    """An object that is believed if a trusted key signed it: what the key states, and where its signatures lie.

    `named` is the object as messages name it, `fix` the command that signs it.
    """

    statement: Statement
    key: str
    named: str
    fix: str

    @property
    def folder(self) -> str:
        """The folder of its signatures."""
        prompt = claimed_prompt(self.key)
        return prompt_prefix(*prompt) if prompt else object_signatures_prefix(self.key, self.statement.digest)

    def signature_key(self, key_id: str) -> str:
        """Return the key of the signature that the signing key of that id makes."""
        prompt = claimed_prompt(self.key)
        return (
            signature_key(*prompt, key_id) if prompt else object_signature_key(self.key, self.statement.digest, key_id)
        )


def find_signable(key: str, body: bytes) -> Signable | None:
    """Return the object with those bytes as it is signed; None if nobody believes it for its signature."""
    prompt = claimed_prompt(key)
    if prompt:
        return Signable(state_prompt(*prompt), key, prompt_prefix(*prompt), f"`ptp sign {prompt.task}@N`")
    if not is_believed(key):
        return None
    task = parse_task(key)
    return Signable(state_object(key, body), key, key, f"`ptp sign {task or 'TASK'}`")


@dataclass(frozen=True)
class Trust:
    """The public keys, by id, and the file that they come from; one of them must have signed each object."""

    keys: Mapping[str, Ed25519PublicKey]
    source: Path

    def verify(self, store: ObjectStore, signable: Signable) -> None:
        """Raise ArtifactError unless a trusted key signed the object; the error tells what is there instead."""
        flaws = []
        for name, key in self.keys.items():
            flaw = _check_signature(store, signable, name, key)
            if flaw is None:
                return
            if flaw:
                flaws.append(flaw)
        what = "; ".join(flaws) or self._explain_absence(store, signable)
        raise ArtifactError(
            f"{store.url}/{signable.named}: PTP_TRUSTED_KEYS asks for a signature: {what}: {signable.fix}"
        )

    def _explain_absence(self, store: ObjectStore, signable: Signable) -> str:
        others = [signer for key in store.keys(signable.folder) if (signer := signer_id(key)) is not None]
        if others:
            return (
                f"key {' and '.join(others)} signed it, which {self.source} does not hold; add that public key if "
                "you trust it, or sign with one that is there"
            )
        return "nobody signed it; sign it if you know where it comes from"


class SignedStore:
    """An object store that verifies what is believed for its signature when it is read, and signs it when it is
    written.

    Without `trust` nothing is verified, without `key` nothing is signed; with `trust` alone nothing is written that
    readers would refuse. `unverified` is the plain store.
    """

    def __init__(self, unverified: ObjectStore, trust: Trust | None = None, key: SigningKey | None = None) -> None:
        self.unverified = unverified
        self.trust = trust
        self.key = key
        self.url = unverified.url
        self.where = unverified.where

    def read(self, key: str) -> Stored:
        """Return the object; raise ArtifactError if it has to be signed and no trusted key signed these bytes."""
        stored = self.unverified.read(key)
        self.verify(key, stored.body)
        return stored

    def read_changed(self, key: str, etag: str) -> Stored | None:
        """Return the object as `read` does, or None if it still has that tag: whoever has the tag has verified it."""
        stored = self.unverified.read_changed(key, etag)
        if stored is not None:
            self.verify(key, stored.body)
        return stored

    def verify(self, key: str, body: bytes) -> None:
        """Raise ArtifactError if the object with those bytes has to be signed, and no trusted key signed it."""
        if self.trust is not None and (signable := find_signable(key, body)):
            self.trust.verify(self.unverified, signable)

    def exists(self, key: str) -> bool:
        return self.unverified.exists(key)

    def create(self, key: str, body: bytes) -> None:
        """Store the object after its signature: whoever finds it finds that too."""
        self.sign(key, body)
        self.unverified.create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        """Overwrite the object after signing its new bytes."""
        self.sign(key, body)
        self.unverified.replace(key, body, etag)

    def sign(self, key: str, body: bytes) -> None:
        """Store the signature of an object that is about to be stored.

        Raises SettingsError if there is no key to sign with, and readers ask for a signature that is not there.
        """
        signable = find_signable(key, body)
        if signable is None:
            return
        if self.key is not None:
            put_signature(self.unverified, self.key, signable)
        elif self.trust is not None:
            try:
                self.trust.verify(self.unverified, signable)
            except ArtifactError:
                raise SettingsError(
                    f"{self.url}/{key}: PTP_TRUSTED_KEYS is set and PTP_SIGNING_KEY is not, so no reader would accept "
                    "what is written here: set PTP_SIGNING_KEY, or run this where it is set"
                ) from None

    def withdraw(self, key: str, body: bytes) -> None:
        """Remove our signature of an object that is not to be stored after all."""
        signable = find_signable(key, body)
        if signable and self.key is not None:
            self.unverified.delete(signable.signature_key(self.key.id))

    def delete(self, key: str) -> None:
        self.unverified.delete(key)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        return self.unverified.list_objects(prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.unverified.keys(prefix)

    def folders(self, prefix: str) -> Iterator[str]:
        return self.unverified.folders(prefix)


def open_signed_store(settings: Settings) -> ObjectStore:
    """Return the object store of the settings with their keys; whoever believes what a store holds opens it so.

    Raises SettingsError for a store or a key file that cannot be used, or a signing key that readers would refuse.
    """
    store = open_store(settings.store, settings.s3_endpoint)
    trust = read_trust(settings.trusted_keys) if settings.trusted_keys else None
    key = read_signing_key(settings.signing_key) if settings.signing_key else None
    if trust and key and key.id not in trust.keys:
        raise SettingsError(
            f"PTP_SIGNING_KEY: {settings.signing_key} is key {key.id}, which {trust.source} (PTP_TRUSTED_KEYS) "
            "does not hold; add its public key there first"
        )
    return SignedStore(store, trust, key) if trust or key else store


def read_trust(path: Path) -> Trust:
    """Return the public keys of a PEM file; raises SettingsError if one cannot be used."""
    return Trust(read_trusted_keys(path), path)


def without_checks(store: ObjectStore) -> ObjectStore:
    """Return the store as it is, whoever signed what it holds: to replace, move or delete bytes, never to believe."""
    return store.unverified if isinstance(store, SignedStore) else store


def is_accepted(store: ObjectStore, key: str, body: bytes) -> bool:
    """Return whether readers of the store accept those bytes at that key."""
    try:
        if isinstance(store, SignedStore):
            store.verify(key, body)
    except ArtifactError:
        return False
    return True


def holds(store: ObjectStore, key: str) -> bool:
    """Return whether an object lies at the key that readers of the store accept."""
    try:
        store.read(key)
    except (ArtifactError, NotFound):
        return False
    return True


def find_signer(store: ObjectStore, key: str, body: bytes, candidates: Collection[Ed25519PublicKey]) -> str | None:
    """Return the id of a candidate that signed the object with those bytes, trusted or not; None if none did."""
    signable = find_signable(key, body)
    for candidate in candidates if signable else ():
        name = compute_key_id(candidate)
        if signable and _check_signature(without_checks(store), signable, name, candidate) is None:
            return name
    return None


def put_signature(store: ObjectStore, key: SigningKey, signable: Signable) -> None:
    """Store the key's signature of the object; ArtifactError if something else lies at its place."""
    where = signable.signature_key(key.id)
    try:
        store.create(where, key.sign(signable.statement).to_bytes())
    except PreconditionFailed:
        raise ArtifactError(
            f"{store.url}/{where} holds other bytes than key {key.id} signs; find out who wrote them, remove the "
            "object, and sign again"
        ) from None


def _check_signature(store: ObjectStore, signable: Signable, name: str, key: Ed25519PublicKey) -> str | None:
    """Return None if the key of that id signed the object, else what is wrong with its signature; empty if it made
    none.
    """
    where = signable.signature_key(name)
    try:
        body = store.read(where).body
    except NotFound:
        return ""
    except ArtifactError:  # too large to be read at all
        flaw: str | None = f"has more than {MAX_SIGNATURE_BYTES} bytes"
    else:
        flaw = find_flaw(body, key, signable.statement)
    return None if flaw is None else f"{where.rpartition('/')[2]} {flaw}; remove that object and sign again"
