"""What a machine promotes, which verdicts are renewed, and what a person promotes."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_request, a_task, an_artifact
from flows.stages.context import Context
from flows.stages.promote import judge_again, move, move_release, promote
from ptpipeline.errors import DataError, NotFound, PromotionConflict, PromotionRefused
from ptpipeline.gate.decide import APPROVAL
from ptpipeline.records.base import now
from ptpipeline.records.verdicts import Check, Verdict
from ptpipeline.records.versions import PromptVersion
from ptpipeline.task.task import Task
from registry.ledger import tables
from registry.ledger.approvals import find_standing
from registry.ledger.ledger import Move, Release
from registry.ledger.tombstone import Tombstone
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.promotion import rollback
from registry.versions.publish import register, stage
from tests.flows.stages.test_approve import declare
from tests.flows.stages.test_evidence import anchor_after, judged
from tests.registry.signed import ADA, public_line

ME = Cause("me", "because")


# ---------------------------------------------------------------- what a machine promotes


def candidate(context: Context, task: Task, seed: int = 1, **verdict: Any) -> tuple[PromptVersion, Verdict]:
    version = judged(context, task, seed, None)
    found = context.registry.ledger.latest_verdict(task.name, version.digest)
    assert found is not None
    return version, found.model_copy(update=verdict)


def auto(**fields: Any) -> Task:
    return Task.model_validate(a_task().model_dump(mode="json", exclude_unset=True) | {"promote": "auto"} | fields)


def test_a_machine_promotes_what_passed(context: Context) -> None:
    head = promote(context, auto(), *candidate(context, auto()))
    assert head is not None
    assert (head.version, head.actor) == (1, "nightly")
    assert head.reason == "passed the gate: 1 checks, the first to do so"
    challenger = judged(context, auto(), 2, 1)
    verdict = context.registry.ledger.latest_verdict("mood", challenger.digest)
    assert verdict is not None
    head = promote(context, auto(), challenger, verdict, "ann")
    assert head is not None
    assert (head.actor, head.reason) == ("ann", "passed the gate: 1 checks, accuracy +0.0200 against the champion")


def test_what_somebody_promoted_and_died_is_shown_by_the_next_night_whatever_it_finds(context: Context) -> None:
    version, verdict = candidate(context, auto())
    context.registry.ledger.append(
        Move(task="mood", alias="production", version=version.number, actor="me", reason="why", expected=0)
    )
    assert promote(context, auto(), version, verdict) is None  # it was promoted before
    assert context.registry.store.exists("prompts/mood/aliases/production.json")


def test_a_machine_leaves_it_to_a_person_if_the_task_says_so(context: Context) -> None:
    assert promote(context, auto(promote="manual"), *candidate(context, auto())) is None


def test_a_machine_promotes_nothing_that_failed(context: Context) -> None:
    assert promote(context, auto(), *candidate(context, auto(), passed=False)) is None


def test_a_machine_promotes_nothing_that_was_not_compared(context: Context) -> None:
    check = Check(name="champion", passed=True, observed="they answer other labels", required=APPROVAL)
    version, verdict = candidate(context, auto(), checks=[check])
    assert promote(context, auto(), version, verdict) is None
    assert find_standing(context.registry.ledger.database, "mood", version.digest) is not None


def test_a_machine_does_not_take_back_what_a_person_rolled_back(context: Context) -> None:
    task = auto()
    anchor_after(context, task, (1, None, None, ME), (2, 1, None, ME))
    rollback(context.registry, task.name, ME)
    second = context.registry.ledger.version(task.name, 2)
    judged(context, task, 2, 1)
    verdict = context.registry.ledger.latest_verdict(task.name, second.digest)
    assert verdict is not None
    assert promote(context, task, second, verdict) is None


def test_a_candidate_waits_for_people_while_two_versions_stand_beside_each_other(context: Context) -> None:
    task = auto()
    anchor_after(context, task, (1, None, None, ME))
    judged(context, task, 2, 1)
    third = judged(context, task, 3, 1)
    place_beside(context.registry, task, 2, 10, ME)
    verdict = context.registry.ledger.latest_verdict(task.name, third.digest)
    assert verdict is not None
    assert promote(context, task, third, verdict) is None
    waiting = find_standing(context.registry.ledger.database, task.name, third.digest)
    assert waiting is not None
    assert waiting.request.version == 3
    rollback(context.registry, task.name, ME)
    head = promote(context, task, third, verdict)
    assert head is not None
    assert head.version == 3


# ---------------------------------------------------------------- judged again


def is_judged_again(context: Context, task: Task, version: int) -> bool:
    """Whether the version is evaluated anew, which asks for rows that these tests do not have."""
    try:
        judge_again(context, task, context.registry.ledger.version(task.name, version))
    except DataError:
        return True
    return False


def test_an_outdated_verdict_is_renewed(context: Context) -> None:
    task = a_task()
    rival = judged(context, task, 2, None)
    anchor_after(context, task, (1, None, None, ME))
    assert is_judged_again(context, task, rival.number)


def test_a_verdict_under_another_policy_is_renewed(context: Context) -> None:
    version = judged(context, a_task(), 1, None)
    assert is_judged_again(context, a_task(minimum=0.85), version.number)


def test_a_verdict_of_today_is_not_renewed(context: Context) -> None:
    version = judged(context, a_task(), 1, None)
    assert not is_judged_again(context, a_task(), version.number)


def test_a_verdict_over_what_did_not_compare_is_renewed(context: Context) -> None:
    task = a_task()
    version = judged(context, task, 1, None)
    verdict = context.registry.ledger.latest_verdict(task.name, version.digest)
    assert verdict is not None
    check = Check(name="champion", passed=True, observed="they answer other labels", required=APPROVAL)
    request = a_request(task, 1)
    register(context.registry, replace(request, verdict=verdict.model_copy(update={"checks": [check]})))
    with context.registry.ledger.database.writing() as connection:
        connection.execute(tables.verdict.delete().where(tables.verdict.c.verdict == verdict.verdict_digest()))
    assert is_judged_again(context, task, version.number)


def test_the_champion_is_not_judged_again(context: Context) -> None:
    anchor_after(context, a_task(), (1, None, None, ME))
    assert not is_judged_again(context, a_task(minimum=0.85), 1)


def test_a_version_that_was_never_judged_is_not_judged_again(context: Context) -> None:
    task = a_task()
    stage(context.registry.ledger, context.registry.store, an_artifact(task, 1))
    version = register(context.registry, replace(a_request(task, 1), verdict=None))
    assert not is_judged_again(context, task, version.number)


def test_a_version_that_was_collected_is_not_judged_again(context: Context) -> None:
    version = judged(context, a_task(), 1, None)
    grave = Tombstone(context.registry.ledger.database, version.task, version.digest)
    assert grave.bury(lambda _: False)
    assert not is_judged_again(context, a_task(minimum=0.85), version.number)


def test_a_version_of_other_labels_or_of_another_base_is_left_as_it_is(context: Context) -> None:
    version = judged(context, a_task(), 1, None)
    stricter = a_task(minimum=0.85)
    assert not is_judged_again(context, stricter.model_copy(update={"base_model": "other"}), version.number)
    labels = {"bad": " poor", "good": " good"}
    assert not is_judged_again(context, stricter.model_copy(update={"labels": labels}), version.number)


# ---------------------------------------------------------------- what a person promotes


def outdated(context: Context, *lines: str) -> None:
    """The first version is in production, and the second was judged under another policy than the task file's."""
    task = declare(context, *lines)
    anchor_after(context, task, (1, None, None, ME))
    judged(context, task, 2, 1)
    path = context.settings.tasks / "mood.yaml"
    path.write_text(path.read_text().replace("minimum: 0.8", "minimum: 0.85"))


@pytest.mark.parametrize("beside", [None, 10])
def test_what_answers_requests_is_judged_again_first(context: Context, beside: int | None) -> None:
    outdated(context)
    with pytest.raises(DataError, match=r"rows\.csv"):  # it asks for rows, which these tests do not have
        move(context, "mood", "production", 2, ME, beside)


def test_each_version_of_a_release_is_judged_again_first(context: Context) -> None:
    outdated(context)
    with pytest.raises(DataError, match=r"rows\.csv"):
        move_release(context, "spring", {"mood": 2}, ME)


def test_a_release_of_a_name_that_is_taken_is_refused_before_the_gate_takes_its_time(context: Context) -> None:
    outdated(context)
    taken = Release(name="spring", actor="me", reason="why", versions={"mood": 1}, at=now())
    move_on = Move(task="mood", alias="production", version=1, actor="me", reason="why", expected=1)
    context.registry.ledger.append_release(taken, [move_on])
    with pytest.raises(PromotionConflict, match="holds mood@1 already"):
        move_release(context, "spring", {"mood": 2}, ME)


def test_a_release_with_a_version_that_does_not_exist_takes_no_look(context: Context) -> None:
    outdated(context)
    file = context.settings.tasks / "mood.yaml"
    (context.settings.tasks / "tone.yaml").write_text(file.read_text().replace("name: mood", "name: tone"))
    with pytest.raises(NotFound, match="tone: no version 3"):
        move_release(context, "spring", {"mood": 2, "tone": 3}, ME)


def test_a_shadow_needs_no_verdict(context: Context) -> None:
    outdated(context)
    shadow = move(context, "mood", "production", 2, ME, 0)
    assert (shadow.version, shadow.beside and shadow.beside.version) == (1, 2)


def test_another_alias_is_no_reason_to_judge_again(context: Context) -> None:
    outdated(context)
    assert move(context, "mood", "canary", 2, ME).version == 2


PROMOTERS = ("promoters:", "  required_for: promotion", f"  keys: [{public_line(ADA)}]")


@pytest.mark.parametrize(
    ("lines", "cause", "refused"),
    [((), Cause("me", " "), "needs an actor and a reason"), (PROMOTERS, ME, "asks for a promoter's signature")],
)
def test_who_may_not_promote_is_told_before_the_gate_takes_its_time(
    context: Context, lines: tuple[str, ...], cause: Cause, refused: str
) -> None:
    outdated(context)
    declare(context, *lines)
    path = context.settings.tasks / "mood.yaml"
    path.write_text(path.read_text().replace("minimum: 0.8", "minimum: 0.85"))
    with pytest.raises(PromotionRefused, match=refused):
        move(context, "mood", "production", 2, cause)
    with pytest.raises(PromotionRefused, match=refused):
        move_release(context, "spring", {"mood": 2}, cause)
