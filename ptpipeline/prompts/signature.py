"""Signed prompts (Ed25519): keys, signatures, and the store that returns only manifests with a trusted signature.

A signature is an object of its own, `prompts/<task>/<digest>/signature-<key id>.json`, one per key, so that a key can
be replaced while prompts that the old one signed are in use. It covers task and digest, and the digest covers all the
rest. The store signs and verifies, not its callers, so that nobody can forget it. Imports no torch.
"""

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import Field

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.foreign import parse_record
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records.base import DIGEST_PATTERN, Record
from ptpipeline.settings import Settings
from ptpipeline.storage import Listed, ObjectStore, Stored, open_store
from ptpipeline.storage.addresses import claimed_prompt, signer_id
from ptpipeline.storage.keys import prompt_prefix, signature_file, signature_key

DOMAIN = "ptpipeline prompt v1"
KEY_ID_PATTERN = r"^[0-9a-f]{16}$"
MAX_KEY_BYTES = 64 * 2**10
MAX_SIGNATURE_BYTES = 1024

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_HOW = "`openssl genpkey -algorithm ed25519` makes one (docs/signing.md)"


class Signature(Record):
    """A key's signature of a prompt: `signature` is base64 over what `encode_signed` returns, `key` the key's id."""

    schema_version: Literal[1] = 1
    digest: str = Field(pattern=DIGEST_PATTERN)
    key: str = Field(pattern=KEY_ID_PATTERN)
    signature: str

    def to_bytes(self) -> bytes:
        """Return the object as it is stored; no other spelling of it is accepted."""
        return rfc8785.dumps(self.to_json())


def encode_signed(task: str, digest: str) -> bytes:
    """Return what is signed: canonical JSON of domain, task and digest.

    A signature that was made for something else has another domain.
    """
    return rfc8785.dumps({"domain": DOMAIN, "task": task, "digest": digest})


def compute_key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hex digits of sha256 over the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


@dataclass(frozen=True, repr=False)
class SigningKey:
    """A private key; only its id is ever shown."""

    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"

    @property
    def id(self) -> str:
        """The id of its public half."""
        return compute_key_id(self.private.public_key())

    def sign(self, task: str, digest: str) -> Signature:
        """Return the signature of a prompt, the same each time: Ed25519 draws nothing at random."""
        return Signature(
            digest=digest,
            key=self.id,
            signature=base64.b64encode(self.private.sign(encode_signed(task, digest))).decode(),
        )


@dataclass(frozen=True)
class Trust:
    """The public keys, by id, and the file that they come from; one of them must have signed each prompt."""

    keys: Mapping[str, Ed25519PublicKey]
    source: Path

    def verify(self, store: ObjectStore, task: str, digest: str) -> None:
        """Raise ArtifactError unless a trusted key signed the prompt; the error tells what is there instead."""
        folder, flaws = prompt_prefix(task, digest), []
        for name, key in self.keys.items():
            try:
                body = store.read(signature_key(task, digest, name)).body
            except NotFound:
                continue
            flaw = _find_flaw(body, key, task, digest)
            if flaw is None:
                return
            flaws.append(f"{signature_file(name)} {flaw}; remove that object and sign again")
        what = "; ".join(flaws) or self._explain_absence(store, folder)
        raise ArtifactError(f"{store.url}/{folder}: PTP_TRUSTED_KEYS asks for a signature: {what}: `ptp sign {task}@N`")

    def _explain_absence(self, store: ObjectStore, folder: str) -> str:
        others = [signer for key in store.keys(folder) if (signer := signer_id(key)) is not None]
        if others:
            return (
                f"key {' and '.join(others)} signed it, which {self.source} does not hold; add that public key if "
                "you trust it, or sign with one that is there"
            )
        return "nobody signed it; sign it if you know where it comes from"


class SignedStore:
    """An object store that verifies each manifest's signature when it is read, and signs each that is written.

    Without `trust` nothing is verified, without `key` nothing is signed. `unverified` is the plain store.
    """

    def __init__(self, unverified: ObjectStore, trust: Trust | None = None, key: SigningKey | None = None) -> None:
        self.unverified = unverified
        self.trust = trust
        self.key = key
        self.url = unverified.url
        self.where = unverified.where

    def read(self, key: str) -> Stored:
        """Return the object; raise ArtifactError for a manifest that no trusted key signed."""
        stored = self.unverified.read(key)
        if self.trust is not None and (prompt := claimed_prompt(key)):
            self.trust.verify(self.unverified, *prompt)
        return stored

    def exists(self, key: str) -> bool:
        return self.unverified.exists(key)

    def create(self, key: str, body: bytes) -> None:
        """Store the object, a manifest after its signature: its presence means that all is there."""
        if self.key is not None and (prompt := claimed_prompt(key)):
            _put(self.unverified, self.key, *prompt)
        self.unverified.create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self.unverified.replace(key, body, etag)

    def delete(self, key: str) -> None:
        self.unverified.delete(key)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        return self.unverified.list_objects(prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.unverified.keys(prefix)


def open_prompts(settings: Settings) -> ObjectStore:
    """Return the object store of the settings with their keys: open it so to read or write prompts.

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


def sign(store: ObjectStore, task: str, digest: str, key: SigningKey) -> list[str]:
    """Sign a prompt that is in the store already, after an ensemble's members, and return the signed digests.

    All bytes are verified first. Take the digest from the ledger, never from the store: signatures guard against the
    store. Idempotent. Raises NotFound, or ArtifactError if bytes are altered or an invalid signature is there.
    """
    bare = store.unverified if isinstance(store, SignedStore) else store
    artifact = read_artifact(bare, task, digest)
    digests = [*(member.digest for member in read_ensemble(bare, artifact)), digest]
    for each in digests:
        _put(bare, key, task, each)
    return digests


def read_signing_key(path: Path) -> SigningKey:
    """Return the Ed25519 private key in a PEM file that its owner alone may read.

    Raises SettingsError, which never quotes the file.
    """
    key = _read_private_key(path)
    if isinstance(key, str):  # raised here: no variable of the traceback holds the file's bytes
        raise SettingsError(f"PTP_SIGNING_KEY: {key}")
    return SigningKey(key)


def read_trust(path: Path) -> Trust:
    """Return the Ed25519 public keys in a PEM file, one or several; text between them is a comment.

    Raises SettingsError if a key cannot be used.
    """
    keys = _read_public_keys(path)
    if isinstance(keys, str):
        raise SettingsError(f"PTP_TRUSTED_KEYS: {path}: {keys}")
    return Trust({compute_key_id(key): key for key in keys}, path)


def _put(store: ObjectStore, key: SigningKey, task: str, digest: str) -> None:
    where = signature_key(task, digest, key.id)
    try:
        store.create(where, key.sign(task, digest).to_bytes())
    except PreconditionFailed:
        raise ArtifactError(
            f"{store.url}/{where} holds other bytes than key {key.id} signs; find out who wrote them, remove the "
            "object, and sign again"
        ) from None


def _find_flaw(body: bytes, key: Ed25519PublicKey, task: str, digest: str) -> str | None:
    """Return what is wrong with a stored signature; None if `key` made it for this prompt."""
    if len(body) > MAX_SIGNATURE_BYTES:
        return f"has {len(body)} bytes, at most {MAX_SIGNATURE_BYTES} allowed"
    try:
        signature = parse_record(Signature, body, "signature")
        raw = base64.b64decode(signature.signature, validate=True)
    except (ArtifactError, binascii.Error):
        return "is not a signature: it was altered, or a newer ptpipeline wrote it"
    if signature.digest != digest:
        return f"was made for prompt {signature.digest[:12]} and copied here"
    if signature.key != compute_key_id(key):
        return f"states key {signature.key}"
    try:
        key.verify(raw, encode_signed(task, digest))
    except InvalidSignature:
        return "is not valid: it was altered, or somebody without the key made it"
    # several base64 texts mean the same bytes
    as_stored = base64.b64encode(raw).decode() == signature.signature and signature.to_bytes() == body
    return None if as_stored else "was altered"


def _read_private_key(path: Path) -> Ed25519PrivateKey | str:
    """Return the key, or what is wrong with its file; a path that is not a file is not quoted, it may be a key."""
    try:
        with path.open("rb") as file:
            mode, body = os.fstat(file.fileno()).st_mode, file.read(MAX_KEY_BYTES)
    except OSError as error:
        return (
            f"the file that it names cannot be read ({error.strerror}); expected the path of a PEM file with an "
            f"Ed25519 private key; {_HOW}"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return (
            f"{path} has mode {stat.S_IMODE(mode):04o}, so others than its owner can use it; `chmod 600` it, and "
            "replace the key if it was exposed"
        )
    try:
        key = load_pem_private_key(body, None)
    except TypeError:
        return f"{path} is encrypted, and nobody can be asked for its password; expected a plain key with mode 0600"
    except (ValueError, UnsupportedAlgorithm):
        return f"{path} holds no private key in PEM; {_HOW}"
    return (
        key if isinstance(key, Ed25519PrivateKey) else f"{path} is not an Ed25519 key (found {_name_kind(key)}); {_HOW}"
    )


def _read_public_keys(path: Path) -> list[Ed25519PublicKey] | str:
    """Return the keys, or what is wrong with their file."""
    try:
        with path.open("rb") as file:
            body = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        return f"cannot be read ({error.strerror}); expected a PEM file with the public keys whose prompts are accepted"
    blocks = list(_BLOCK.finditer(body))
    if len(body) > MAX_KEY_BYTES or len(blocks) != body.count(b"-----BEGIN"):
        return f"a key in it is incomplete, or it is longer than {MAX_KEY_BYTES} bytes; expected whole PEM blocks"
    if not blocks:
        return "holds no public key in PEM; `openssl pkey -in KEY -pubout` prints that of a private key"
    keys = []
    for number, block in enumerate(blocks, start=1):
        if b"PRIVATE" in block[1]:
            return (
                f"key {number} is a private key, which no reader may have; replace it with the output of "
                "`openssl pkey -in KEY -pubout`"
            )
        try:
            key = load_pem_public_key(block[0])
        except (ValueError, UnsupportedAlgorithm):
            return f"key {number} is not a public key in PEM; `openssl pkey -in KEY -pubout` prints one"
        if not isinstance(key, Ed25519PublicKey):
            return f"key {number} is not an Ed25519 key (found {_name_kind(key)}); {_HOW}"
        keys.append(key)
    return keys


def _name_kind(key: object) -> str:
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")
