"""Ed25519 keys, what they sign, and the PEM files that hold them. Knows no store, and imports no torch.

A key signs a statement: of a prompt its task and digest, which covers all the rest; of another object its key in the
store and the hash of its bytes. The two statements have domains of their own, so that neither passes for the other.
"""

import base64
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_private_key, load_pem_public_key
from pydantic import Field

from ptpipeline.errors import ArtifactError, SettingsError
from ptpipeline.foreign import parse_record
from ptpipeline.private import open_regular
from ptpipeline.records.base import DIGEST_PATTERN, Record

PROMPT_DOMAIN, OBJECT_DOMAIN = "ptpipeline prompt v1", "ptpipeline object v1"
KEY_ID_PATTERN = r"^[0-9a-f]{16}$"
MAX_KEY_BYTES = 64 * 2**10
MAX_SIGNATURE_BYTES = 1024

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_HOW = "`openssl genpkey -algorithm ed25519` makes one (docs/signing.md)"


class Signature(Record):
    """A key's signature: `signature` is base64 over a statement, `digest` what it is about, `key` the key's id."""

    schema_version: Literal[1] = 1
    digest: str = Field(pattern=DIGEST_PATTERN)
    key: str = Field(pattern=KEY_ID_PATTERN)
    signature: str

    def to_bytes(self) -> bytes:
        """Return the object as it is stored; no other spelling of it is accepted."""
        return rfc8785.dumps(self.to_json())


class Statement(NamedTuple):
    """What a key signs: the bytes, the digest that they are about, and what has that digest, for messages."""

    message: bytes
    digest: str
    about: str


def state_prompt(task: str, digest: str) -> Statement:
    """Return what is signed of a prompt: canonical JSON of domain, task and digest."""
    message = rfc8785.dumps({"domain": PROMPT_DOMAIN, "task": task, "digest": digest})
    return Statement(message, digest, "prompt")


def state_object(key: str, body: bytes) -> Statement:
    """Return what is signed of any other object: canonical JSON of domain, key and the sha256 of the bytes."""
    digest = hashlib.sha256(body).hexdigest()
    return Statement(rfc8785.dumps({"domain": OBJECT_DOMAIN, "key": key, "sha256": digest}), digest, "content")


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
        return compute_key_id(self.public)

    @property
    def public(self) -> Ed25519PublicKey:
        """Its public half."""
        return self.private.public_key()

    def sign(self, statement: Statement) -> Signature:
        """Return the signature of a statement, the same each time: Ed25519 draws nothing at random."""
        signature = base64.b64encode(self.private.sign(statement.message)).decode()
        return Signature(digest=statement.digest, key=self.id, signature=signature)


def find_flaw(body: bytes, key: Ed25519PublicKey, statement: Statement) -> str | None:
    """Return what is wrong with a stored signature; None if `key` made it for this statement."""
    if len(body) > MAX_SIGNATURE_BYTES:
        return f"has {len(body)} bytes, at most {MAX_SIGNATURE_BYTES} allowed"
    try:
        signature = parse_record(Signature, body, "signature")
        raw = base64.b64decode(signature.signature, validate=True)
    except (ArtifactError, ValueError):  # also of base64: of digits that are none, and of characters beyond ASCII
        return "is not a signature: it was altered, or a newer ptpipeline wrote it"
    if signature.digest != statement.digest:
        return f"was made for {statement.about} {signature.digest[:12]} and copied here"
    if signature.key != compute_key_id(key):
        return f"states key {signature.key}"
    try:
        key.verify(raw, statement.message)
    except InvalidSignature:
        return "is not valid: it was altered, or somebody without the key made it"
    # several base64 texts mean the same bytes
    as_stored = base64.b64encode(raw).decode() == signature.signature and signature.to_bytes() == body
    return None if as_stored else "was altered"


def read_signing_key(path: Path) -> SigningKey:
    """Return the Ed25519 private key in a PEM file that its owner alone may read.

    Raises SettingsError, which never quotes the file.
    """
    key = _read_private_key(path)
    if isinstance(key, str):  # raised here: no variable of the traceback holds the file's bytes
        raise SettingsError(f"PTP_SIGNING_KEY: {key}")
    return SigningKey(key)


def read_trusted_keys(path: Path) -> dict[str, Ed25519PublicKey]:
    """Return the Ed25519 public keys in a PEM file, one or several, by id; text between them is a comment.

    Raises SettingsError if a key cannot be used.
    """
    keys = _read_public_keys(path)
    if isinstance(keys, str):
        raise SettingsError(f"PTP_TRUSTED_KEYS: {path}: {keys}")
    return {compute_key_id(key): key for key in keys}


def parse_public_key(line: str) -> Ed25519PublicKey:
    """Return the Ed25519 key whose PEM file has this line between its first and last; raises ValueError otherwise."""
    try:
        key = load_der_public_key(base64.b64decode(line, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(
            "not an Ed25519 public key; expected the line between BEGIN and END that `openssl pkey -in KEY -pubout` "
            "prints"
        )
    return key


def _read_private_key(path: Path) -> Ed25519PrivateKey | str:
    """Return the key, or what is wrong with its file; a path that is not a file is not quoted, it may be a key."""
    try:
        with open_regular(path) as file:
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
        with open_regular(path) as file:
            mode, body = os.fstat(file.fileno()).st_mode, file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        return f"cannot be read ({error.strerror}); expected a PEM file with the public keys whose objects are accepted"
    if mode & stat.S_IWOTH:
        return "every user of this machine may write to it, and so have their own key trusted; `chmod o-w` it"
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
