"""Signed prompts: nothing is read that no trusted key signed, whatever lies in the store."""

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as rsa_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.numpy import save

from benchmarks.fixtures.prompts import a_task, an_artifact
from ptpipeline.errors import ArtifactError, NotFound, SettingsError
from ptpipeline.prompts.artifact import Artifact, read_artifact, read_ensemble, write_artifact
from ptpipeline.records.prompts import Members, PromptManifest
from ptpipeline.signing import Signature, SigningKey, compute_key_id, state_prompt
from ptpipeline.storage import FolderStore, ObjectStore
from ptpipeline.storage.keys import prompt_prefix
from ptpipeline.storage.signed import SignedStore, Trust

ROOT = Path(__file__).parents[2]
OURS, OTHERS = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2))
FOREIGN = rsa_key(65537, 2048)
TASK = a_task()


def trust(*keys: SigningKey) -> Trust:
    public = [key.private.public_key() for key in keys]
    return Trust({compute_key_id(key): key for key in public}, Path("trusted.pem"))


def private_pem(key: SigningKey, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_pem(key: SigningKey) -> bytes:
    return key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def written(path: Path, body: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(body)
    path.chmod(mode)
    return path


def signature_key(digest: str, key: SigningKey = OURS) -> str:
    return f"{prompt_prefix(TASK.name, digest)}/signature-{key.id}.json"


def an_ensemble(members: list[Artifact]) -> Artifact:
    tensors = save({})
    changes = {"method": "ensemble", "tensors": {}, "tensor_sha256": hashlib.sha256(tensors).hexdigest()}
    listed = Members(digests=[member.digest for member in members], combine="average")
    return Artifact(
        PromptManifest.model_validate({**members[0].manifest.to_json(), **changes, "members": listed}), tensors
    )


# ---------------------------------------------------------------- reading and writing


def test_a_signed_prompt_is_read(store: ObjectStore) -> None:
    made = an_artifact(TASK)
    guarded = SignedStore(store, trust(OURS), OURS)
    assert write_artifact(guarded, made) == made.digest
    assert read_artifact(guarded, TASK.name, made.digest) == made
    assert read_artifact(SignedStore(store, trust(OTHERS, OURS)), TASK.name, made.digest) == made


def test_writing_twice_signs_once(store: ObjectStore) -> None:
    guarded = SignedStore(store, trust(OURS), OURS)
    digest = write_artifact(guarded, an_artifact(TASK))
    before = store.read(signature_key(digest))
    write_artifact(guarded, an_artifact(TASK))
    assert store.read(signature_key(digest)) == before
    assert len([key for key in store.keys(prompt_prefix(TASK.name, digest)) if "signature" in key]) == 1


def test_a_signature_is_verified_by_openssl_too(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    digest = write_artifact(SignedStore(store, key=OURS), an_artifact(TASK))
    stored = json.loads(store.read(signature_key(digest)).body)
    (tmp_path / "signature").write_bytes(base64.b64decode(stored["signature"]))
    (tmp_path / "message").write_text(f'{{"digest":"{digest}","domain":"ptpipeline prompt v1","task":"{TASK.name}"}}')
    (tmp_path / "key").write_bytes(public_pem(OURS))
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "key",
        "-rawin",
        "-in",
        "message",
        "-sigfile",
        "signature",
    ]
    assert (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.strip()
        == "Signature Verified Successfully"
    )


class Dying(FolderStore):
    """A store whose process is killed at its nth put."""

    left = 0

    def create(self, key: str, body: bytes) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        super().create(key, body)


@pytest.mark.parametrize("puts", [0, 1, 2])
def test_no_death_leaves_a_manifest_unsigned(tmp_path: Path, puts: int) -> None:
    made, dying = an_artifact(TASK), Dying(tmp_path)
    dying.left = puts
    with pytest.raises(KeyboardInterrupt):
        write_artifact(SignedStore(dying, key=OURS), made)
    guarded = SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    with pytest.raises(NotFound):
        read_artifact(guarded, TASK.name, made.digest)
    assert read_artifact(guarded, TASK.name, write_artifact(guarded, made)) == made


def test_without_trusted_keys_anything_is_read(store: ObjectStore) -> None:
    made = an_artifact(TASK)
    write_artifact(store, made)
    assert read_artifact(SignedStore(store, key=OURS), TASK.name, made.digest) == made


def test_an_unsigned_prompt_is_refused(store: ObjectStore) -> None:
    digest = write_artifact(store, an_artifact(TASK))
    with pytest.raises(
        ArtifactError,
        match=rf"{digest}: PTP_TRUSTED_KEYS asks for a signature: nobody signed it; .*: `ptp sign mood@N`$",
    ):
        read_artifact(SignedStore(store, trust(OURS)), TASK.name, digest)


def test_an_unsigned_prompt_cannot_be_stored_where_signatures_are_asked_for(store: ObjectStore) -> None:
    made = an_artifact(TASK)
    with pytest.raises(SettingsError, match="PTP_TRUSTED_KEYS is set and PTP_SIGNING_KEY is not, so no reader would"):
        write_artifact(SignedStore(store, trust(OURS)), made)
    assert not store.exists(f"{prompt_prefix(TASK.name, made.digest)}/manifest.json")


def test_a_signed_prompt_may_be_stored_again_without_the_key(store: ObjectStore) -> None:
    digest = write_artifact(SignedStore(store, key=OURS), an_artifact(TASK))
    assert write_artifact(SignedStore(store, trust(OURS)), an_artifact(TASK)) == digest


def test_a_prompt_that_is_not_there_is_not_unsigned(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        read_artifact(SignedStore(store, trust(OURS)), TASK.name, "a" * 64)


def test_an_untrusted_key_is_named(store: ObjectStore) -> None:
    digest = write_artifact(SignedStore(store, key=OTHERS), an_artifact(TASK))
    with pytest.raises(
        ArtifactError,
        match=f"key {OTHERS.id} signed it, which trusted.pem does not hold; add that public key if you trust it",
    ):
        read_artifact(SignedStore(store, trust(OURS)), TASK.name, digest)


def test_members_of_an_ensemble_have_to_be_signed(store: ObjectStore) -> None:
    members = [an_artifact(TASK, seed) for seed in (1, 2)]
    for member in members:
        write_artifact(store, member)
    ensemble, guarded = an_ensemble(members), SignedStore(store, trust(OURS), OURS)
    write_artifact(guarded, ensemble)
    with pytest.raises(ArtifactError, match=f"{members[0].digest}: .*nobody signed it"):
        read_ensemble(guarded, read_artifact(guarded, TASK.name, ensemble.digest))


@pytest.mark.parametrize(
    "key", ["prompts/mood/%s/manifest.json", "prompts/Mood/%s/manifest.json", "prompts/a/b/%s/manifest.json"]
)
def test_every_spelling_of_a_manifests_place_is_guarded(tmp_path: Path, key: str) -> None:
    store = FolderStore(tmp_path)
    store.create(key % ("a" * 64), b"{}")
    with pytest.raises(ArtifactError, match="nobody signed it"):
        SignedStore(store, trust(OURS)).read(key % ("a" * 64))


# ---------------------------------------------------------------- altered


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store's folder with one signed prompt, and its digest; whoever alters it puts it back."""
    root = tmp_path_factory.mktemp("signed")
    return root, write_artifact(SignedStore(FolderStore(root), key=OURS), an_artifact(TASK))


@given(
    position=st.integers(0, 10_000),
    value=st.integers(1, 255),
    name=st.sampled_from([f"signature-{OURS.id}.json", "prompt.safetensors"]),
)
@examples(max_examples=300)
def test_no_flipped_byte_is_accepted(signed: tuple[Path, str], position: int, value: int, name: str) -> None:
    root, digest = signed
    path = root / prompt_prefix(TASK.name, digest) / name
    good = path.read_bytes()
    body = bytearray(good)
    body[position % len(body)] ^= value
    path.write_bytes(body)
    try:
        with pytest.raises(ArtifactError):
            read_artifact(SignedStore(FolderStore(root), trust(OURS)), TASK.name, digest)
    finally:
        path.write_bytes(good)


def test_no_flipped_bit_of_a_signature_is_accepted(signed: tuple[Path, str]) -> None:
    root, digest = signed
    path, guarded = root / signature_key(digest), SignedStore(FolderStore(root), trust(OURS))
    good = path.read_bytes()
    for bit in (
        8 * byte + each for byte in range(len(good)) for each in (0, 1, 5)
    ):  # 1: the last letter of base64 has bits that mean nothing; 5: upper case
        path.write_bytes((int.from_bytes(good) ^ 1 << bit).to_bytes(len(good)))
        with pytest.raises(ArtifactError):
            guarded.read(f"{prompt_prefix(TASK.name, digest)}/manifest.json")
    path.write_bytes(good)
    assert guarded.read(f"{prompt_prefix(TASK.name, digest)}/manifest.json")


def forged(of: str, /, **changes: object) -> bytes:
    """A well-formed signature object for the digest, of which some fields say something else."""
    return Signature.model_validate({**OURS.sign(state_prompt(TASK.name, of)).to_json(), **changes}).to_bytes()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (lambda d: b"", "is not a signature"),
        (lambda d: b"\xff{", "is not a signature"),
        (lambda d: b"[]", "is not a signature"),
        (
            lambda d: json.dumps({**OURS.sign(state_prompt(TASK.name, d)).to_json(), "schema_version": 2}).encode(),
            "is not a signature: it was altered, or a newer ptpipeline wrote it",
        ),
        (lambda d: forged(d, signature="?"), "is not a signature"),
        (lambda d: forged(d, signature="\u00e9"), "is not a signature"),
        (lambda d: forged(d, signature=""), "is not valid"),
        (lambda d: forged(d, digest="b" * 64), "was made for prompt bbbbbbbbbbbb and copied here"),
        (lambda d: forged(d, key=OTHERS.id), f"states key {OTHERS.id}"),
        (
            lambda d: forged(d, signature=OTHERS.sign(state_prompt(TASK.name, d)).signature),
            "is not valid: it was altered, or somebody without the key made it",
        ),
        (lambda d: forged(d, signature=OURS.sign(state_prompt("other", d)).signature), "is not valid"),
        (lambda d: forged(d, signature=OURS.sign(state_prompt(TASK.name, "b" * 64)).signature), "is not valid"),
        (lambda d: forged(d) + b" ", "was altered"),
        (lambda d: b" " * 2000, "has 2000 bytes, at most 1024 allowed"),
    ],
)
def test_a_false_signature_is_refused(tmp_path: Path, body: Callable[[str], bytes], sentence: str) -> None:
    store = FolderStore(tmp_path)
    digest = write_artifact(store, an_artifact(TASK))
    store.create(signature_key(digest), body(digest))
    with pytest.raises(
        ArtifactError,
        match=rf"signature-{OURS.id}\.json {sentence}.*; remove that object and sign again: `ptp sign mood@N`",
    ):
        read_artifact(SignedStore(store, trust(OURS)), TASK.name, digest)


def test_a_signed_manifest_replaced_by_another_signed_one_is_refused(tmp_path: Path) -> None:
    guarded = SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    one, two = (
        tmp_path / prompt_prefix(TASK.name, write_artifact(guarded, an_artifact(TASK, seed))) for seed in (1, 2)
    )
    shutil.copy(two / "manifest.json", one / "manifest.json")
    shutil.copy(two / "prompt.safetensors", one / "prompt.safetensors")
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        read_artifact(guarded, TASK.name, one.name)


def test_one_valid_signature_suffices_beside_a_false_one(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    digest = write_artifact(SignedStore(store, key=OURS), an_artifact(TASK))
    store.create(signature_key(digest, OTHERS), b"{}")
    assert read_artifact(SignedStore(store, trust(OTHERS, OURS)), TASK.name, digest)


def test_a_false_signature_is_not_written_over(tmp_path: Path) -> None:
    store, made = FolderStore(tmp_path), an_artifact(TASK)
    store.create(signature_key(made.digest), b"{}")
    with pytest.raises(
        ArtifactError,
        match=rf"signature-{OURS.id}\.json holds other bytes than key {OURS.id} signs; .* remove the object, "
        r"and sign again",
    ):
        write_artifact(SignedStore(store, key=OURS), made)
