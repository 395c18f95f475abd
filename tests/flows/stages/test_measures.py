"""What is measured beside a comparison: the data of candidate and champion, and how many rows it would take."""

import hashlib
import io
import math
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from benchmarks.fixtures.prompts import a_report, a_request, a_snapshot, an_artifact
from flows.stages.context import Context
from flows.stages.evidence import find_anchor, gather
from flows.stages.ingest import ingest
from flows.stages.judge import _choose_split, budget_of, describe_check
from ptpipeline.evaluation.key import list_keys, rows_identity
from ptpipeline.evaluation.power import default_margin, expected_discordance, rows_needed
from ptpipeline.evaluation.results import Results
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.data import Snapshot, SplitInfo
from ptpipeline.records.reports import PairedDifference
from ptpipeline.records.verdicts import Check, Look
from ptpipeline.storage.keys import snapshot_manifest_key
from ptpipeline.task.task import Task
from registry.ledger import tables
from tests.flows.stages.test_evidence import (
    BUDGET,
    ME,
    OFF,
    a_challenge,
    a_gated_task,
    a_pair,
    anchor_after,
    digest,
    rival_that_saw,
)
from tests.flows.stages.test_ingest import rows

__all__ = ["rows"]  # a fixture
FIRST = look_at(1, 1, Budget(BUDGET))
SPENT = Look(test_set=1, number=99, alpha=0.0, spent=BUDGET, budget=BUDGET)


def checking(margin: float | None = 0.2, **checks: Any) -> Task:
    """The task with that margin of non-inferiority, and none but these checks of the data."""
    champion = {"rule": "non_inferiority"} | ({} if margin is None else {"margin": margin})
    gate = {"metric": "accuracy", "minimum": 0.8, "champion": champion, "checks": {**OFF, **checks}}
    return a_gated_task(gate=gate)


def test_nothing_is_superior_once_the_budget_is_spent_however_clear_it_is(context: Context) -> None:
    task, pair = checking(), a_pair(better=1100, rows=1100)
    assert gather(context, task, a_challenge(context, task, pair), FIRST).superior
    assert not gather(context, task, a_challenge(context, task, pair), SPENT).superior


def test_the_rows_that_it_takes_follow_the_margin_the_look_and_what_differed(context: Context) -> None:
    task, second = checking(margin=0.02, test_rows="warn"), look_at(1, 2, Budget(BUDGET))
    evidence = gather(context, task, a_challenge(context, task, a_pair(better=6)), second)
    assert isinstance(evidence.comparison, PairedDifference)
    assert evidence.comparison.discordant == 0.06
    assert evidence.rows_needed == rows_needed(0.02, second.alpha, 0.06)
    assert evidence.rows_needed != rows_needed(0.02, second.alpha, expected_discordance(None))


def test_without_a_champion_the_rows_that_it_takes_follow_the_policy(context: Context) -> None:
    task, second = checking(test_rows="warn"), look_at(1, 2, Budget(BUDGET))
    alone = a_challenge(context, task, a_pair(better=6), champion=None)._replace(pair=None)
    effect, usual = task.gate.checks.test_rows.effect, expected_discordance(None)
    assert gather(context, task, alone, second).rows_needed == rows_needed(effect, second.alpha, usual)
    assert gather(context, task, alone, None).rows_needed == rows_needed(effect, BUDGET, usual)
    assert gather(context, task, alone, SPENT).rows_needed is None  # then no number of rows shows it


def test_the_margin_follows_the_rows_that_compare(context: Context) -> None:
    task, pair = checking(margin=None), a_pair(better=6, rows=4000)
    part = pair._replace(rows=pair.rows[:1000])
    challenge = a_challenge(context, task, pair)._replace(pair=part)
    comparison = gather(context, task, challenge, FIRST).comparison
    assert isinstance(comparison, PairedDifference)
    assert comparison.margin == default_margin(1000, BUDGET) != default_margin(4000, BUDGET)


@pytest.mark.parametrize(("ours", "theirs", "known"), [(4, 4, True), (0, 4, False), (4, 0, False)])
def test_drift_is_measured_where_the_rows_of_both_trainings_are_known(
    context: Context, ours: int, theirs: int, known: bool
) -> None:
    task, pair = checking(drift="warn"), a_pair(better=3)
    ids = [f"{number:016x}" for number in range(1000, 1008)]
    seen, rival = rival_that_saw(context, ids[:ours]), rival_that_saw(context, ids[:theirs])
    challenge = a_challenge(context, task, pair)._replace(seen=seen, rival=rival)
    assert ("drift.length" in gather(context, task, challenge, FIRST).measures) == known


def test_what_an_import_learnt_from_is_not_known(context: Context) -> None:
    task = checking(leakage="warn")
    challenge = a_challenge(context, task, a_pair(better=3))
    imported = challenge._replace(tuned=challenge.tuned.model_copy(update={"steps": 0}))
    assert gather(context, task, imported, FIRST).measures["leakage.unknown"] == 1


def test_one_label_without_a_finite_likelihood_makes_a_row_bad(context: Context) -> None:
    task, pair = checking(), a_pair(better=3, rows=3)
    scores = {"log_likelihood.bad": [-1.0, math.nan, -math.inf], "log_likelihood.good": [-1.0, -1.0, math.nan]}
    columns = {name: dict(zip(pair.ours.ids, values, strict=True)) for name, values in scores.items()}
    scored = pair._replace(ours=Results(pair.ours.columns | columns))
    assert gather(context, task, a_challenge(context, task, scored), FIRST).measures["finite.bad"] == 2


@pytest.mark.parametrize(("policy", "names"), [("off", []), ("warn", ["label bad", "label good"])])
def test_slices_are_compared_unless_that_is_off(context: Context, policy: str, names: list[str]) -> None:
    task = checking(slices={"policy": policy, "min_rows": 10})
    slices = gather(context, task, a_challenge(context, task, a_pair(better=3)), FIRST).slices
    assert sorted(one.name for one in slices) == names


@pytest.mark.usefixtures("rows")
def test_the_anchor_is_compared_on_the_rows_that_the_champion_is_compared_on(context: Context) -> None:
    task, pair, registry = a_gated_task(), a_pair(better=3), context.registry
    anchor_after(context, task, (1, None, "superior", ME), (2, 1, "not inferior", ME))
    snapshot, imported = ingest(context, task), a_request(task, 1).tuned.model_copy(update={"steps": 0})
    registry.ledger.save_tuned(imported)  # so that it learnt from none of these rows
    body = io.BytesIO()
    columns = {name: [column[row] for row in pair.theirs.ids] for name, column in pair.theirs.columns.items()}
    parquet.write_table(pa.table(columns), body)
    (key,) = list_keys(digest(task, 1), rows_identity(snapshot.test), "float32", task.hard_prompt)
    measured = {"evaluation_key": key, "rows_sha256": hashlib.sha256(body.getvalue()).hexdigest()}
    report = a_report(an_artifact(task, 1), 0.9).model_copy(update=measured | {"snapshot": snapshot.digest})
    registry.store.create(report.rows_key, body.getvalue())
    registry.ledger.save_report(report)
    challenge = a_challenge(context, task, pair, champion=digest(task, 2))
    ours = challenge.measured.report.model_copy(update={"snapshot": snapshot.digest})
    part = challenge._replace(
        measured=challenge.measured._replace(report=ours), pair=pair._replace(rows=pair.rows[:60])
    )
    anchor = gather(context, task, part, FIRST).anchor
    assert isinstance(anchor, PairedDifference)
    assert (anchor.rows, anchor.dropped, anchor.margin) == (60, 40, 0.2)


def test_a_version_whose_verdict_is_lost_is_an_anchor(context: Context) -> None:
    """Nobody knows any more that it was only no worse."""
    task = checking()
    anchor_after(context, task, (1, None, "superior", ME), (2, 1, "not inferior", ME))
    with context.registry.ledger.database.writing() as connection:
        connection.execute(tables.verdict.delete())
    assert find_anchor(context.registry.ledger, task) == digest(task, 2)


@pytest.mark.parametrize(
    ("passed", "policy", "line"),
    [
        (True, "block", "pass gain: 0.1; required 0.2"),
        (False, "block", "FAIL gain: 0.1; required 0.2"),
        (False, "warn", "warning: gain: 0.1; required 0.2"),
    ],
)
def test_a_check_that_only_warns_is_not_told_as_a_failure(passed: bool, policy: Any, line: str) -> None:
    assert describe_check(Check(name="gain", passed=passed, observed="0.1", required="0.2", policy=policy)) == line


# ---------------------------------------------------------------- the rows that judge


def with_reserve(task: Task) -> Snapshot:
    split = SplitInfo(rows=4, labels={"bad": 2, "good": 2}, digest="d" * 64)
    return a_snapshot(task).model_copy(update={"reserve": split})


def test_the_budget_is_spent_over_the_looks_where_a_reserve_follows_and_there_alone() -> None:
    task = checking()
    looks = task.gate.champion.looks
    assert budget_of(task, with_reserve(task), "test") == Budget(BUDGET, looks)
    assert budget_of(task, with_reserve(task), "reserve") == Budget(BUDGET, None)
    assert budget_of(task, a_snapshot(task), "test") == Budget(BUDGET, None)


def test_the_champion_stays_on_the_test_rows(context: Context) -> None:
    """How many looks they have served is not even asked: they are not stored here."""
    task, snapshot = checking(), with_reserve(checking())
    anchor_after(context, task, (1, None, None, ME))
    assert not context.registry.store.exists(snapshot_manifest_key(task.name, snapshot.digest))
    assert _choose_split(context, task, an_artifact(task, 1).digest, snapshot) == "test"
