"""Signed objects: whatever is altered, copied or unsigned is refused by name, whatever kind of object it is."""

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ptpipeline.errors import ArtifactError, PreconditionFailed, SettingsError
from ptpipeline.signing import SigningKey, compute_key_id, parse_public_key, state_object, state_prompt
from ptpipeline.storage import FolderStore, ObjectStore, keys
from ptpipeline.storage.signed import SignedStore, Trust, find_signer, is_accepted

D = "d" * 64
OURS, OTHERS = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2))

BELIEVED = {
    "pointer": keys.pointer_key("mood", "production"),
    "history": keys.history_key("mood", "production", 3),
    "name": keys.version_key("mood", 3),
    "dossier": keys.dossier_key("mood", D, b"body"),
    "plot": keys.plot_key("mood", D, "curve", b"body"),
    "companion": keys.companion_key("mood", D, "mistakes", b"body"),
    "page": keys.page_key("mood", D, b"body"),
    "snapshot": keys.snapshot_manifest_key("mood", D),
    "release": keys.release_key("spring"),
    "unknown": "prompts/mood/new-kind/one.json",
}
BOUND_OTHERWISE = {
    "tensors": keys.tensors_key("mood", D),
    "split": keys.split_key("mood", D, "train"),
    "results": keys.results_key("mood", "key"),
    "checkpoint": keys.checkpoint_key(D),
    "server": keys.server_key("host"),
    "quarantine": keys.quarantined_pointer_key("mood", "production", b"body"),
    "probe": keys.probe_key("nonce", "one"),
}


def trust(*signers: SigningKey) -> Trust:
    return Trust({compute_key_id(key.public): key.public for key in signers}, Path("trusted.pem"))


def signature_of(key: str, body: bytes, signer: SigningKey = OURS) -> str:
    return keys.object_signature_key(key, hashlib.sha256(body).hexdigest(), signer.id)


@pytest.mark.parametrize("key", BELIEVED.values(), ids=BELIEVED)
def test_a_signed_object_is_read(store: ObjectStore, key: str) -> None:
    signed = SignedStore(store, trust(OTHERS, OURS), OURS)
    signed.create(key, b"body")
    assert signed.read(key).body == b"body"
    signed.replace(key, b"other body", signed.read(key).etag)
    assert signed.read(key).body == b"other body"


def test_what_changed_is_verified_before_it_is_given(store: ObjectStore) -> None:
    signed, key = SignedStore(store, trust(OURS), OURS), BELIEVED["pointer"]
    signed.create(key, b"body")
    etag = signed.read(key).etag
    assert signed.read_changed(key, etag) is None
    store.replace(key, b"forged", etag)
    with pytest.raises(ArtifactError, match="nobody signed it"):
        signed.read_changed(key, etag)


@pytest.mark.parametrize("key", BELIEVED.values(), ids=BELIEVED)
def test_an_unsigned_object_is_refused_with_what_to_do(tmp_path: Path, key: str) -> None:
    store = FolderStore(tmp_path)
    store.create(key, b"body")
    with pytest.raises(ArtifactError, match=rf"{key}: PTP_TRUSTED_KEYS asks for a signature: nobody signed it.*`ptp"):
        SignedStore(store, trust(OURS)).read(key)
    assert SignedStore(store, key=OURS).read(key).body == b"body"


@pytest.mark.parametrize("key", BELIEVED.values(), ids=BELIEVED)
def test_an_altered_object_is_refused(tmp_path: Path, key: str) -> None:
    store, signed = FolderStore(tmp_path), SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    signed.create(key, b"body")
    store.replace(key, b"bodY", store.read(key).etag)
    with pytest.raises(ArtifactError, match=f"{key}: .*nobody signed it"):
        signed.read(key)


@pytest.mark.parametrize("key", BELIEVED.values(), ids=BELIEVED)
def test_a_signature_of_other_content_does_not_pass_for_its_own(tmp_path: Path, key: str) -> None:
    store, signed = FolderStore(tmp_path), SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    signed.create(key, b"body")
    store.replace(key, b"forged", store.read(key).etag)
    store.create(signature_of(key, b"forged"), store.read(signature_of(key, b"body")).body)
    with pytest.raises(ArtifactError, match=f"{key}: .*was made for content 230d8358dc8e and copied here"):
        signed.read(key)


@pytest.mark.parametrize("key", BELIEVED.values(), ids=BELIEVED)
def test_a_signed_object_copied_to_another_place_is_refused(tmp_path: Path, key: str) -> None:
    store, signed = FolderStore(tmp_path), SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    signed.create("prompts/other/aliases/canary.json", b"body")
    store.create(key, b"body")
    copied = store.read(signature_of("prompts/other/aliases/canary.json", b"body")).body
    store.create(signature_of(key, b"body"), copied)
    with pytest.raises(ArtifactError, match=f"{key}: .*is not valid: it was altered, or somebody without the key"):
        signed.read(key)


def test_a_signature_of_a_prompt_is_none_of_an_object() -> None:
    assert state_prompt("mood", D).message != state_object("mood", b"").message
    assert b"ptpipeline prompt v1" not in state_object(BELIEVED["pointer"], b"body").message


@pytest.mark.parametrize("key", BOUND_OTHERWISE.values(), ids=BOUND_OTHERWISE)
def test_what_is_bound_otherwise_is_not_signed(tmp_path: Path, key: str) -> None:
    signed = SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    signed.create(key, b"body")
    assert signed.read(key).body == b"body"
    assert [*signed.keys(keys.SIGNATURES)] == []


def test_nothing_is_written_that_readers_would_refuse(tmp_path: Path) -> None:
    store, key = FolderStore(tmp_path), BELIEVED["pointer"]
    with pytest.raises(SettingsError, match=f"{key}: PTP_TRUSTED_KEYS is set and PTP_SIGNING_KEY is not"):
        SignedStore(store, trust(OURS)).create(key, b"body")
    assert not store.exists(key)
    SignedStore(store, key=OURS).create(key, b"body")
    SignedStore(store, trust(OURS)).create(key, b"body")  # somebody signed these very bytes


def test_an_object_is_never_there_before_its_signature(tmp_path: Path) -> None:
    class Dying(FolderStore):
        def create(self, key: str, body: bytes) -> None:
            if not key.startswith(keys.SIGNATURES):
                raise KeyboardInterrupt
            super().create(key, body)

        def replace(self, key: str, body: bytes, etag: str) -> None:
            raise KeyboardInterrupt

    key, dying = BELIEVED["pointer"], SignedStore(Dying(tmp_path), key=OURS)
    for body, put in ((b"body", lambda: dying.create(key, b"body")), (b"new", lambda: dying.replace(key, b"new", ""))):
        with pytest.raises(KeyboardInterrupt):
            put()
        assert FolderStore(tmp_path).exists(signature_of(key, body))


def test_keys_are_replaced_without_a_moment_of_refusal(tmp_path: Path) -> None:
    store, key = FolderStore(tmp_path), BELIEVED["pointer"]
    SignedStore(store, trust(OURS), OURS).create(key, b"body")
    SignedStore(store, trust(OURS, OTHERS), OTHERS).sign(key, b"body")
    for readers in (trust(OURS), trust(OURS, OTHERS), trust(OTHERS)):
        assert SignedStore(store, readers).read(key).body == b"body"


def test_a_withdrawn_signature_is_gone(tmp_path: Path) -> None:
    signed = SignedStore(FolderStore(tmp_path), trust(OURS), OURS)
    signed.sign(BELIEVED["history"], b"body")
    signed.withdraw(BELIEVED["history"], b"body")
    assert not is_accepted(signed, BELIEVED["history"], b"body")


def test_other_bytes_at_a_signatures_place_are_not_written_over(tmp_path: Path) -> None:
    store, key = FolderStore(tmp_path), BELIEVED["pointer"]
    store.create(signature_of(key, b"body"), b"{}")
    with pytest.raises(ArtifactError, match=r"holds other bytes than key .* signs"):
        SignedStore(store, key=OURS).create(key, b"body")
    assert not store.exists(key)


def test_the_conditions_of_puts_still_hold(tmp_path: Path) -> None:
    signed, key = SignedStore(FolderStore(tmp_path), trust(OURS), OURS), BELIEVED["name"]
    signed.create(key, b"body")
    with pytest.raises(PreconditionFailed):
        signed.create(key, b"other")
    assert signed.read(key).body == b"body"


def test_the_signer_is_found_whether_trusted_or_not(tmp_path: Path) -> None:
    store, key = FolderStore(tmp_path), BELIEVED["history"]
    SignedStore(store, key=OTHERS).create(key, b"body")
    guarded = SignedStore(store, trust(OURS))
    assert find_signer(guarded, key, b"body", [OURS.public, OTHERS.public]) == OTHERS.id
    assert find_signer(guarded, key, b"other", [OURS.public, OTHERS.public]) is None
    store.create(signature_of(key, b"body", OURS), b"{}")
    assert find_signer(guarded, key, b"body", [OURS.public]) is None  # what lies there is no signature


def line_of(key: PublicKeyTypes) -> str:
    """What stands between the first and the last line of a public key's file."""
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


OF_ANOTHER_KIND = line_of(ec.generate_private_key(ec.SECP256R1()).public_key())


def test_a_public_key_is_read_from_its_line() -> None:
    assert compute_key_id(parse_public_key(line_of(OURS.public))) == OURS.id


@pytest.mark.parametrize(
    "line", ["", "?", "AAAA", "MCowBQYDK2VwAyEA", OURS.id, line_of(OURS.public) + " ", OF_ANOTHER_KIND]
)
def test_what_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an Ed25519 public key; expected the line between BEGIN and END"):
        parse_public_key(line)
