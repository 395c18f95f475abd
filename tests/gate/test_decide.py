"""The gate decides check by check, and binds its verdict to what it judged."""

from dataclasses import replace
from typing import Any

import pytest

from ptpipeline.gate.decide import Evidence, decide, gate_key, needs_a_person
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.reports import PairedDifference, Report, Scores, SliceDifference, TextScores
from ptpipeline.records.verdicts import Look, Verdict
from ptpipeline.task.policy import Bias, ChampionPolicy, Checks, Drift, Gate
from ptpipeline.task.task import Task
from tests.tuning.jobs import declared

TASK = declared("movies").model_copy(update={"gate": Gate(minimum=0.8)})
MEASURES = {
    "leakage.exact": 0.0,
    "leakage.near": 0.0,
    "robustness.white_space": 0.0,
    "robustness.case": 0.1,
    "privacy.auc": 0.5,
    "privacy.low": 0.4,
    "privacy.high": 0.6,
}
NOT_INFERIOR = TASK.model_copy(
    update={"gate": Gate(minimum=0.8, champion=ChampionPolicy(rule="non_inferiority", margin=0.02))}
)


def with_checks(**checks: Any) -> Task:
    return TASK.model_copy(update={"gate": Gate(minimum=0.8, checks=Checks(**checks))})


def scored(accuracy: float, predicted: dict[str, int]) -> Scores:
    confusion = {"no": {"no": 45, "yes": 5}, "yes": {"no": 5, "yes": 45}}
    return Scores(accuracy=accuracy, macro_f1=accuracy, per_label={}, confusion=confusion, predicted=predicted)


def report(accuracy: float = 0.9, predicted: dict[str, int] | None = None, digest: str = "new") -> Report:
    return Report(
        task="movies",
        digest=digest,
        evaluation_key=f"e-{digest}",
        snapshot="s",
        test_digest="t",
        rows=100,
        rows_key="k",
        prompt=scored(accuracy, predicted or {"no": 50, "yes": 50}),
        zero_shot=scored(0.7, {}),
        majority=scored(0.5, {}),
        interval={"accuracy": (0.8, 0.95), "macro_f1": (0.8, 0.95)},
        compute_dtype="float32",
        seconds=1.0,
    )


def pair(p_value: float, difference: float = 0.01, margin: float = 0.0) -> PairedDifference:
    return PairedDifference(
        metric="accuracy",
        difference=difference,
        lower=-0.01,
        upper=0.1,
        confidence=0.95,
        rows=100,
        dropped=0,
        p_value=p_value,
        margin=margin,
        test="exact McNemar",
    )


def first(**changes: Any) -> Evidence:
    """A candidate with which nothing is wrong, while nothing is in production."""
    evidence = Evidence(
        report(),
        1000,
        None,
        look_at(1, 1, Budget(0.05)),
        baselines={"majority": pair(1e-9), "zero_shot": pair(1e-4)},
        measures=MEASURES,
    )
    return replace(evidence, **changes)


def second(p_value: float = 0.01, look: Look = look_at(1, 1, Budget(0.05)), **changes: Any) -> Evidence:
    """The same while a champion is in production."""
    return first(**({"champion": "old", "look": look, "comparison": pair(p_value), "superior": True} | changes))


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.failures()]


def test_a_good_first_prompt_passes_and_counts_as_superior() -> None:
    verdict = decide(TASK, first())
    assert (verdict.passed, verdict.won, verdict.warnings()) == (True, "superior", [])


@pytest.mark.parametrize(
    ("evidence", "check"),
    [
        (first(report=report(accuracy=0.79)), "minimum"),
        (first(baselines={"majority": pair(1e-9), "zero_shot": pair(0.04)}), "gain"),
        (first(report=report(predicted={"no": 99, "yes": 1})), "collapse"),
        (first(stored_bytes=70_000), "bytes"),
        (first(measures=MEASURES | {"leakage.exact": 0.001}), "leakage"),
        (first(measures=MEASURES | {"leakage.near": 0.02}), "leakage"),
        (first(measures=MEASURES | {"privacy.low": 0.7}), "privacy"),
        (first(measures=MEASURES | {"finite.bad": 1}), "finite"),
        (second(0.04), "champion"),
        (second(slices=[SliceDifference(name="label no", rows=60, difference=-0.1, p_harm=0.04)]), "slices"),
        (second(measures=MEASURES | {"drift.labels": 0.3, "drift.length": 0.0}), "drift"),
    ],
)
def test_each_check_fails_alone(evidence: Evidence, check: str) -> None:
    assert failed(decide(TASK, evidence)) == [check]


def test_a_label_that_is_never_answered_blocks() -> None:
    assert failed(decide(TASK, first(report=report(predicted={"no": 100, "yes": 0})))) == ["collapse", "never"]
    assert (
        failed(
            decide(
                with_checks(collapse="off", never={"min_rows": 51}),
                first(report=report(predicted={"no": 100, "yes": 0})),
            )
        )
        == []
    )


def test_what_only_warns_is_shown_and_does_not_block() -> None:
    verdict = decide(TASK, first(measures=MEASURES | {"robustness.case": 0.9}))
    assert (verdict.passed, [check.name for check in verdict.warnings()]) == (True, ["robustness"])


def test_what_only_warns_is_not_among_the_reasons_of_a_failure() -> None:
    verdict = decide(TASK, first(report=report(accuracy=0.79), measures=MEASURES | {"robustness.case": 0.9}))
    assert (failed(verdict), [check.name for check in verdict.warnings()]) == (["minimum"], ["robustness"])


def test_what_is_off_is_not_looked_at() -> None:
    verdict = decide(with_checks(collapse="off", bytes="off"), first(report=report(predicted={"no": 99, "yes": 1})))
    assert not {"collapse", "bytes"} & {check.name for check in verdict.checks}


@pytest.mark.parametrize(("share", "passes"), [(0.97, True), (0.99, False)])
def test_a_prompt_that_always_writes_the_same_text_has_collapsed(share: float, passes: bool) -> None:
    texts = TextScores(exact_match=0.9, token_f1=0.9, rouge_l=0.9, bleu=0.9, most_frequent_share=share)
    task = TASK.model_copy(update={"gate": TASK.gate.model_copy(update={"metric": "bleu"})})
    measured = report().model_copy(update={"prompt": texts, "interval": {"bleu": (0.8, 1.0)}})
    assert decide(task, first(report=measured)).passed is passes


def test_the_minimum_itself_suffices() -> None:
    assert decide(TASK, first(report=report(accuracy=0.8))).passed


@pytest.mark.parametrize(("number", "passes"), [(1, True), (2, False)])
def test_every_look_asks_for_more(number: int, passes: bool) -> None:
    assert decide(TASK, second(0.01, look_at(1, number, Budget(0.05)))).passed is passes


def test_p_may_be_just_the_looks_share() -> None:
    look = look_at(1, 2, Budget(0.05))
    assert decide(TASK, second(look.alpha, look)).passed
    assert failed(decide(TASK, second(look.alpha * 1.0001, look))) == ["champion"]


def test_every_look_asks_for_more_over_the_baselines_too() -> None:
    between = {"majority": pair(1e-9), "zero_shot": pair(0.01)}
    assert decide(TASK, first(baselines=between)).passed
    later = first(baselines=between, look=look_at(1, 2, Budget(0.05)))
    assert failed(decide(TASK, later)) == ["gain"]
    ungated = decide(with_checks(gain="off"), later)
    assert (ungated.passed, ungated.won) == (True, None)


def test_without_a_look_the_whole_budget_is_the_level() -> None:
    baselines = {"majority": pair(1e-9), "zero_shot": pair(0.05)}
    assert decide(TASK, first(champion="new", look=None, baselines=baselines)).passed
    baselines = {"majority": pair(1e-9), "zero_shot": pair(0.051)}
    assert failed(decide(TASK, first(champion="new", look=None, baselines=baselines))) == ["gain"]


def test_a_spent_budget_lets_no_p_pass_and_says_so() -> None:
    spent = look_at(1, 31, Budget(0.05, 30))
    verdict = decide(TASK, second(0.0, spent))
    assert (spent.alpha, failed(verdict)) == (0, ["gain", "champion"])
    assert "the error budget of these test rows is spent; give fresh rows" in verdict.failures()[1].required


def test_what_was_not_tested_is_not_significant() -> None:
    untested = pair(0.01).model_copy(update={"p_value": None})
    assert failed(decide(TASK, second(comparison=untested))) == ["champion"]
    verdict = decide(with_checks(gain="off"), first(baselines={"majority": untested, "zero_shot": pair(1e-9)}))
    assert verdict.won is None


def test_the_last_look_that_rows_are_meant_for_asks_for_no_fresh_rows() -> None:
    assert "meant for" not in decide(TASK, second(look=look_at(1, 30, Budget(0.05)))).checks[2].required


def test_the_verdict_says_how_much_is_spent_and_when_the_rows_are() -> None:
    required = {
        number: decide(TASK, second(look=look_at(1, number, Budget(0.05)))).checks[2].required for number in (2, 31)
    }
    assert (
        required[2]
        == "better than the champion: p at most 0.0076, the share of look 2 at these test rows (0.038 of the error "
        "budget 0.050 is spent)"
    )
    assert "look 31 at these test rows, which are meant for 30: give fresh rows or a reserve" in required[31]


def test_non_inferiority_is_judged_against_the_margin_and_the_anchor() -> None:
    passing = second(superior=False, anchor=pair(0.01, margin=0.02))
    assert (decide(NOT_INFERIOR, passing).passed, decide(NOT_INFERIOR, passing).won) == (True, "not inferior")
    assert failed(decide(NOT_INFERIOR, replace(passing, anchor=pair(0.04, margin=0.02)))) == ["anchor"]


def test_an_anchor_that_cannot_be_measured_waits_for_a_person() -> None:
    verdict = decide(NOT_INFERIOR, second(superior=False, anchor="its rows are gone"))
    assert (verdict.passed, verdict.anchor, needs_a_person(verdict)) == (True, None, True)
    (anchor,) = [check for check in verdict.checks if check.name == "anchor"]
    assert anchor.observed == "not comparable: its rows are gone"


def test_superiority_needs_no_anchor() -> None:
    assert decide(TASK, second(anchor=pair(0.9))).passed


def test_a_comparison_without_a_gain_wins_no_superiority() -> None:
    assert decide(NOT_INFERIOR, second(superior=False)).won == "not inferior"
    assert decide(NOT_INFERIOR, second(superior=True)).won == "superior"


def test_what_does_not_pass_wins_nothing() -> None:
    verdict = decide(TASK, second(report=report(accuracy=0.1)))
    assert (verdict.passed, verdict.won) == (False, None)


def test_each_baseline_that_was_not_measured_is_named() -> None:
    for missing, kept in (("zero-shot", "majority"), ("majority", "zero_shot")):
        verdict = decide(TASK, first(baselines={kept: pair(1e-9)}))
        assert failed(verdict) == ["gain"]
        assert missing in verdict.failures()[0].observed
    assert "against majority and zero-shot:" in decide(TASK, first(baselines={})).failures()[0].observed
    assert decide(with_checks(gain="off"), first(baselines={})).won is None


def test_the_gain_that_is_shown_is_over_the_closest_baseline() -> None:
    for closest in ("majority", "zero_shot"):
        baselines = {name: pair(0.01 if name == closest else 1e-9) for name in ("majority", "zero_shot")}
        (gain,) = [check for check in decide(TASK, first(baselines=baselines)).checks if check.name == "gain"]
        assert "p 0.01 " in gain.observed
    equal = {"majority": pair(0.01, 0.2), "zero_shot": pair(0.01, 0.07)}
    for over in (("majority", "zero_shot"), ("zero_shot", "majority")):
        checks = decide(with_checks(gain={"over": over}), first(baselines=equal)).checks
        (gain,) = [check for check in checks if check.name == "gain"]
        assert "zero-shot" in gain.observed.split("+")[0]
        assert "+0.0700 (" in gain.observed


def test_a_first_prompt_has_to_beat_every_baseline_to_be_superior() -> None:
    for worse in ("majority", "zero_shot"):
        baselines = {name: pair(0.9 if name == worse else 1e-9) for name in ("majority", "zero_shot")}
        assert decide(with_checks(gain="off"), first(baselines=baselines)).won is None


def test_a_slice_is_harmed_from_its_level_on() -> None:
    parts = [SliceDifference(name=f"p {p}", rows=60, difference=-0.1, p_harm=p) for p in (0.5, 0.05)]
    verdict = decide(TASK, second(slices=parts))
    assert failed(verdict) == ["slices"]
    assert "1 of 2 parts are worse: p 0.05; lowest p 0.05 on p 0.05" in verdict.failures()[0].observed
    assert decide(with_checks(slices="off"), second(slices=parts)).passed
    assert failed(decide(with_checks(slices={"alpha": 0.049}), second(slices=parts))) == []


def test_the_slice_that_is_shown_has_the_lowest_p_and_not_the_largest_loss() -> None:
    parts = [
        SliceDifference(name=name, rows=60, difference=d, p_harm=p)
        for name, d, p in (("a", -0.1, 0.3), ("b", -0.2, 0.6))
    ]
    (check,) = [check for check in decide(TASK, second(slices=parts)).checks if check.name == "slices"]
    assert check.observed == "0 of 2 parts are worse; lowest p 0.3 on a (-0.1000, 60 rows)"


def test_a_slice_may_be_worse_by_chance() -> None:
    assert decide(TASK, second(slices=[SliceDifference(name="label no", rows=60, difference=-0.01, p_harm=0.3)])).passed


def test_too_few_test_rows_are_said_with_the_number_that_is_needed() -> None:
    check = decide(TASK, first(rows_needed=815)).warnings()[0]
    assert (check.name, check.observed) == ("test_rows", "100 rows")
    assert check.required == "at least 815 rows, to show a gain of 0.03 four times in five at this look"


@pytest.mark.parametrize(("needed", "warned"), [(100, False), (101, True)])
def test_exactly_the_rows_that_are_needed_suffice(needed: int, warned: bool) -> None:
    for evidence in (first(rows_needed=needed), second(rows_needed=needed), first(rows_needed=needed, baselines={})):
        task = with_checks(gain="off")
        assert ("test_rows" in [check.name for check in decide(task, evidence).warnings()]) is warned


def test_the_rows_that_count_are_those_that_can_judge_both() -> None:
    """Those of the comparison with the champion, or with a baseline, out of 100 that were measured."""
    few = pair(0.01).model_copy(update={"rows": 90})
    baselines = {"majority": few.model_copy(update={"p_value": 1e-9}), "zero_shot": pair(1e-9)}
    for evidence in (second(comparison=few), first(baselines=baselines)):
        (check,) = [
            check for check in decide(TASK, replace(evidence, rows_needed=95)).checks if check.name == "test_rows"
        ]
        assert (check.passed, check.observed) == (False, "90 rows")


def test_bytes_are_held_against_the_tasks_own_limit() -> None:
    limited = with_checks(bytes={"max_bytes": 2000})
    assert [failed(decide(limited, first(stored_bytes=count))) for count in (2000, 2001)] == [[], ["bytes"]]


def test_rows_that_are_not_counted_are_not_asked_for() -> None:
    for verdict in (decide(with_checks(test_rows="off"), first(rows_needed=815)), decide(TASK, first())):
        assert "test_rows" not in {check.name for check in verdict.checks}


def test_rows_that_prove_equal_quality_are_said_so() -> None:
    equal = second(comparison=pair(0.01, margin=0.02), rows_needed=815)
    check = decide(NOT_INFERIOR, equal).warnings()[0]
    assert check.required == "at least 815 rows, to show equal quality within 0.0200 four times in five at this look"
    gain = decide(TASK, replace(equal, comparison=pair(0.01))).warnings()[0]
    assert "to show a gain of 0.03 four times in five" in gain.required


def test_only_what_cannot_be_compared_needs_a_person() -> None:
    assert needs_a_person(decide(TASK, first(champion="old", comparison="its base is gone")))
    assert not needs_a_person(decide(TASK, second()))
    assert not needs_a_person(decide(TASK, first()))


def test_a_champion_needs_a_comparison() -> None:
    with pytest.raises(ValueError, match="comparison"):
        decide(TASK, first(champion="old"))


def test_a_champion_that_cannot_be_measured_is_said_so() -> None:
    verdict = decide(TASK, first(champion="old", comparison="its base is gone"))
    assert (verdict.passed, verdict.comparison, verdict.won) == (True, None, None)
    assert [check.observed for check in verdict.checks if check.name == "champion"] == [
        "not comparable: its base is gone"
    ]


def test_the_champion_itself_is_not_compared() -> None:
    verdict = decide(TASK, first(champion="new", look=None))
    assert verdict.passed
    assert "champion" not in {check.name for check in verdict.checks}


def test_terms_that_are_swapped_are_judged_where_enough_rows_have_them() -> None:
    task = with_checks(bias=Bias(swaps=(("he", "she"),)))
    assert failed(decide(task, first(measures=MEASURES | {"bias.rows": 40, "bias.flips": 0.2}))) == ["bias"]
    assert decide(task, first(measures=MEASURES | {"bias.rows": 4, "bias.flips": 0.5})).passed


def test_drift_limits_are_the_policys() -> None:
    drifted = second(measures=MEASURES | {"drift.labels": 0.3})
    assert decide(with_checks(drift=Drift(max_labels=0.4)), drifted).passed


def test_the_key_changes_with_champion_policy_and_evaluation() -> None:
    stricter: Task = TASK.model_copy(update={"gate": TASK.gate.model_copy(update={"minimum": 0.85})})
    keys = {
        gate_key(TASK, report(), None),
        gate_key(TASK, report(), "old"),
        gate_key(stricter, report(), None),
        gate_key(TASK, report(digest="x"), None),
        gate_key(TASK, report().model_copy(update={"probed": "p"}), None),
    }
    assert len(keys) == 5


def test_a_verdict_binds_what_it_judged() -> None:
    verdict = decide(TASK, second())
    assert (verdict.digest, verdict.champion, verdict.policy, verdict.evaluation_key, verdict.test_digest) == (
        "new",
        "old",
        TASK.policy_digest(),
        "e-new",
        "t",
    )


def test_a_verdict_keeps_all_that_it_was_decided_on() -> None:
    parts = [SliceDifference(name="label no", rows=60, difference=0.1, p_harm=0.9)]
    evidence = second(slices=parts, anchor=pair(0.01, margin=0.02))
    verdict = decide(TASK.model_copy(update={"gate": Gate(minimum=0.8, figures="quiet")}), evidence)
    assert (verdict.look, verdict.comparison, verdict.anchor) == (evidence.look, evidence.comparison, evidence.anchor)
    assert (verdict.baselines, verdict.slices, verdict.measures) == (evidence.baselines, parts, MEASURES)
    assert verdict.figures == "quiet"


def test_a_verdict_of_before_keeps_its_digest() -> None:
    stored = {
        "task": "movies",
        "digest": "d",
        "gate_key": "g",
        "policy": "p",
        "evaluation_key": "e",
        "test_digest": "t",
        "champion": None,
        "comparison": {
            "metric": "accuracy",
            "difference": 0.02,
            "lower": -0.01,
            "upper": 0.05,
            "confidence": 0.95,
            "rows": 20,
            "dropped": 0,
        },
        "checks": [{"name": "minimum", "passed": True, "observed": "0.9", "required": "0.8"}],
        "passed": True,
    }
    assert Verdict.model_validate(stored).to_json() == stored
