"""What a night asks people, and what their decisions lead to."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.fixtures.prompts import an_artifact, published
from flows.night import render_approvals
from flows.stages.approve import Decided, describe, list_waiting, reject
from flows.stages.approve import approve as approve_verdict
from flows.stages.context import Context
from flows.stages.outcome import Candidate, summarise
from flows.stages.promote import promote
from ptpipeline.errors import DataError, PromotionRefused, TaskFileError
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.settings import Settings
from ptpipeline.task.folder import load_task
from ptpipeline.task.task import Task
from registry import failpoints
from registry.ledger import tables
from registry.ledger.approvals import list_standings
from registry.versions import promotion
from registry.versions.commit import Cause
from registry.versions.promoters import lack_promoter
from registry.versions.sign import sign_task
from tests import processes
from tests.flows.stages.conftest import make_context
from tests.registry.signed import ADA, public_line, signed

ANN, BOB = Cause("ann", "looks right"), Cause("bob", "fine")
FILE = """\
name: mood
base_model: tiny
data: {source: {path: rows.csv, format: csv}, text: text, label: label}
template: "{text}\\nMood:"
labels: {bad: " bad", good: " good"}
gate: {metric: accuracy, minimum: 0.8}
"""


def declare(context: Context, *lines: str) -> Task:
    path = context.settings.tasks / "mood.yaml"
    path.write_text(FILE + "".join(f"{line}\n" for line in lines))
    return load_task(path)


def ends(context: Context, task: Task, seed: int = 1) -> tuple[str, str]:
    """Status and reason of a night that ends with the passed candidate of that seed."""
    registry, head = context.registry, context.registry.ledger.head(task.name, PRODUCTION)
    published(registry, task, seed, head.digest if head else None)
    version = registry.ledger.version_of(task.name, an_artifact(task, seed).digest)
    publication, (report, verdict) = (
        registry.ledger.publication(task.name, version.digest),
        registry.ledger.disclosed(task.name, version.digest),
    )
    assert publication
    assert report
    assert verdict
    promoted = promote(context, task, version, verdict)
    outcome = summarise(registry, task, Candidate(publication.tuned, report, verdict, version, promoted))
    return outcome.status, outcome.reason


def approve(context: Context, task: str, version: int, cause: Cause) -> Decided:
    """What a person does who reads the newest verdict and approves it."""
    return approve_verdict(context, task, version, cause, str(context.registry.ledger.version(task, version).verdict))


def test_a_manual_task_ends_the_night_waiting_for_people(context: Context) -> None:
    task = declare(context, "approvals: 2", "approval_days: 3")
    context.started_by = "carl"
    status, reason = ends(context, task)
    assert status == "awaiting approval"
    assert reason.startswith(
        "`ptp approve mood@1`, or the deployment `approve` in Prefect with verdict "
        f"{newest_verdict(context)[:12]}, takes it to production (2 of"
    )
    [waiting] = list_waiting(context.registry, {"mood": task})
    assert (waiting.version, waiting.status, waiting.given, waiting.needed) == (1, "waiting", 0, 2)
    assert waiting.started_by == "carl"
    [standing] = list_standings(context.registry.ledger.database)
    assert round(standing.seconds_left / 3600) == 72


def test_the_last_approval_promotes_and_the_history_names_all(context: Context) -> None:
    ends(context, declare(context, "approvals: 2"))
    first = approve(context, "mood", 1, ANN)
    assert (first.promotion, first.approvals.status, first.approvals.given) == (None, "waiting", 1)
    second = approve(context, "mood", 1, BOB)
    assert second.promotion
    assert (second.promotion.version, second.promotion.actor) == (1, "bob")
    assert second.approvals.status == "approved"
    assert second.promotion.reason == "approved: ann: looks right; bob: fine"
    assert list_waiting(context.registry, {"mood": load_task(context.settings.tasks / "mood.yaml")}) == []
    assert ends(context, declare(context, "approvals: 2"))[0] == "unchanged"


def test_the_same_approval_finishes_a_promotion_that_was_interrupted(context: Context) -> None:
    task = declare(context, "approvals: 1", "aliases: [staging, production]")
    ends(context, task)
    promotion.promote(context.registry, task, 1, ANN, "staging")
    killed = processes.start(_approve_and_die, context.settings)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    [head] = context.registry.ledger.history("mood", PRODUCTION)
    store = context.registry.store
    assert not store.exists("prompts/mood/aliases/production.json")
    published(context.registry, task, 2, head.digest)
    promotion.promote(context.registry, task, 2, ANN, "staging")  # by now it names another
    assert approve(context, "mood", 1, ANN).promotion == head
    assert store.exists("prompts/mood/aliases/production.json")
    assert context.registry.ledger.history("mood", PRODUCTION) == [head]


def test_a_candidate_beside_the_one_in_production_is_decided_on_its_own(context: Context) -> None:
    task = declare(context)
    ends(context, task)
    first = approve(context, "mood", 1, ANN).promotion
    assert first
    assert first.reason == "approved: looks right"
    ends(context, task, seed=2)
    second = approve(context, "mood", 2, BOB)
    assert second.promotion
    assert (second.promotion.version, second.approvals.version) == (2, 2)


def _approve_and_die(settings: Settings) -> None:
    failpoints.watch(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == "promotion committed" else None)
    approve(make_context(settings.home), "mood", 1, ANN)


def test_what_one_person_rejects_is_not_asked_for_again(context: Context) -> None:
    task = declare(context)
    ends(context, task)
    assert reject(context, "mood", 1, Cause("ann", "wrong tone")).status == "rejected"
    status, reason = ends(context, task)
    assert status == "rejected"
    assert "rejected by ann" in reason
    assert "(wrong tone)" in reason
    assert list_waiting(context.registry, {"mood": task}) == []
    assert len(list_standings(context.registry.ledger.database)) == 1
    with pytest.raises(PromotionRefused, match="was rejected by ann"):  # whatever verdict was read
        approve_verdict(context, "mood", 1, BOB, "0" * 12)


def newest_verdict(context: Context, version: int = 1) -> str:
    return str(context.registry.ledger.version("mood", version).verdict)


def test_what_was_asked_anew_after_a_person_read_it_is_not_approved(context: Context) -> None:
    """The person reads version 1; then it is judged by another policy, and people are asked about that."""
    ends(context, declare(context))
    read = newest_verdict(context)
    policy = "gate: {metric: accuracy, minimum: 0.7}"
    path = context.settings.tasks / "mood.yaml"
    path.write_text(FILE.replace("gate: {metric: accuracy, minimum: 0.8}", policy))
    ends(context, load_task(path))
    assert newest_verdict(context) != read
    for digits in (read, read[:12]):
        with pytest.raises(
            PromotionRefused, match=f"you read the verdict {digits}, and people are asked about another"
        ):
            approve_verdict(context, "mood", 1, ANN, digits)
    assert list_standings(context.registry.ledger.database)[0].decisions == []
    assert approve_verdict(context, "mood", 1, ANN, newest_verdict(context)[:12]).promotion


def test_who_read_one_candidate_approves_no_other(context: Context) -> None:
    ends(context, declare(context))
    ends(context, declare(context), seed=2)
    with pytest.raises(PromotionRefused, match="or you read that of another candidate"):
        approve_verdict(context, "mood", 2, ANN, newest_verdict(context, 1))
    assert approve_verdict(context, "mood", 2, ANN, newest_verdict(context, 2)).promotion


def test_a_rejected_candidate_is_not_promoted_by_a_machine_later(context: Context) -> None:
    ends(context, declare(context))
    reject(context, "mood", 1, ANN)
    assert ends(context, declare(context, "promote: auto"))[0] == "rejected"
    assert ends(context, declare(context, "promote: auto"), seed=2)[0] == "promoted"


def test_production_waits_for_staging(context: Context) -> None:
    task = declare(context, "aliases: [staging, production]")
    ends(context, task)
    with pytest.raises(PromotionRefused, match="let staging name a version first"):
        approve(context, "mood", 1, ANN)
    assert list_standings(context.registry.ledger.database)[0].decisions == []
    promotion.promote(context.registry, task, 1, ANN, "staging")
    assert [waiting.version for waiting in list_waiting(context.registry, {"mood": task})] == [1]
    assert list_waiting(context.registry, {}) == []  # its file is gone
    assert approve(context, "mood", 1, ANN).promotion


def test_a_request_that_expired_waits_no_more(context: Context) -> None:
    task = declare(context)
    ends(context, task)
    table = tables.approval_request
    with context.registry.ledger.database.writing() as connection:
        connection.execute(text("DROP TRIGGER approval_request_no_update"))
        connection.execute(table.update().values(asked=table.c.asked - 1e9, expires=table.c.expires - 1e9))
    assert list_waiting(context.registry, {"mood": task}) == []
    [standing] = list_standings(context.registry.ledger.database)
    assert describe(task, standing).status == "expired"


def test_what_production_names_without_a_request_takes_no_approval(context: Context) -> None:
    task = declare(context)
    promotion.promote(context.registry, task, published(context.registry, task, 1), ANN)
    with pytest.raises(PromotionRefused, match="the champion changed since it was judged"):
        approve(context, "mood", 1, ANN)


def test_an_outdated_candidate_is_judged_again_before_it_is_approved(context: Context) -> None:
    ends(context, declare(context))
    declare(context, "max_age: 30")
    (path := context.settings.tasks / "mood.yaml").write_text(path.read_text().replace("0.8", "0.85"))
    with pytest.raises(DataError, match=r"rows\.csv"):  # it asks for rows, which these tests do not have
        approve(context, "mood", 1, ANN)


def test_one_rejection_outweighs_approvals_enough(context: Context) -> None:
    ends(context, declare(context, "approvals: 2"))
    approve(context, "mood", 1, ANN)
    declare(context, "approvals: 1")
    assert reject(context, "mood", 1, BOB).status == "rejected"


def test_promoters_approve_with_their_keys(context: Context, tmp_path: Path) -> None:
    declare(context, "promoters:", "  required_for: promotion", f"  keys: [{public_line(ADA)}]")
    ends(context, load_task(tmp_path / "mood.yaml"))
    for decide in (approve, reject):
        with pytest.raises(PromotionRefused, match="asks for a promoter's signature of every promotion"):
            decide(context, "mood", 1, ANN)
    assert list_standings(context.registry.ledger.database)[0].decisions == []
    ada = Context(context.settings, signed(context.registry, ADA, ADA, tasks=tmp_path))
    sign_task(ada.registry, ada.registry.store, "mood")  # what was stored without a key
    decided = approve(ada, "mood", 1, Cause("ann", "why", signer=ADA))
    assert decided.promotion
    assert lack_promoter(ada.registry, "mood", [decided.promotion]) == {}


@pytest.mark.parametrize("decide", [approve, reject])
@pytest.mark.parametrize("cause", [Cause("ann", " "), Cause("", "why")])
def test_a_decision_needs_a_person_and_a_reason(
    context: Context, decide: Callable[[Context, str, int, Cause], object], cause: Cause
) -> None:
    ends(context, declare(context))
    with pytest.raises(PromotionRefused, match="a promotion needs an actor and a reason"):
        decide(context, "mood", 1, cause)
    assert list_standings(context.registry.ledger.database)[0].decisions == []


def test_the_page_shows_decisions_over_the_checks(context: Context) -> None:
    ends(context, declare(context, "approvals: 2"))
    approvals = approve(context, "mood", 1, Cause("ann", "looks *right*")).approvals
    version = context.registry.ledger.version("mood", 1)
    page = render_approvals(approvals, context.registry.ledger.disclosed("mood", version.digest).verdict)
    assert "## Checks" not in render_approvals(approvals, None)
    assert page.startswith("# mood@1: waiting\n\n1 of 2 approvals; its run was started by nightly;")
    assert "- approved by ann at" in page
    assert "looks \\*right\\*" in page
    assert "✓ pass **minimum**" in page


def test_a_task_that_a_machine_promotes_takes_no_approvals(tmp_path: Path) -> None:
    path = tmp_path / "mood.yaml"
    for line in ("approvals: 2", "aliases: [staging, production]"):
        path.write_text(f"{FILE}promote: auto\n{line}\n")
        with pytest.raises(
            TaskFileError, match=r"lets the nightly run promote, which .* does not allow: set `promote: manual`"
        ):
            load_task(path)


@pytest.mark.parametrize("aliases", ["[production]", "[production, staging]", "[a, a, production]"])
def test_production_is_the_last_of_several_aliases(tmp_path: Path, aliases: str) -> None:
    path = tmp_path / "mood.yaml"
    path.write_text(f"{FILE}aliases: {aliases}\n")
    with pytest.raises(TaskFileError, match="expected different aliases, the last of which is `production`"):
        load_task(path)
