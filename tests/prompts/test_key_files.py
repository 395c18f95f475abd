"""The keys of signatures: files and settings that cannot do it are refused, and no secret is ever shown."""

import logging
import pickle
import re
import subprocess
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from benchmarks.fixtures.prompts import an_artifact
from ptpipeline.errors import ArtifactError, SettingsError
from ptpipeline.prompts.artifact import read_artifact, write_artifact
from ptpipeline.settings import Settings, load_settings
from ptpipeline.signing import read_signing_key
from ptpipeline.storage import FolderStore
from ptpipeline.storage.signed import SignedStore, open_signed_store, read_trust
from tests.prompts.test_signature import FOREIGN, OTHERS, OURS, ROOT, TASK, private_pem, public_pem, written

# ---------------------------------------------------------------- key files and settings


def test_keys_are_read_from_their_files(tmp_path: Path) -> None:
    assert read_signing_key(written(tmp_path / "private", private_pem(OURS))).id == OURS.id
    found = read_trust(
        written(tmp_path / "public", b"# ours\n" + public_pem(OURS) + b"# theirs\n" + public_pem(OTHERS), 0o644)
    )
    assert sorted(found.keys) == sorted([OURS.id, OTHERS.id])


def test_the_rights_that_count_are_those_of_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path / "key", private_pem(OURS)))
    assert read_signing_key(tmp_path / "link").id == OURS.id
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(SettingsError, match="has mode 0640"):
        read_signing_key(tmp_path / "link")


@pytest.mark.parametrize(
    ("body", "mode", "sentence"),
    [
        (b"", 0o600, "holds no private key in PEM"),
        (b"secret", 0o600, "holds no private key in PEM"),
        (private_pem(OURS)[:70], 0o600, "holds no private key in PEM"),
        (public_pem(OURS), 0o600, "holds no private key in PEM"),
        (
            private_pem(OURS, BestAvailableEncryption(b"password")),
            0o600,
            "is encrypted, and nobody can be asked for its password",
        ),
        (
            FOREIGN.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            0o600,
            r"is not an Ed25519 key \(found RSA\)",
        ),
        (
            ec_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            0o600,
            r"is not an Ed25519 key \(found EC\)",
        ),
        (private_pem(OURS), 0o640, "has mode 0640, so others than its owner can use it; `chmod 600` it"),
        (private_pem(OURS), 0o604, "has mode 0604"),
        (private_pem(OURS), 0o620, "has mode 0620"),
        (private_pem(OURS), 0o602, "has mode 0602"),
    ],
)
def test_a_useless_signing_key_is_refused(tmp_path: Path, body: bytes, mode: int, sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"PTP_SIGNING_KEY: .*/key {sentence}"):
        read_signing_key(written(tmp_path / "key", body, mode))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "holds no public key in PEM; `openssl pkey -in KEY -pubout` prints"),
        (b"# nothing\n", "holds no public key in PEM"),
        (public_pem(OURS) + public_pem(OTHERS)[:-30], "a key in it is incomplete"),
        (public_pem(OURS).replace(b"MC", b"!!"), "key 1 is not a public key in PEM"),
        (public_pem(OURS) + private_pem(OTHERS), "key 2 is a private key, which no reader may have"),
        (
            public_pem(OURS) + FOREIGN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            r"key 2 is not an Ed25519 key \(found RSA\)",
        ),
        (b"#" * 70_000 + public_pem(OURS), "a key in it is incomplete, or it is longer than 65536 bytes"),
    ],
)
def test_useless_trusted_keys_are_refused(tmp_path: Path, body: bytes, sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"PTP_TRUSTED_KEYS: .*/keys: {sentence}"):
        read_trust(written(tmp_path / "keys", body))


def test_trusted_keys_that_everybody_may_add_to_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "public", public_pem(OURS), 0o664)  # as openssl writes it by some systems' umask
    assert OURS.id in read_trust(path).keys
    path.chmod(0o646)
    with pytest.raises(SettingsError, match="every user of this machine may write to it"):
        read_trust(path)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"PTP_SIGNING_KEY: the file that it names cannot be read \(No such file or directory\)"
    ):
        read_signing_key(tmp_path / "none")
    with pytest.raises(SettingsError, match=r"PTP_TRUSTED_KEYS: .*/none: cannot be read \(No such file or directory\)"):
        read_trust(tmp_path / "none")
    with pytest.raises(SettingsError, match=r"PTP_TRUSTED_KEYS: .*: cannot be read .*directory"):
        read_trust(tmp_path)


def test_the_settings_guard_the_store(tmp_path: Path) -> None:
    keys = {
        "signing_key": written(tmp_path / "private", private_pem(OURS)),
        "trusted_keys": written(tmp_path / "public", public_pem(OURS)),
    }
    plain = Settings(store=f"file://{tmp_path}/store")
    digest = write_artifact(open_signed_store(plain.model_copy(update=keys)), an_artifact(TASK))
    assert read_artifact(
        open_signed_store(plain.model_copy(update={"trusted_keys": keys["trusted_keys"]})), TASK.name, digest
    )
    unsigned = write_artifact(open_signed_store(plain), an_artifact(TASK, 1))
    with pytest.raises(ArtifactError, match="nobody signed it"):
        read_artifact(open_signed_store(plain.model_copy(update=keys)), TASK.name, unsigned)


def test_a_signing_key_signs_where_no_key_is_trusted(tmp_path: Path) -> None:
    plain = Settings(store=f"file://{tmp_path}/store")
    writer = plain.model_copy(update={"signing_key": written(tmp_path / "private", private_pem(OURS))})
    digest = write_artifact(open_signed_store(writer), an_artifact(TASK))
    reader = plain.model_copy(update={"trusted_keys": written(tmp_path / "public", public_pem(OURS))})
    assert read_artifact(open_signed_store(reader), TASK.name, digest)


def test_a_signing_key_that_readers_would_refuse_is_refused(tmp_path: Path) -> None:
    keys = {
        "signing_key": written(tmp_path / "private", private_pem(OURS)),
        "trusted_keys": written(tmp_path / "public", public_pem(OTHERS)),
    }
    with pytest.raises(
        SettingsError,
        match=f"PTP_SIGNING_KEY: .*/private is key {OURS.id}, which .*/public .PTP_TRUSTED_KEYS. does not hold; add "
        "its public key there first",
    ):
        open_signed_store(Settings(store=f"file://{tmp_path}/store", **keys))


def test_key_files_are_set_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTP_SIGNING_KEY", "private")
    monkeypatch.setenv("PTP_TRUSTED_KEYS", "~nobody-at-all/public")
    with pytest.raises(SettingsError, match=r"PTP_TRUSTED_KEYS: .*home directory"):
        load_settings()
    monkeypatch.setenv("PTP_TRUSTED_KEYS", "")
    assert (load_settings().signing_key, load_settings().trusted_keys) == (tmp_path / "private", None)


# ---------------------------------------------------------------- secrets


def test_a_key_put_where_its_path_belongs_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_HOME", str(tmp_path))
    pem = private_pem(OURS).decode()
    for given_, call in ((pem, load_settings), (pem.splitlines()[1], lambda: open_signed_store(load_settings()))):
        monkeypatch.setenv("PTP_SIGNING_KEY", given_)
        with pytest.raises(SettingsError, match=r"PTP_SIGNING_KEY: .*expected the path of a PEM file") as caught:
            call()
        assert pem.splitlines()[1] not in "".join(traceback.format_exception(caught.value))
    assert pem.splitlines()[1] not in repr(load_settings())


def test_a_private_key_shows_its_id_alone(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    guarded = SignedStore(FolderStore(tmp_path), key=OURS)
    with caplog.at_level(logging.DEBUG):
        write_artifact(guarded, an_artifact(TASK))
    assert repr(OURS) == f"SigningKey({OURS.id})"
    raw = OURS.private.private_bytes_raw()
    shown = f"{OURS!r} {OURS} {guarded!r} {vars(guarded)} {caplog.text}".encode()
    assert not any(
        secret in shown for secret in (raw, raw.hex().encode(), private_pem(OURS).splitlines()[1], repr(raw).encode())
    )
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(OURS)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_no_variable_of_a_traceback_holds_a_refused_key(tmp_path: Path, mode: int) -> None:
    body = private_pem(OURS, BestAvailableEncryption(b"password"))
    with pytest.raises(SettingsError) as caught:
        read_signing_key(written(tmp_path / "key", body, mode))
    assert caught.value.__context__ is None
    frames = [
        frame
        for frame, _ in traceback.walk_tb(caught.value.__traceback__)
        if frame.f_code.co_filename.endswith("ptpipeline/signing.py") and "tests" not in frame.f_code.co_filename
    ]
    assert frames
    assert not any(body in repr(frame.f_locals).encode() or body in frame.f_locals.values() for frame in frames)


# ---------------------------------------------------------------- nobody can forget it


def test_the_store_is_opened_by_one_door_only() -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for package in ("ptpipeline", "registry", "flows")
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(sources) > 80
    outside = {name: body for name, body in sources.items() if not name.startswith("ptpipeline/storage")}
    found = [name for name, body in outside.items() if re.search(r"\b(open_store|FolderStore|S3Store)\b", body)]
    assert found == ["ptpipeline/serving/last_good.py"]  # a server's own copy of what it verified


def test_the_commands_in_the_docs_make_keys_that_work(tmp_path: Path) -> None:
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs/signing.md").read_text(), re.DOTALL):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"umask 022\n{block}"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout.split()
        assert not printed or printed == [read_signing_key(tmp_path / "signing.pem").id]
    assert set(read_trust(tmp_path / "trusted.pem").keys) == {
        read_signing_key(tmp_path / name).id for name in ("signing.pem", "next.pem")
    }
