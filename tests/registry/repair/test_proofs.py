"""A rebuild: what the store proves and what it does not, piece by piece; withheld texts stay withheld."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_report, a_request, a_task, a_verdict, an_artifact, published
from ptpipeline.errors import ArtifactError
from ptpipeline.evaluation.mistakes import Mistake, Mistakes
from ptpipeline.prompts.artifact import write_artifact
from ptpipeline.records.versions import Beside
from ptpipeline.storage.keys import (
    history_key,
    pointer_key,
    prompt_prefix,
    release_key,
    split_key,
    tensors_key,
    version_key,
)
from ptpipeline.task.task import Task
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger.ledger import Ledger, Release
from registry.ledger.tombstone import Tombstone
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.rebuild import rebuild
from registry.versions.commit import Cause, write_release
from registry.versions.dossier import Dossier, check_dossier, write_dossier
from registry.versions.promotion import promote
from registry.versions.publish import load_card, register, remember, stage, withhold_texts
from tests.registry.repair.test_second_look import an_ensemble

ME = Cause("me", "because")


@pytest.fixture
def after(plain: Registry, tmp_path: Path) -> Registry:
    """The registry after its ledger was lost."""
    return Registry(Ledger(f"sqlite:///{tmp_path}/after.db"), plain.store)


def not_taken(registry: Registry) -> list[str]:
    return [action.what for action in rebuild(registry) if not action.done]


# ---------------------------------------------------------------- withheld, deleted, newer


def test_withheld_texts_do_not_come_back(plain: Registry, task: Task, after: Registry) -> None:
    worst = Mistake(text="A secret.", wanted="good", answered="bad", figure=0.9)
    shown = Mistakes(shown=[worst], wrong=1, rows=20, figure="probability")
    stage(plain.ledger, plain.store, an_artifact(task, 1))
    register(plain, replace(a_request(task, 1), mistakes=shown))
    assert [found.mistakes is None for found in plain.ledger.publications_with_texts(task.name)] == [False]
    withhold_texts(plain, task.name)
    rebuild(after)
    assert after.ledger.publications_with_texts(task.name) == []
    assert load_card(after, task.name, an_artifact(task, 1).digest).provenance.mistakes is None


def test_a_version_whose_bytes_were_collected_comes_back_as_collected(
    plain: Registry, task: Task, after: Registry
) -> None:
    for seed in (1, 2):
        published(plain, task, seed)
    collect(plain, Retention(candidates=1, grace=timedelta(0)), apply=True)
    told = [action.what for action in rebuild(after)]
    assert [version.collected for version in after.ledger.versions(task.name)] == [False, True]
    assert any("version 1 is prompt" in what and "whose bytes were deleted" in what for what in told)
    assert examine(after) == []


def test_a_pointer_that_cannot_be_read_is_told(plain: Registry, task: Task, after: Registry) -> None:
    promote(plain, task, published(plain, task, 1), ME)
    key = pointer_key(task.name, "production")
    plain.store.replace(key, b"{}", plain.store.read(key).etag)
    assert not_taken(after) == [
        f"not taken: {key} is the pointer to a promotion that the history does not hold",
    ]


def test_a_version_comes_back_as_old_as_its_name(plain: Registry, task: Task, after: Registry, tmp_path: Path) -> None:
    published(plain, task, 1)
    os.utime(tmp_path / "store" / version_key(task.name, 1), (1e9, 1e9))
    rebuild(after)
    assert after.ledger.version(task.name, 1).registered_at.startswith("2001-09-09T01:46:40")


def test_a_promoted_version_whose_bytes_are_gone_is_lost_and_not_collected(
    plain: Registry, task: Task, after: Registry
) -> None:
    promote(plain, task, published(plain, task, 1), ME, "canary")
    for key in plain.store.keys(prompt_prefix(task.name, an_artifact(task, 1).digest)):
        plain.store.delete(key)
    rebuild(after)
    assert not after.ledger.version(task.name, 1).collected
    assert "bytes" in {difference.kind for difference in examine(after)}


def test_a_rebuild_over_a_living_ledger_keeps_what_is_newer_there(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    report = a_report(an_artifact(task, 1), 0.9)
    good = a_verdict(task, report, None)
    worse = good.model_copy(
        update={
            "gate_key": "b" * 64,
            "passed": False,
            "checks": [check.model_copy(update={"passed": False}) for check in good.checks],
        }
    )
    publication = plain.ledger.publication(task.name, report.digest)
    assert publication is not None
    write_dossier(plain.store, Dossier(publication=publication, report=report, verdict=worse))
    plain.ledger.save_verdict(worse)
    plain.ledger.save_verdict(good)  # the question was asked again, and its dossier is as old as before
    rebuild(plain)
    assert plain.ledger.latest_verdict(task.name, report.digest) == good


def test_records_of_a_prompt_that_was_never_stored_are_no_publish(plain: Registry, task: Task, after: Registry) -> None:
    remember(plain, a_request(task, 1))
    rebuild(after)
    assert after.ledger.intents() == []


def test_records_of_an_altered_prompt_without_a_number_are_not_taken(
    plain: Registry, task: Task, after: Registry
) -> None:
    write_artifact(plain.store, an_artifact(task, 1))
    remember(plain, a_request(task, 1))
    key = tensors_key(task.name, an_artifact(task, 1).digest)
    plain.store.replace(key, b"altered", plain.store.read(key).etag)
    rebuild(after)
    assert after.ledger.publication(task.name, an_artifact(task, 1).digest) is None
    assert after.ledger.intents() == []


def test_records_of_a_version_are_no_publish(plain: Registry, task: Task, after: Registry) -> None:
    published(plain, task, 1)
    rebuild(after)
    assert after.ledger.intents() == []


def test_what_the_ledger_knows_as_collected_is_no_publish(plain: Registry, task: Task) -> None:
    write_artifact(plain.store, an_artifact(task, 1))
    remember(plain, a_request(task, 1))
    assert Tombstone(plain.ledger.database, task.name, an_artifact(task, 1).digest).bury(lambda _: False)
    rebuild(plain)
    assert plain.ledger.intents() == []


def test_rows_of_a_snapshot_without_its_manifest_are_no_snapshot(plain: Registry, task: Task, after: Registry) -> None:
    plain.store.create(split_key(task.name, "a" * 64, "train"), b"of an ingest that was killed")
    assert rebuild(after) == []


# ---------------------------------------------------------------- releases


def a_release(task: Task, name: str = "spring", number: int = 1) -> Release:
    return Release(name=name, actor="me", reason="why", versions={task.name: number}, at="2026-01-01")


def test_a_release_under_another_name_is_not_taken(plain: Registry, task: Task, after: Registry) -> None:
    published(plain, task, 1)
    plain.store.create(release_key("autumn"), a_release(task).model_dump_json().encode())
    assert ["altered or copied" in what for what in not_taken(after)] == [True]
    assert after.ledger.releases() == []


def test_a_release_of_versions_that_are_not_registered_is_not_taken(
    plain: Registry, task: Task, after: Registry
) -> None:
    published(plain, task, 1)
    write_release(plain.store, a_release(task, number=2))
    assert ["no version 2" in what for what in not_taken(after)] == [True]
    assert after.ledger.releases() == []


def test_another_release_of_a_known_name_is_not_taken(plain: Registry, task: Task) -> None:
    published(plain, task, 1), published(plain, task, 2)
    plain.ledger.append_release(a_release(task), [])
    write_release(plain.store, a_release(task, number=2))
    assert ["another release of that name" in what for what in not_taken(plain)] == [True]
    assert plain.ledger.releases() == [a_release(task)]


def test_what_is_no_release_is_not_taken(plain: Registry, after: Registry) -> None:
    plain.store.create(release_key("spring"), b"{}")
    assert ["is no release" in what for what in not_taken(after)] == [True]


def test_a_release_that_is_known_is_not_taken_again(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    plain.ledger.append_release(a_release(task), [])
    write_release(plain.store, a_release(task))
    assert rebuild(plain) == []


# ---------------------------------------------------------------- promotions and names


def cited(registry: Registry, task: Task, kind: str) -> str:
    """The verdict of that kind over version 2, which is registered with a failed and then a passed one."""
    request = a_request(task, 2, passed=kind == "passed")
    assert request.verdict is not None
    return request.verdict.verdict_digest()


@pytest.mark.parametrize(("verdict", "override", "taken"), [("failed", False, False), ("failed", True, True)])
def test_a_failed_verdict_takes_nothing_to_production_unless_overridden(
    plain: Registry, task: Task, after: Registry, verdict: str, override: bool, taken: bool
) -> None:
    head = promote(plain, task, published(plain, task, 1), ME)
    published(plain, task, 2, kind="failed")
    second = an_artifact(task, 2).digest
    changes = {"seq": 2, "version": 2, "previous": 1, "digest": second, "verdict": cited(plain, task, verdict)}
    row = head.model_copy(update=changes | {"override": override})
    plain.store.create(history_key(task.name, "production", 2), row.model_dump_json().encode())
    rebuild(after)
    assert [found.version for found in after.ledger.history(task.name)] == ([1, 2] if taken else [1])


@pytest.mark.parametrize(
    ("alias", "verdict", "changes", "taken"),
    [
        ("production", "failed", {}, False),
        ("production", "nowhere", {}, False),
        ("production", "first", {}, False),
        ("production", "failed", {"override": True}, True),
        ("production", "failed", {"percent": 0}, True),
        ("production", "failed", {"percent": 0, "digest": "a" * 64}, False),
        ("canary", "failed", {}, True),
    ],
)
def test_what_answers_beside_production_needs_a_passed_verdict_of_its_own(
    plain: Registry, task: Task, after: Registry, alias: str, verdict: str, changes: dict[str, object], taken: bool
) -> None:
    head = promote(plain, task, published(plain, task, 1), ME, alias)
    published(plain, task, 2, kind="failed")
    verdicts = {"failed": cited(plain, task, "failed"), "nowhere": "d" * 64, "first": head.verdict}
    beside = {"version": 2, "digest": an_artifact(task, 2).digest, "percent": 10, "verdict": verdicts[verdict]}
    row = head.model_copy(update={"seq": 2, "previous": 1, "beside": Beside.model_validate(beside | changes)})
    plain.store.create(history_key(task.name, alias, 2), row.model_dump_json().encode())
    rebuild(after)
    assert [found.seq for found in after.ledger.history(task.name, alias)] == ([1, 2] if taken else [1])


def test_an_alias_without_a_gate_needs_no_verdict(plain: Registry, task: Task, after: Registry) -> None:
    head = promote(plain, task, published(plain, task, 1, kind="failed"), ME, "canary")
    rebuild(after)
    assert after.ledger.history(task.name) == [head]


@pytest.mark.parametrize("digest", ["g" * 64, "a" * 63, "a" * 65])
def test_a_name_of_what_is_no_digest_is_not_taken(plain: Registry, task: Task, after: Registry, digest: str) -> None:
    body = f'{{"schema_version": 1, "task": "{task.name}", "number": 1, "digest": "{digest}"}}'
    plain.store.create(version_key(task.name, 1), body.encode())
    (what,) = not_taken(after)
    assert "belongs to nowhere" in what or "is no VersionName" in what
    assert after.ledger.versions() == []


@pytest.mark.parametrize("number", [2, 11])
def test_a_name_copied_to_another_number_is_not_taken(
    plain: Registry, task: Task, after: Registry, number: int
) -> None:
    published(plain, task, 1)
    body = plain.store.read(version_key(task.name, 1)).body
    plain.store.create(version_key(task.name, number), body)
    assert ["altered or copied" in what for what in not_taken(after)] == [True]
    assert [version.number for version in after.ledger.versions()] == [1]


# ---------------------------------------------------------------- dossiers


ALTERED: dict[str, tuple[str, Callable[[Task, Dossier], dict[str, object]]]] = {
    "a report of another prompt": (
        "of another prompt",
        lambda task, dossier: {"report": a_report(an_artifact(task, 2), 0.9)},
    ),
    "a verdict of another prompt": (
        "of another prompt",
        lambda task, dossier: {"verdict": a_verdict(task, a_report(an_artifact(task, 2), 0.9), None)},
    ),
    "a report of another task": (
        "of another prompt",
        lambda task, dossier: {
            "report": dossier.report.model_copy(update={"task": "another"})  # type: ignore[union-attr]
        },
    ),
    "no time": ("is no time in UTC", lambda task, dossier: {"judged_at": "9" * 32}),
    "no time of any day": ("is no time in UTC", lambda task, dossier: {"judged_at": "2026-02-30T00:00:00+00:00"}),
    "a failed verdict that says passed": (
        "its verdict contradicts its checks",
        lambda task, dossier: {
            "verdict": dossier.verdict.model_copy(update={"passed": False})  # type: ignore[union-attr]
        },
    ),
}


@pytest.mark.parametrize("altered", ALTERED)
def test_a_dossier_that_contradicts_itself_is_refused(plain: Registry, task: Task, altered: str) -> None:
    published(plain, task, 1)
    request = a_request(task, 1)
    publication = plain.ledger.publication(task.name, an_artifact(task, 1).digest)
    assert publication is not None
    sound = Dossier(publication=publication, report=request.report, verdict=request.verdict)
    why, change = ALTERED[altered]
    key = write_dossier(plain.store, sound.model_copy(update=change(task, sound)))
    with pytest.raises(ArtifactError, match=why):
        check_dossier(key, plain.store.read(key).body)


def test_a_dossier_at_another_place_is_refused(plain: Registry, task: Task) -> None:
    published(plain, task, 1)
    key = next(iter(plain.store.keys(f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/records")))
    body = plain.store.read(key).body
    for place in (key.replace(task.name, "another"), key.replace(key.rsplit("/", 1)[-1], f"{'0' * 16}.json")):
        with pytest.raises(ArtifactError, match="its content belongs to another key"):
            check_dossier(place, body)
    assert check_dossier(key, body).publication.tuned.task == task.name


def test_an_ensemble_without_its_member_is_not_believed(plain: Registry, task: Task, after: Registry) -> None:
    members = an_ensemble(plain, task)
    key = f"{prompt_prefix(task.name, members[0].digest)}/manifest.json"
    plain.store.delete(key)
    assert any("its member" in what for what in not_taken(after))
    assert after.ledger.versions() == []


def test_one_task_with_an_altered_prompt_keeps_no_other_from_coming_back(
    plain: Registry, task: Task, after: Registry
) -> None:
    other = a_task(f"{task.name}-b")
    for each in (task, other):
        published(plain, each, 1)
    key = f"{prompt_prefix(task.name, an_artifact(task, 1).digest)}/prompt.safetensors"
    plain.store.replace(key, b"altered", plain.store.read(key).etag)
    assert len(not_taken(after)) == 1
    assert [version.task for version in after.ledger.versions()] == [other.name]
