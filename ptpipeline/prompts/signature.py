"""Signed prompts (Ed25519): keys, signatures, and the store that hands out no manifest without a trusted one. Imports
no torch.

A signature is an object of its own, `prompts/<task>/<digest>/signature-<key id>.json`, one per key, so that a key can
be replaced while prompts that the old one signed are in use. It covers task and digest, and the digest covers all the
rest. Signing and verifying lie in the store, not in those who read and write: nobody can forget them.
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
from pydantic import Field, ValidationError

from ptpipeline.errors import ArtifactError, NotFound, PreconditionFailed, SettingsError
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records import DIGEST_PATTERN, Record
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
    """What a key says about a prompt: `signature` is base64 over `signed_bytes`, `key` the id of the key that
    made it.
    """

    schema_version: Literal[1] = 1
    digest: str = Field(pattern=DIGEST_PATTERN)
    key: str = Field(pattern=KEY_ID_PATTERN)
    signature: str

    def to_bytes(self) -> bytes:
        """The object as it is stored; no other spelling of it is accepted."""
        return rfc8785.dumps(self.to_json())


def encode_signed(task: str, digest: str) -> bytes:
    """What is signed: canonical JSON of the domain, which no signature made for something else can hold, task and
    digest.
    """
    return rfc8785.dumps({"domain": DOMAIN, "task": task, "digest": digest})


def compute_key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of sha256 over the raw public key."""
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
        """The same signature each time: Ed25519 draws nothing at random."""
        return Signature(
            digest=digest,
            key=self.id,
            signature=base64.b64encode(self.private.sign(encode_signed(task, digest))).decode(),
        )


@dataclass(frozen=True)
class Trust:
    """The public keys, by id, of which one has to have signed each prompt, and the file that they stand in."""

    keys: Mapping[str, Ed25519PublicKey]
    source: Path

    def verify(self, store: ObjectStore, task: str, digest: str) -> None:
        """ArtifactError unless a trusted key signed the prompt: it says what was found instead."""
        folder, flaws = prompt_prefix(task, digest), []
        for name, key in self.keys.items():
            try:
                body = store.read(signature_key(task, digest, name)).body
            except NotFound:
                continue
            flaw = _flaw(body, key, task, digest)
            if flaw is None:
                return
            flaws.append(f"{signature_file(name)} {flaw}; remove that object and sign again")
        what = "; ".join(flaws) or self._absence(store, folder)
        raise ArtifactError(f"{store.url}/{folder}: PTP_TRUSTED_KEYS asks for a signature: {what}: `ptp sign {task}@N`")

    def _absence(self, store: ObjectStore, folder: str) -> str:
        others = [signer for key in store.keys(folder) if (signer := signer_id(key)) is not None]
        if others:
            return (
                f"key {' and '.join(others)} signed it, which {self.source} does not hold; add that public key if "
                "you trust it, or sign with one that is there"
            )
        return "nobody signed it; sign it if you know where it comes from"


class SignedStore:
    """An object store in which manifests are read behind a trusted signature only, and written behind one's own.

    Without `trust` nothing is verified, without `key` nothing is signed. `unverified` is the store itself.
    """

    def __init__(self, unverified: ObjectStore, trust: Trust | None = None, key: SigningKey | None = None) -> None:
        self.unverified = unverified
        self.trust = trust
        self.key = key
        self.url = unverified.url
        self.where = unverified.where

    def read(self, key: str) -> Stored:
        """ArtifactError for a manifest that no trusted key signed: without it there is no prompt."""
        stored = self.unverified.read(key)
        if self.trust is not None and (prompt := claimed_prompt(key)):
            self.trust.verify(self.unverified, *prompt)
        return stored

    def exists(self, key: str) -> bool:
        return self.unverified.exists(key)

    def create(self, key: str, body: bytes) -> None:
        """The signature goes first, because a manifest's presence means that all is there."""
        if self.key is not None and (prompt := claimed_prompt(key)):
            _put(self.unverified, self.key, *prompt)
        self.unverified.create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self.unverified.replace(key, body, etag)

    def delete(self, key: str) -> None:
        self.unverified.delete(key)

    def listed(self, prefix: str) -> Iterator[Listed]:
        return self.unverified.listed(prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.unverified.keys(prefix)


def open_prompts(settings: Settings) -> ObjectStore:
    """The object store of the settings, with their keys: the way in for whoever reads or writes prompts.

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
    """Sign a prompt that lies in the store already, behind the members of an ensemble; returns the digests signed.

    All bytes are verified first. Take the digest from the ledger, never from the store, which is what signatures guard
    against. Idempotent. Raises NotFound, or ArtifactError where bytes are altered or an invalid signature lies there.
    """
    bare = store.unverified if isinstance(store, SignedStore) else store
    artifact = read_artifact(bare, task, digest)
    digests = [*(member.digest for member in read_ensemble(bare, artifact)), digest]
    for each in digests:
        _put(bare, key, task, each)
    return digests


def read_signing_key(path: Path) -> SigningKey:
    """The Ed25519 private key in a PEM file that its owner alone may read. Raises SettingsError, which never quotes the
    file.
    """
    found = _private_key(path)
    if isinstance(found, str):  # raised here, where no variable of the traceback holds the file's bytes
        raise SettingsError(f"PTP_SIGNING_KEY: {found}")
    return SigningKey(found)


def read_trust(path: Path) -> Trust:
    """The Ed25519 public keys in a PEM file, one or several; text between them is a comment. Raises SettingsError."""
    found = _public_keys(path)
    if isinstance(found, str):
        raise SettingsError(f"PTP_TRUSTED_KEYS: {path}: {found}")
    return Trust({compute_key_id(key): key for key in found}, path)


def _put(store: ObjectStore, key: SigningKey, task: str, digest: str) -> None:
    where = signature_key(task, digest, key.id)
    try:
        store.create(where, key.sign(task, digest).to_bytes())
    except PreconditionFailed:
        raise ArtifactError(
            f"{store.url}/{where}: other bytes lie there than key {key.id} signs; find out who wrote them, "
            "remove the object, and sign again"
        ) from None


def _flaw(body: bytes, key: Ed25519PublicKey, task: str, digest: str) -> str | None:
    """What is wrong with a stored signature; None where `key` made it for this prompt."""
    if len(body) > MAX_SIGNATURE_BYTES:
        return f"has {len(body)} bytes, at most {MAX_SIGNATURE_BYTES} allowed"
    try:
        found = Signature.model_validate_json(body)
        raw = base64.b64decode(found.signature, validate=True)
    except (ValidationError, binascii.Error):
        return "is no signature: it was altered, or a newer ptpipeline wrote it"
    if found.digest != digest:
        return f"was made for prompt {found.digest[:12]} and copied here"
    if found.key != compute_key_id(key):
        return f"states key {found.key}"
    try:
        key.verify(raw, encode_signed(task, digest))
    except InvalidSignature:
        return "is not valid: it was altered, or somebody without the key made it"
    spelled = (
        base64.b64encode(raw).decode() == found.signature and found.to_bytes() == body
    )  # several base64 texts mean the same bytes
    return None if spelled else "was altered"


def _private_key(path: Path) -> Ed25519PrivateKey | str:
    """The key, or what is wrong with its file, which is named once it is known to be one: what else was set may be a
    key.
    """
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
            "if it was exposed replace the key"
        )
    try:
        key = load_pem_private_key(body, None)
    except TypeError:
        return (
            f"{path} is encrypted, and there is nobody to ask for its password; expected a plain one that its mode "
            "0600 protects"
        )
    except (ValueError, UnsupportedAlgorithm):
        return f"{path} holds no private key in PEM; {_HOW}"
    return key if isinstance(key, Ed25519PrivateKey) else f"{path} is no Ed25519 key (found {_kind(key)}); {_HOW}"


def _public_keys(path: Path) -> list[Ed25519PublicKey] | str:
    """The keys, or what is wrong with their file."""
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
                f"key {number} is a private one, which no reader may have; replace it by `openssl pkey -in KEY -pubout`"
            )
        try:
            key = load_pem_public_key(block[0])
        except (ValueError, UnsupportedAlgorithm):
            return f"key {number} is no public key in PEM; `openssl pkey -in KEY -pubout` prints one"
        if not isinstance(key, Ed25519PublicKey):
            return f"key {number} is no Ed25519 key (found {_kind(key)}); {_HOW}"
        keys.append(key)
    return keys


def _kind(key: object) -> str:
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")
