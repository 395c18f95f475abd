"""Signing what lies in the store: by the ledger's word, before the ledger's row, and under another key."""

from dataclasses import replace
from datetime import timedelta

import pytest

from benchmarks.fixtures.prompts import a_request, a_snapshot, an_artifact, published
from ptpipeline.data.snapshot import encode_manifest
from ptpipeline.errors import ArtifactError, PromotionConflict, PromotionRefused, SettingsError
from ptpipeline.evaluation.mistakes import Mistake, Mistakes
from ptpipeline.prompts.artifact import read_artifact, read_ensemble
from ptpipeline.records.versions import Promotion
from ptpipeline.serving.resolver import resolve
from ptpipeline.storage.addresses import is_dossier
from ptpipeline.storage.keys import (
    dossier_key,
    dossiers_prefix,
    history_key,
    pointer_key,
    prompt_prefix,
    release_key,
    signatures_prefix,
    snapshot_manifest_key,
    version_key,
)
from ptpipeline.storage.signed import is_accepted
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger.ledger import Ledger, Move, Release
from registry.ledger.tombstone import Tombstone
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.versions.commit import Cause, commit, encode_release
from registry.versions.dossier import stored_verdicts
from registry.versions.naming import encode_name, name_version
from registry.versions.promotion import promote
from registry.versions.publish import register, stage
from registry.versions.sign import sign_task, sign_version
from tests.registry.repair.test_second_look import an_ensemble
from tests.registry.signed import ADA, TASK, WORKER, fill, objects, overwrite, signed


def test_without_a_key_nothing_is_promoted_that_readers_would_refuse(keyed: Registry) -> None:
    keyless = signed(keyed, None, WORKER)
    with pytest.raises(SettingsError, match="PTP_TRUSTED_KEYS is set and PTP_SIGNING_KEY is not"):
        promote(keyless, TASK, 1, Cause("me", "why", override=True))
    assert len(keyed.ledger.history(TASK.name)) == 3


class Overtaken(Ledger):
    """A ledger in which a rival promotes between the draft of a row and its insertion."""

    def draft(self, move: Move) -> Promotion:
        row = super().draft(move)
        self.append(move.model_copy(update={"actor": "rival"}))
        return row


def test_a_promotion_that_lost_leaves_no_signature(keyed: Registry) -> None:
    move = Move(task=TASK.name, alias="production", version=1, actor="late", reason="why", expected=3)
    with pytest.raises(PromotionConflict):
        commit(replace(keyed, ledger=Overtaken(keyed.ledger.url)), [move])
    assert [*keyed.store.keys(signatures_prefix(history_key(TASK.name, "production", 4)))] == []


def test_a_promotion_of_what_is_being_deleted_leaves_no_signature(keyed: Registry) -> None:
    assert Tombstone(keyed.ledger.database, TASK.name, an_artifact(TASK, 1).digest).bury(lambda _: False)
    move = Move(task=TASK.name, alias="production", version=1, actor="late", reason="why", expected=3)
    with pytest.raises(PromotionRefused):
        commit(keyed, [move])
    assert [*keyed.store.keys(signatures_prefix(history_key(TASK.name, "production", 4)))] == []


def test_a_draft_is_the_row_that_is_inserted(keyed: Registry) -> None:
    move = Move(task=TASK.name, alias="production", version=1, actor="me", reason="why", expected=3)
    assert keyed.ledger.draft(move) == keyed.ledger.append(move)
    with pytest.raises(PromotionConflict):
        keyed.ledger.draft(move)


def test_everything_that_was_stored_without_keys_is_signed_by_the_ledger(plain: Registry) -> None:
    fill(plain)
    reader = signed(plain, None, WORKER)
    with pytest.raises(ArtifactError):
        resolve(reader.store, TASK.name)
    signer = signed(plain, WORKER)
    actions = sign_task(signer, signer.store, TASK.name)  # type: ignore[arg-type]
    assert [action.what for action in actions if not action.done] == []
    assert resolve(reader.store, TASK.name).number == 3
    assert resolve(reader.store, f"{TASK.name}@1").number == 1
    assert examine(signed(plain, WORKER, WORKER)) == []
    for key in objects(plain):
        reader.store.read(key)


def test_signing_again_with_another_key_lets_the_old_one_go(keyed: Registry) -> None:
    both = signed(keyed, ADA, WORKER, ADA)
    assert all(action.done for action in sign_task(both, both.store, TASK.name))  # type: ignore[arg-type]
    assert resolve(signed(keyed, None, ADA).store, TASK.name).number == 3
    assert examine(signed(keyed, ADA, ADA)) == []


def test_one_version_is_signed_with_its_number(plain: Registry) -> None:
    fill(plain)
    signer = signed(plain, WORKER)
    sign_version(signer, signer.store, plain.ledger.version(TASK.name, 2))  # type: ignore[arg-type]
    reader = signed(plain, None, WORKER)
    assert resolve(reader.store, f"{TASK.name}@2").number == 2
    with pytest.raises(ArtifactError, match="nobody signed it"):
        resolve(reader.store, f"{TASK.name}@1")


def test_what_the_ledger_does_not_say_is_not_signed(plain: Registry) -> None:
    """Without keys a foreign dossier and an altered plot lie there; signing the task leaves the one and tells the
    other.
    """
    fill(plain)
    forged = _forged_plain(plain)
    [plot] = [key for key in plain.store.keys(prompt_prefix(TASK.name, an_artifact(TASK, 1).digest)) if "plots" in key]
    overwrite(plain.store, plot, b"another image")
    signer = signed(plain, WORKER)
    refused = [
        action.what
        for action in sign_task(signer, signer.store, TASK.name)  # type: ignore[arg-type]
        if not action.done
    ]
    assert [plot in sentence and "not the content that its key names" in sentence for sentence in refused] == [True]
    with pytest.raises(ArtifactError, match="nobody signed it"):
        signed(plain, None, WORKER).store.read(forged)


def test_a_pointer_that_is_written_otherwise_than_by_us_is_not_signed(plain: Registry) -> None:
    """Its bytes show the head, and whoever put a blank there could have put more."""
    fill(plain)
    key = pointer_key(TASK.name, "production")
    overwrite(plain.store, key, plain.store.read(key).body + b" ")
    signer = signed(plain, WORKER)
    actions = sign_task(signer, signer.store, TASK.name)  # type: ignore[arg-type]
    [refused] = [action.what for action in actions if not action.done]
    assert f"{key}: not written by `ptp`; remove it, run `ptp reconcile {TASK.name}`" in refused
    with pytest.raises(ArtifactError, match="nobody signed it"):
        signed(plain, None, WORKER).store.read(key)


def sign_all(registry: Registry) -> Registry:
    """Sign the task with the worker's key; the registry as a reader opens it then."""
    signer = signed(registry, WORKER)
    actions = sign_task(signer, signer.store, TASK.name)  # type: ignore[arg-type]
    assert [action.what for action in actions if not action.done] == []
    return signed(registry, None, WORKER)


def test_a_version_that_nobody_judged_is_signed_with_its_dossier(plain: Registry) -> None:
    stage(plain.ledger, plain.store, an_artifact(TASK))
    register(plain, replace(a_request(TASK), verdict=None))
    reader = sign_all(plain)
    for key in objects(plain):
        reader.store.read(key)


def test_a_dossier_that_is_missing_is_written_and_signed(plain: Registry) -> None:
    fill(plain)
    digest = plain.ledger.version(TASK.name, 1).digest
    for key in filter(is_dossier, [*plain.store.keys(dossiers_prefix(TASK.name, digest))]):
        plain.store.delete(key)
    reader = sign_all(plain)
    assert stored_verdicts(reader.store, TASK.name, digest) == plain.ledger.verdict_times(TASK.name, digest).keys()


def test_the_members_of_an_ensemble_are_signed_with_it(plain: Registry) -> None:
    members = an_ensemble(plain, TASK)
    reader = sign_all(plain)
    whole = read_artifact(reader.store, TASK.name, plain.ledger.version(TASK.name, 1).digest)
    assert read_ensemble(reader.store, whole) == members


def test_texts_that_were_deleted_keep_nothing_from_being_signed(plain: Registry) -> None:
    worst = Mistake(text="A secret.", wanted="good", answered="bad", figure=0.9)
    stage(plain.ledger, plain.store, an_artifact(TASK))
    shown = Mistakes(shown=[worst], wrong=1, rows=20, figure="probability")
    register(plain, replace(a_request(TASK), mistakes=shown))
    publication = plain.ledger.publication(TASK.name, an_artifact(TASK).digest)
    assert publication
    assert publication.mistakes
    plain.store.delete(publication.mistakes)
    sign_all(plain)


def test_a_version_whose_bytes_were_collected_is_not_signed(plain: Registry) -> None:
    for seed in (1, 2):
        published(plain, TASK, seed)
    collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True)
    assert resolve(sign_all(plain).store, f"{TASK.name}@2").number == 2


def test_a_release_of_other_tasks_and_an_unknown_snapshot_are_not_signed_with_the_task(plain: Registry) -> None:
    fill(plain)
    other = Release(name="autumn", actor="me", reason="why", versions={"other": 1}, at="2026-01-01T00:00:00+00:00")
    plain.ledger.append_release(other, [])
    plain.store.create(snapshot_manifest_key(TASK.name, "d" * 64), b"{}")
    reader = sign_all(plain)
    assert not plain.store.exists(release_key("autumn"))
    with pytest.raises(ArtifactError, match="nobody signed it"):
        reader.store.read(snapshot_manifest_key(TASK.name, "d" * 64))


@pytest.mark.parametrize(
    ("said", "forged"), [(b'"best_dev":0.75', b'"best_dev":0.95'), (b'"accuracy":0.9', b'"accuracy":0.99')]
)
def test_a_dossier_of_another_training_or_report_is_not_signed(plain: Registry, said: bytes, forged: bytes) -> None:
    published(plain, TASK, 0)
    digest = an_artifact(TASK).digest
    [key] = [key for key in plain.store.keys(prompt_prefix(TASK.name, digest)) if is_dossier(key)]
    body = plain.store.read(key).body
    assert said in body
    other = dossier_key(TASK.name, digest, body.replace(said, forged))
    plain.store.create(other, body.replace(said, forged))
    reader = sign_all(plain)
    assert reader.store.read(key).body == body
    with pytest.raises(ArtifactError, match="nobody signed it"):
        reader.store.read(other)


def test_a_name_that_was_stored_without_a_key_is_signed_when_the_version_is_named_again(plain: Registry) -> None:
    fill(plain)
    version, signer = plain.ledger.version(TASK.name, 1), signed(plain, WORKER, WORKER)
    assert [name_version(signer.store, version) for _ in range(2)] == [True, False]
    assert is_accepted(signer.store, version_key(TASK.name, 1), encode_name(version))


def test_what_the_ledger_can_tell_is_written_before_it_is_signed(plain: Registry) -> None:
    fill(plain)
    pointer, name = pointer_key(TASK.name, "production"), version_key(TASK.name, 3)
    snapshot = a_snapshot(TASK)
    plain.store.delete(pointer)
    plain.store.delete(name)
    plain.store.create(snapshot_manifest_key(TASK.name, snapshot.digest), b"{}")
    reader = sign_all(plain)
    assert [resolve(reader.store, asked).number for asked in (TASK.name, f"{TASK.name}@3")] == [3, 3]
    assert reader.store.read(snapshot_manifest_key(TASK.name, snapshot.digest)).body == encode_manifest(snapshot)


def test_a_release_is_signed_before_the_ledger_holds_it(keyed: Registry) -> None:
    release = Release(name="autumn", actor="me", reason="why", versions={TASK.name: 1}, at="2026-01-01T00:00:00+00:00")
    commit(keyed, [], release)
    assert not keyed.store.exists(release_key("autumn"))
    assert is_accepted(keyed.store, release_key("autumn"), encode_release(release))


def _forged_plain(registry: Registry) -> str:
    provenance = a_request(TASK, 2, an_artifact(TASK, 1).digest)
    digest = an_artifact(TASK, 2).digest
    [key] = [key for key in registry.store.keys(prompt_prefix(TASK.name, digest)) if is_dossier(key)]
    assert provenance.verdict
    body = registry.store.read(key).body.replace(b'"0.90"', b'"0.99"')
    forged = dossier_key(TASK.name, digest, body)
    registry.store.create(forged, body)
    return forged
