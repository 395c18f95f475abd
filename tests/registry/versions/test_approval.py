"""Who may approve a candidate, how long a request lasts, what binds an approval, and that no door goes around it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.fixtures.prompts import a_task, published
from ptpipeline.errors import PromotionRefused
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION, PromptVersion
from ptpipeline.signing import SigningKey
from ptpipeline.task.task import Task
from registry.ledger import tables
from registry.ledger.approvals import Asked, Decision, ask, find_standing, record_decision
from registry.ledger.ledger import Ledger, Release
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.rebuild import rebuild
from registry.versions import approval, mlflow_edit
from registry.versions.beside import place_beside
from registry.versions.commit import Cause
from registry.versions.promotion import Transition, check_transition, promote, promote_release, rollback
from tests.registry.signed import ADA, EVE, WORKER, public_line, signed

ANN, BOB = Cause("ann", "looks right"), Cause("bob", "fine")


def declared(**fields: Any) -> Task:
    return Task.model_validate(a_task().model_dump(mode="json", exclude_unset=True) | fields)


TWO = declared(approvals=2)
ONE = declared(approvals=1)


def candidate(registry: Registry, task: Task = TWO, seed: int = 1, champion: str | None = None) -> PromptVersion:
    return registry.ledger.version(task.name, published(registry, task, seed, champion))


def verdict_on(registry: Registry, version: PromptVersion) -> Verdict:
    verdict = registry.ledger.latest_verdict(version.task, version.digest)
    assert verdict is not None
    return verdict


def waiting(registry: Registry, task: Task = TWO, started_by: str = "carl", seed: int = 1) -> PromptVersion:
    version = candidate(registry, task, seed)
    approval.request_approval(registry, task, version, verdict_on(registry, version), started_by)
    return version


def approve(registry: Registry, task: Task, version: PromptVersion, cause: Cause) -> bool:
    """Approve it; whether it is approved by enough people then."""
    return approval.is_approved(task, approval.approve(registry, task, version, verdict_on(registry, version), cause))


# ---------------------------------------------------------------- who may approve


def test_two_people_approve(plain: Registry) -> None:
    version = waiting(plain)
    assert not approve(plain, TWO, version, ANN)
    with pytest.raises(PromotionRefused, match="asks for 2 approvals of its newest verdict, and it has 1"):
        promote(plain, TWO, 1, ANN)
    assert approve(plain, TWO, version, BOB)
    assert promote(plain, TWO, 1, BOB).version == 1


@pytest.mark.parametrize(
    "again",
    [
        "ann",
        "Ann",
        "ann (key 0123456789abcdef)",
        "prefect (claims ann)",
        "prefect (claims ann (key 0123456789abcdef))",
        "prefect (claims prefect (claims ann))",
        "prefect (claims \n ann\t)",
        "a\u200bnn",
        "\u202eann\u00ad",
        "\uff21nn",
    ],
)
def test_one_person_does_not_approve_twice(plain: Registry, again: str) -> None:
    version = waiting(plain)
    approve(plain, TWO, version, ANN)
    with pytest.raises(PromotionRefused, match=r"ann approved it at .* already; it needs 2 different people"):
        approve(plain, TWO, version, Cause(again, "why"))


@pytest.mark.parametrize(
    "again", ["Ann  Lee", "ann\u00a0lee", "prefect (claims Ann\u3000Lee)", "ann\n lee", "ann\tlee"]
)
def test_spaces_make_no_other_person(again: str) -> None:
    assert approval.person_of(again) == approval.person_of("ann lee")


def test_accents_make_another_person_and_their_encoding_does_not() -> None:
    assert approval.person_of("jos\u00e9") == approval.person_of("Jose\u0301") != approval.person_of("jose")


def test_one_key_does_not_approve_twice_under_two_names(plain: Registry) -> None:
    version = waiting(plain)
    approve(plain, TWO, version, Cause("ann", "why", signer=ADA))
    with pytest.raises(PromotionRefused, match="needs 2 different people"):
        approve(plain, TWO, version, Cause("bob", "why", signer=ADA))


@pytest.mark.parametrize("starter", ["ann", "prefect (claims ann)", "ann (key 0123456789abcdef)"])
def test_who_started_the_run_does_not_approve_it(plain: Registry, starter: str) -> None:
    version = waiting(plain, ONE, starter)
    with pytest.raises(PromotionRefused, match="ann started the run that made it, so somebody else has to approve it"):
        approve(plain, ONE, version, ANN)
    assert approve(plain, ONE, version, BOB)


def test_who_started_the_run_does_not_approve_it_once_another_asks_again(plain: Registry) -> None:
    version = candidate(plain, ONE)
    ask(plain.ledger.database, Asked(version, "b" * 64, "ann", 0.0))
    again = approval.request_approval(plain, ONE, version, verdict_on(plain, version), "nightly")
    assert (again.request.number, again.request.started_by) == (2, "ann")
    with pytest.raises(PromotionRefused, match="ann started the run that made it"):
        approve(plain, ONE, version, ANN)


def test_without_approvals_in_the_task_anybody_approves(plain: Registry) -> None:
    version = waiting(plain, declared(), "ann")
    assert approve(plain, declared(), version, ANN)


@pytest.mark.parametrize(
    "nobody", ["prefect", "nightly", "mlflow-ui", "prefect (claims nightly)", "\u200b", "prefect (claims )"]
)
def test_a_machine_does_not_approve(plain: Registry, nobody: str) -> None:
    version = waiting(plain, ONE)
    with pytest.raises(PromotionRefused, match="an approval needs the name of the person who gives it"):
        approve(plain, ONE, version, Cause(nobody, "why"))


def test_what_nobody_asked_for_is_not_approved(plain: Registry) -> None:
    version = candidate(plain)
    with pytest.raises(PromotionRefused, match="does not wait for approval; `ptp run mood` asks for it"):
        approve(plain, TWO, version, ANN)


def test_an_approval_repeated_after_a_crash_changes_nothing(plain: Registry) -> None:
    version = waiting(plain, ONE)
    assert approve(plain, ONE, version, ANN)
    assert approve(plain, ONE, version, ANN)
    standing = find_standing(plain.ledger.database, version.task, version.digest)
    assert standing
    assert len(standing.decisions) == 1


def test_an_approval_beyond_those_that_are_needed_is_recorded_too(plain: Registry) -> None:
    version = waiting(plain, ONE)
    assert approve(plain, ONE, version, ANN)
    assert approve(plain, ONE, version, BOB)
    standing = find_standing(plain.ledger.database, version.task, version.digest)
    assert standing
    assert [row.actor for row in standing.decisions] == ["ann", "bob"]


# ---------------------------------------------------------------- promoters


def promoters(key: SigningKey, **fields: Any) -> Task:
    return declared(promoters={"keys": [public_line(key)], "required_for": "promotion"}, **fields)


def test_only_approvals_of_promoters_count(plain: Registry) -> None:
    task = promoters(ADA, approvals=2)
    version = waiting(plain, task)
    approve(plain, task, version, Cause("ann", "why", signer=EVE))
    assert not approve(plain, task, version, Cause("bob", "why", signer=ADA))
    assert not approve(plain, task, version, Cause("carla", "why", signer=WORKER))


def test_where_promoters_sign_overrides_alone_every_approval_counts(plain: Registry) -> None:
    task = declared(promoters={"keys": [public_line(ADA)], "required_for": "override"}, approvals=1)
    assert approve(plain, task, waiting(plain, task), BOB)


def test_an_approval_of_a_key_that_is_no_promoters_any_more_does_not_count(plain: Registry) -> None:
    task = promoters(ADA, approvals=1)
    version = waiting(plain, task)
    assert approve(plain, task, version, Cause("ann", "why", signer=ADA))
    with pytest.raises(PromotionRefused, match="asks for 1 approval of its newest verdict, and it has 0"):
        promote(signed(plain, EVE), promoters(EVE, approvals=1), 1, Cause("eve", "why", signer=EVE))


# ---------------------------------------------------------------- what an approval binds


def test_an_approval_does_not_outlive_its_champion(plain: Registry) -> None:
    version = waiting(plain, ONE)
    approve(plain, ONE, version, ANN)
    other = promote(plain, declared(), candidate(plain, ONE, 2).number, BOB)
    published(plain, ONE, 1, other.digest)  # judged again, against the new champion
    with pytest.raises(PromotionRefused, match="those given before do not count, because it was judged again"):
        promote(plain, ONE, 1, ANN)
    with pytest.raises(PromotionRefused, match=r"judged again since people were asked; read .* \(`ptp show mood@1`\)"):
        approve(plain, ONE, version, ANN)
    standing = find_standing(plain.ledger.database, version.task, version.digest)
    assert standing
    assert (standing.request.number, standing.request.started_by, standing.decisions) == (2, "carl", [])
    assert approve(plain, ONE, version, ANN)
    assert promote(plain, ONE, 1, ANN).version == 1


def test_an_approval_does_not_count_for_what_was_asked_meanwhile(ledger: Ledger) -> None:
    first = ask(ledger.database, Asked(VERSION, "b" * 64, "carl", 1)).request
    ask(ledger.database, Asked(VERSION, "c" * 64, "carl", 1))
    yes = Decision(approved=True, actor="ann", key=None, reason="why", at=VERSION.registered_at)
    with pytest.raises(PromotionRefused, match="mood@1 was asked for again meanwhile"):
        record_decision(ledger.database, first, yes, lambda _: None)
    no = yes.model_copy(update={"approved": False})
    assert record_decision(ledger.database, first, no, lambda _: None).decisions == [no]


def test_an_approval_does_not_outlive_its_request(plain: Registry) -> None:
    version = waiting(plain, ONE)
    approve(plain, ONE, version, ANN)
    with plain.ledger.database.writing() as connection:
        ended = {"asked": tables.approval_request.c.asked - 1e6, "expires": tables.approval_request.c.expires - 1e6}
        connection.execute(text("DROP TRIGGER approval_request_no_update"))
        connection.execute(tables.approval_request.update().values(**ended))
    with pytest.raises(PromotionRefused, match=r"those given before do not count, because .* they expired"):
        promote(plain, ONE, 1, ANN)


def test_an_approval_does_not_outlive_its_policy(plain: Registry) -> None:
    version = waiting(plain, ONE)
    approve(plain, ONE, version, ANN)
    stricter = Task.model_validate(a_task(minimum=0.7).model_dump(mode="json", exclude_unset=True) | {"approvals": 1})
    with pytest.raises(PromotionRefused, match="gate policy changed since it was judged"):
        promote(plain, stricter, 1, ANN)


# ---------------------------------------------------------------- expiry, on both databases


VERSION = PromptVersion(
    task="mood", number=1, digest="a" * 64, verdict=None, passed=True, registered_at="2026-01-01T00:00:00+00:00"
)


def test_a_request_expires_by_the_clock_of_the_database(ledger: Ledger) -> None:
    expired = ask(ledger.database, Asked(VERSION, "b" * 64, "carl", 0.0))
    standing = find_standing(ledger.database, "mood", VERSION.digest)
    assert standing
    assert standing.seconds_left == 0
    again = ask(ledger.database, Asked(VERSION, "b" * 64, "carl", 7))
    assert (again.request.number, expired.request.number) == (2, 1)
    assert 7 * 24 * 3600 - 60 < again.seconds_left <= 7 * 24 * 3600


def test_a_request_dated_in_the_future_has_expired(ledger: Ledger) -> None:
    """The clock was set back since."""
    asked = ask(ledger.database, Asked(VERSION, "b" * 64, "carl", 1)).request
    ahead = asked.model_copy(update={"number": 2, "asked": asked.asked + 1e6, "expires": asked.expires + 1e6})
    with ledger.database.writing() as connection:
        connection.execute(tables.approval_request.insert().values(**ahead.model_dump()))
    standing = find_standing(ledger.database, "mood", VERSION.digest)
    assert standing
    assert standing.seconds_left == 0


def test_an_expired_request_is_not_approved(plain: Registry) -> None:
    version = candidate(plain, ONE)
    ask(plain.ledger.database, Asked(version, verdict_on(plain, version).verdict_digest(), "carl", 0.0))
    with pytest.raises(PromotionRefused, match=r"expired \(`approval_days`\); `ptp run mood` asks again"):
        approve(plain, ONE, version, ANN)


def test_the_same_verdict_is_asked_for_once(ledger: Ledger) -> None:
    ask(ledger.database, Asked(VERSION, "b" * 64, "carl", 1))
    assert ask(ledger.database, Asked(VERSION, "b" * 64, "dora", 1)).request.number == 1
    assert ask(ledger.database, Asked(VERSION, "c" * 64, "dora", 1)).request.number == 2


@pytest.mark.parametrize("table", ["approval_request", "approval", "event"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET at = 'never'", "DELETE FROM {}"])
def test_what_was_decided_stays(ledger: Ledger, table: str, statement: str) -> None:
    request = ask(ledger.database, Asked(VERSION, "b" * 64, "carl", 1)).request
    with ledger.database.writing() as connection:
        row = {"task": "mood", "request": request.number, "number": 1, "approved": True, "actor": "a", "reason": "b"}
        connection.execute(tables.approval.insert().values(**row, at=request.at))
    with pytest.raises(DBAPIError, match="append-only"), ledger.database.writing() as connection:
        connection.execute(text(statement.format(table)))


# ---------------------------------------------------------------- rejection


def test_a_rejected_candidate_is_neither_asked_for_again_nor_promoted(plain: Registry) -> None:
    task = declared()
    version = waiting(plain, task)
    approval.reject(plain, version, Cause("ann", "wrong tone"))
    again = approval.request_approval(plain, task, version, verdict_on(plain, version), "nightly")
    assert (again.request.number, again.rejection and again.rejection.reason) == (1, "wrong tone")
    with pytest.raises(PromotionRefused, match=r"mood@1 was rejected by ann at .* \(wrong tone\)"):
        approve(plain, task, version, BOB)
    with pytest.raises(PromotionRefused, match="was rejected by ann"):
        promote(plain, task, 1, BOB)
    assert promote(plain, task, 1, Cause("bob", "anyway", override=True)).version == 1


def test_a_candidate_is_rejected_once(plain: Registry) -> None:
    version = waiting(plain)
    approval.reject(plain, version, Cause("ann", "wrong tone"))
    with pytest.raises(PromotionRefused, match=r"mood@1 was rejected by ann at .* \(wrong tone\)"):
        approval.reject(plain, version, BOB)


def test_a_rejection_is_no_approval(plain: Registry) -> None:
    version = waiting(plain)
    approve(plain, TWO, version, ANN)
    assert approval.count_approvals(TWO, approval.reject(plain, version, BOB)) == 1


def test_a_rejection_that_came_meanwhile_is_seen_by_who_approves(plain: Registry) -> None:
    """Both looked before either decided; what is decided is asked again within the transaction."""
    version = waiting(plain)
    approval.reject(plain, version, ANN)
    standing = find_standing(plain.ledger.database, version.task, version.digest)
    assert standing
    with pytest.raises(PromotionRefused, match="was rejected by ann"):
        approval._check_approver(TWO, BOB, standing)


def test_a_rejection_outlives_its_verdict_and_its_request(plain: Registry) -> None:
    version = candidate(plain, ONE)
    ask(plain.ledger.database, Asked(version, "b" * 64, "carl", 0.0))
    approval.reject(plain, version, ANN)
    again = ask(plain.ledger.database, Asked(version, "c" * 64, "carl", 7))
    assert (again.request.number, again.rejection is None) == (1, False)


def test_nothing_replaces_an_approval_after_a_rejection(plain: Registry) -> None:
    version = waiting(plain, ONE)
    approve(plain, ONE, version, ANN)
    approval.reject(plain, version, Cause("bob", "wrong tone"))
    with pytest.raises(PromotionRefused, match="was rejected by bob"):
        promote(plain, ONE, 1, Cause("ann", "anyway", override=True))


def test_a_candidate_beside_production_is_rejected(plain: Registry) -> None:
    promote(plain, declared(), candidate(plain, declared()).number, ANN)
    assert approval.reject(plain, waiting(plain, declared(), seed=2), ANN).rejection is not None


@pytest.mark.parametrize(("percent", "rejected"), [(10, False), (0, True)])
def test_a_canary_is_not_rejected_and_a_shadow_is(plain: Registry, percent: int, rejected: bool) -> None:
    promote(plain, declared(), candidate(plain, declared()).number, ANN)
    version = waiting(plain, declared(), seed=2)
    place_beside(plain, declared(), version.number, percent, Cause("ann", "why", override=True))
    if rejected:
        assert approval.reject(plain, version, ANN).rejection is not None
        return
    with pytest.raises(PromotionRefused, match="answers 10% of production's requests; `ptp rollback mood` ends that"):
        approval.reject(plain, version, ANN)


def test_what_is_in_production_is_not_rejected(plain: Registry) -> None:
    version = waiting(plain, declared())
    promote(plain, declared(), 1, ANN)
    with pytest.raises(PromotionRefused, match="is in production; `ptp rollback mood` takes it back"):
        approval.reject(plain, version, ANN)


# ---------------------------------------------------------------- every door


def test_an_override_does_not_replace_an_approval(plain: Registry) -> None:
    candidate(plain)
    with pytest.raises(PromotionRefused, match="asks for 2 approvals"):
        promote(plain, TWO, 1, Cause("ann", "why", override=True))


def test_a_release_needs_the_approvals_of_its_tasks(plain: Registry) -> None:
    candidate(plain)
    release = Release(name="spring", actor="ann", reason="why", versions={"mood": 1}, at=VERSION.registered_at)
    with pytest.raises(PromotionRefused, match="asks for 2 approvals"):
        promote_release(plain, {"mood": TWO}, release, ANN)


def test_an_edit_in_mlflow_needs_the_approvals(plain: Registry) -> None:
    version = candidate(plain)
    with pytest.raises(PromotionRefused, match="asks for 2 approvals"):
        check_transition(plain, TWO, Transition(None, version), mlflow_edit.CAUSE, PRODUCTION)


def test_other_aliases_and_a_rollback_need_no_approval(plain: Registry) -> None:
    first = promote(plain, declared(), candidate(plain, declared()).number, ANN)
    promote(plain, declared(), published(plain, declared(), 2, first.digest), ANN)
    assert promote(plain, TWO, 2, ANN, "staging").version == 2
    assert rollback(plain, "mood", ANN).version == 1


# ---------------------------------------------------------------- the order of aliases


ORDERED = declared(aliases=["staging", PRODUCTION])


def test_production_takes_only_what_staging_names(plain: Registry) -> None:
    candidate(plain, ORDERED)
    with pytest.raises(PromotionRefused, match="let staging name a version first, and staging names nothing yet"):
        promote(plain, ORDERED, 1, Cause("ann", "why", override=True))
    promote(plain, ORDERED, 1, ANN, "staging")
    assert promote(plain, ORDERED, 1, ANN).version == 1


def test_an_alias_that_the_order_does_not_name_waits_for_none(plain: Registry) -> None:
    assert promote(plain, ORDERED, candidate(plain, ORDERED).number, ANN, "canary").version == 1


def test_each_alias_waits_for_the_one_before_it(plain: Registry) -> None:
    task = declared(aliases=["trial", "staging", PRODUCTION])
    candidate(plain, task)
    promote(plain, task, 1, ANN, "trial")
    with pytest.raises(PromotionRefused, match="let staging name a version first"):
        promote(plain, task, 1, ANN)
    promote(plain, task, 1, ANN, "staging")
    assert promote(plain, task, 1, ANN).version == 1


def test_what_staging_named_before_is_too_late(plain: Registry) -> None:
    candidate(plain, ORDERED)
    promote(plain, ORDERED, 1, ANN, "staging")
    promote(plain, ORDERED, candidate(plain, ORDERED, 2).number, ANN, "staging")
    with pytest.raises(PromotionRefused, match="staging names version 2"):
        promote(plain, ORDERED, 1, ANN)


# ---------------------------------------------------------------- a lost ledger


def test_a_rebuilt_ledger_asks_again(plain: Registry, tmp_path: Path) -> None:
    approve(plain, ONE, waiting(plain, ONE), ANN)
    promote(plain, ONE, 1, ANN)
    rebuilt = Registry(Ledger(f"sqlite:///{tmp_path}/new.db"), plain.store)
    rebuild(rebuilt)
    assert rebuilt.ledger.history("mood")[0].actor == "ann"
    assert find_standing(rebuilt.ledger.database, "mood", rebuilt.ledger.version("mood", 1).digest) is None
    assert examine(rebuilt) == []
    version = candidate(rebuilt, ONE, 2, rebuilt.ledger.version("mood", 1).digest)
    with pytest.raises(PromotionRefused, match="asks for 1 approval"):
        promote(rebuilt, ONE, version.number, ANN)
    rebuilt.ledger.close()
