"""A registry with keys: what nobody signed is taken into no ledger, is told by the doctor, and is put right again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from benchmarks.fixtures.prompts import a_request, an_artifact, published
from ptpipeline.errors import ArtifactError
from ptpipeline.evaluation.mistakes import Mistakes
from ptpipeline.records.base import digest_of
from ptpipeline.records.versions import Pointer
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import (
    dossier_key,
    history_key,
    pointer_key,
    prompt_prefix,
    release_key,
    signatures_prefix,
    snapshot_manifest_key,
    version_key,
)
from registry.ledger import tables
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.repair.rebuild import rebuild
from registry.repair.reconcile import reconcile
from registry.versions.commit import Cause, encode_release
from registry.versions.projection import history_object
from registry.versions.promotion import promote, promote_release, rollback
from registry.versions.publish import register
from registry.versions.sign import sign_task
from tests.registry.signed import ME, TASK, WORKER, fill, objects, overwrite, signed


def with_lost_ledger(registry: Registry, tmp_path: Path) -> Registry:
    return replace(registry, ledger=Ledger(f"sqlite:///{tmp_path / 'fresh.db'}"))


def not_done(registry: Registry) -> str:
    return "\n".join(action.what for action in rebuild(registry) if not action.done)


# ---------------------------------------------------------------- what was signed


def test_each_promotion_holds_the_digest_of_the_one_before(keyed: Registry) -> None:
    rows = keyed.ledger.history(TASK.name, "production")
    assert [row.chain for row in rows] == [None, *(digest_of(row.to_json()) for row in rows[:-1])]
    assert all(row.follows(before) for before, row in zip([None, *rows], rows, strict=False))


def test_a_signed_registry_comes_back_whole(keyed: Registry, tmp_path: Path) -> None:
    fresh = with_lost_ledger(keyed, tmp_path)
    assert not_done(fresh) == ""
    assert fresh.ledger.history(TASK.name) == keyed.ledger.history(TASK.name)
    assert fresh.ledger.releases() == keyed.ledger.releases()
    assert examine(fresh) == examine(keyed) == []


def test_every_believed_object_was_signed_before_it_was_written(keyed: Registry) -> None:
    for key in objects(keyed):
        keyed.store.read(key)


# ---------------------------------------------------------------- altered by somebody without a key


def _alter_history(registry: Registry) -> str:
    key = history_key(TASK.name, "production", 2)
    row = registry.ledger.promotion(TASK.name, "production", 2)
    assert row
    overwrite(registry.store, key, row.model_copy(update={"actor": "eve"}).model_dump_json(indent=1).encode())
    return key


def _alter_name(registry: Registry) -> str:
    key = version_key(TASK.name, 3)
    overwrite(registry.store, key, registry.store.read(key).body + b" ")
    return key


def _alter_release(registry: Registry) -> str:
    key = release_key("spring")
    overwrite(registry.store, key, registry.store.read(key).body.replace(b'"me"', b'"eve"'))
    return key


def _alter_snapshot(registry: Registry) -> str:
    [key] = [key for key in registry.store.keys("snapshots") if key.endswith("manifest.json")]
    overwrite(registry.store, key, registry.store.read(key).body.replace(b'"key"', b'"another"'))
    return key


def _forge_verdict(registry: Registry) -> str:
    """A failed prompt, with a dossier that says that it passed."""
    published(registry, TASK, 4, an_artifact(TASK, 3).digest, "failed")
    digest = an_artifact(TASK, 4).digest
    [key] = [key for key in registry.store.keys(prompt_prefix(TASK.name, digest)) if is_dossier(key)]
    dossier = json.loads(registry.store.read(key).body)
    dossier["verdict"]["passed"] = True
    for check in dossier["verdict"]["checks"]:
        check["passed"] = True
    body = json.dumps(dossier).encode()
    forged = dossier_key(TASK.name, digest, body)
    registry.store.unverified.create(forged, body)  # type: ignore[attr-defined]
    return forged


ALTERED: list[Callable[[Registry], str]] = [_alter_history, _alter_name, _alter_release, _forge_verdict]


@pytest.mark.parametrize("alter", ALTERED, ids=[alter.__name__.strip("_") for alter in ALTERED])
def test_what_nobody_signed_is_not_taken_into_a_lost_ledger(
    keyed: Registry, tmp_path: Path, alter: Callable[[Registry], str]
) -> None:
    key = alter(keyed)
    refused = not_done(with_lost_ledger(keyed, tmp_path))
    assert f"not taken: {key} is refused: PTP_TRUSTED_KEYS asks for a signature: nobody signed it" in refused


def test_a_forged_verdict_becomes_none(keyed: Registry, tmp_path: Path) -> None:
    _forge_verdict(keyed)
    fresh = with_lost_ledger(keyed, tmp_path)
    rebuild(fresh)
    verdicts = fresh.ledger.verdicts(TASK.name, an_artifact(TASK, 4).digest)
    assert [verdict.passed for verdict in verdicts] == [False]


@pytest.mark.parametrize("alter", ALTERED, ids=[alter.__name__.strip("_") for alter in ALTERED])
def test_a_signature_of_other_content_convinces_no_rebuild(
    keyed: Registry, tmp_path: Path, alter: Callable[[Registry], str]
) -> None:
    key = alter(keyed)
    bare = keyed.store.unverified  # type: ignore[attr-defined]
    body = bare.read(key).body
    other = next(bare.keys(signatures_prefix(pointer_key(TASK.name, "production"))))
    signature = signed(keyed, WORKER).store
    signature.sign(key, body)  # type: ignore[attr-defined]
    [place] = [at for at in bare.keys(signatures_prefix(key)) if bare.read(at).body and _is_newest(bare, at, key)]
    overwrite(keyed.store, place, bare.read(other).body)
    assert "and copied here" in not_done(with_lost_ledger(keyed, tmp_path))


def _is_newest(bare: object, at: str, key: str) -> bool:
    import hashlib

    return hashlib.sha256(bare.read(key).body).hexdigest() in at  # type: ignore[attr-defined]


def test_a_row_that_does_not_follow_the_one_before_is_not_taken(plain: Registry, tmp_path: Path) -> None:
    """Without keys too: two rows of one history, the older of them altered."""
    fill(plain)
    _alter_history(plain)
    refused = not_done(with_lost_ledger(plain, tmp_path))
    assert "000003.json does not follow promotion 2: its `chain` is the digest of another row" in refused


def test_the_doctor_tells_that_a_row_of_the_ledger_was_altered(plain: Registry) -> None:
    fill(plain)
    with plain.ledger.database.writing() as connection:
        connection.execute(text("DROP TRIGGER promotion_no_update"))  # whoever owns the database may
        connection.execute(update(tables.promotion).where(tables.promotion.c.seq == 1).values(actor="eve"))
    found = [(item.kind, item.what, item.found) for item in examine(plain) if "chain" in item.expected]
    assert found == [
        ("ledger", "promotion 2 of production in the ledger", "another one: a row of the history was altered")
    ]


def test_a_copied_release_set_is_refused(keyed: Registry, tmp_path: Path) -> None:
    """TUF's mix-and-match: a signed release under another name."""
    bare, key = keyed.store.unverified, release_key("summer")  # type: ignore[attr-defined]
    bare.create(key, bare.read(release_key("spring")).body)
    assert f"not taken: {key} is refused" in not_done(with_lost_ledger(keyed, tmp_path))


def test_an_altered_snapshot_is_refused(keyed: Registry) -> None:
    from ptpipeline.data.snapshot import encode_manifest, read_snapshot

    snapshot = keyed.ledger.snapshot(TASK.name, digest_of(TASK.name))
    assert snapshot
    key = snapshot_manifest_key(TASK.name, snapshot.digest)
    keyed.store.create(key, encode_manifest(snapshot))
    _alter_snapshot(keyed)
    with pytest.raises(ArtifactError, match=f"{key}: .*nobody signed it; .*`ptp sign"):
        read_snapshot(keyed.store, TASK.name, snapshot.digest)


# ---------------------------------------------------------------- put right again


def test_an_unsigned_pointer_is_refused_and_put_back(keyed: Registry) -> None:
    """Somebody without a key points production at a version that was signed once."""
    head = keyed.ledger.head(TASK.name, "production")
    assert head
    row = head.model_copy(update={"version": 1, "digest": an_artifact(TASK, 1).digest})
    key = pointer_key(TASK.name, "production")
    overwrite(keyed.store, key, Pointer(promotion=row, nonce="n" * 16).model_dump_json().encode())
    with pytest.raises(ArtifactError, match=f"{key}: .*nobody signed it"):
        resolve(keyed.store, TASK.name)
    assert [(item.kind, item.found) for item in examine(keyed)] == [("pointer", "no readable pointer")]
    assert all(action.done for action in reconcile(keyed, {}))
    assert resolve(keyed.store, TASK.name).number == 3
    assert examine(keyed) == []


def test_the_ledgers_own_row_in_an_unsigned_pointer_is_signed_again(keyed: Registry) -> None:
    head = keyed.ledger.head(TASK.name, "production")
    assert head
    key = pointer_key(TASK.name, "production")
    overwrite(keyed.store, key, Pointer(promotion=head, nonce="n" * 16).model_dump_json().encode())
    reconcile(keyed, {})
    assert resolve(keyed.store, TASK.name).number == 3


@pytest.mark.parametrize("damage", [None, b"no signature"])
def test_the_doctor_names_a_plot_that_pages_leave_out(keyed: Registry, damage: bytes | None) -> None:
    """Its bytes are right, and its signature is gone or damaged: readers refuse it."""
    bare = keyed.store.unverified  # type: ignore[attr-defined]
    [key] = [key for key in bare.keys(prompt_prefix(TASK.name, an_artifact(TASK, 2).digest)) if "/plots/" in key]
    [signature] = bare.keys(signatures_prefix(key))
    bare.delete(signature)
    if damage is not None:
        bare.create(signature, damage)
    [difference] = examine(keyed)
    assert (difference.what, difference.mend, difference.safe) == (f"object {key}", f"ptp sign {TASK.name}", False)
    assert "PTP_TRUSTED_KEYS asks for a signature" in difference.found
    bare.delete(signature)
    assert all(action.done for action in sign_task(keyed, keyed.store, TASK.name))  # type: ignore[arg-type]
    assert examine(keyed) == []


def test_a_plot_that_was_altered_is_told_once(keyed: Registry) -> None:
    """Its signature is of other bytes, too: setting it aside mends both."""
    [key] = [key for key in keyed.store.keys(prompt_prefix(TASK.name, an_artifact(TASK, 2).digest)) if "/plots/" in key]
    overwrite(keyed.store, key, b"another image")
    assert [(found.what, found.mend) for found in examine(keyed)] == [(f"object {key}", "ptp doctor --fix")]


def test_mistakes_that_nobody_signed_are_told(keyed: Registry) -> None:
    mistakes = Mistakes(shown=[], wrong=1, rows=20, figure="probability")
    register(keyed, replace(a_request(TASK, 2), mistakes=mistakes))
    made = keyed.ledger.publication(TASK.name, an_artifact(TASK, 2).digest)
    assert made
    for signature in [*keyed.store.keys(signatures_prefix(str(made.mistakes)))]:
        keyed.store.delete(signature)
    assert [found.what for found in examine(keyed)] == [f"object {made.mistakes}"]


@pytest.mark.parametrize("alter", [_alter_history, _alter_name, _forge_verdict])
def test_the_doctor_mends_what_nobody_signed(keyed: Registry, alter: Callable[[Registry], str]) -> None:
    alter(keyed)
    differences = examine(keyed)
    assert differences
    assert all(difference.safe for difference in differences)
    fix(keyed, {}, differences)
    assert examine(keyed) == []


def test_a_release_whose_signature_is_gone_is_signed_again(keyed: Registry) -> None:
    for signature in [*keyed.store.keys(signatures_prefix(release_key("spring")))]:
        keyed.store.delete(signature)
    differences = examine(keyed)
    assert [found.kind for found in differences] == ["release"]
    fix(keyed, {}, differences)
    assert examine(keyed) == []


def test_a_forged_pointer_that_is_ahead_stops_no_promotion(keyed: Registry) -> None:
    head = keyed.ledger.head(TASK.name, "production")
    assert head
    ahead = Pointer(promotion=head.model_copy(update={"seq": 99}), nonce="n" * 16)
    overwrite(keyed.store, pointer_key(TASK.name, "production"), ahead.model_dump_json().encode())
    promote(keyed, TASK, 1, Cause("me", "why", override=True))
    assert resolve(keyed.store, TASK.name).number == 1


@pytest.mark.parametrize("move", [promote, rollback])
@pytest.mark.parametrize("is_row", [True, False])
def test_what_nobody_signed_in_the_history_stops_no_promotion(keyed: Registry, is_row: bool, move: Any) -> None:
    """Whoever may only write to the store must not keep a bad version in production."""
    head = keyed.ledger.head(TASK.name, "production")
    assert head
    row = head.model_copy(update={"seq": 4, "version": 1, "previous": 3, "chain": head.row_digest()})
    key, body = history_object(row)
    keyed.store.unverified.create(key, body if is_row else b"no row")  # type: ignore[attr-defined]
    if move is promote:
        promote(keyed, TASK, 2, Cause("me", "why", override=True))
    else:
        rollback(keyed, TASK.name, ME)
    assert resolve(keyed.store, TASK.name).number == 2
    assert examine(keyed) == []


def test_a_release_that_nobody_signed_takes_no_name(keyed: Registry) -> None:
    spring = keyed.ledger.release("spring")
    assert spring
    forged = spring.model_copy(update={"name": "summer", "actor": "eve"})
    keyed.store.unverified.create(release_key("summer"), encode_release(forged))  # type: ignore[attr-defined]
    own = spring.model_copy(update={"name": "summer", "versions": {TASK.name: 2}})
    promote_release(keyed, {TASK.name: TASK}, own, replace(ME, override=True))
    fix(keyed, {}, examine(keyed))
    assert keyed.store.read(release_key("summer")).body == encode_release(own)
    assert examine(keyed) == []


def test_a_forged_pointer_with_a_forged_history_is_put_back(keyed: Registry) -> None:
    """What nobody signed does not make a ledger an older one."""
    head = keyed.ledger.head(TASK.name, "production")
    assert head
    ahead = head.model_copy(update={"seq": 4, "chain": head.row_digest()})
    bare = keyed.store.unverified  # type: ignore[attr-defined]
    bare.create(history_key(TASK.name, "production", 4), ahead.model_dump_json(indent=1).encode())
    forged = Pointer(promotion=ahead, nonce="n" * 16).model_dump_json().encode()
    overwrite(keyed.store, pointer_key(TASK.name, "production"), forged)
    assert all(action.done for action in reconcile(keyed, {}))
    assert resolve(keyed.store, TASK.name).number == 3
