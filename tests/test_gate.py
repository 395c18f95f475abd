"""The gate decides check by check, and binds its verdict to what it judged."""

import pytest

from ptpipeline.gate import decide, gate_key
from ptpipeline.records import PairedDifference, Report, Scores, TextScores, Verdict
from ptpipeline.task import Task
from tests.tuning.jobs import declared

TASK = declared("movies").model_copy(update={"gate": declared("movies").gate.model_copy(update={"minimum": 0.8})})


def scored(accuracy: float, predicted: dict[str, int]) -> Scores:
    return Scores(accuracy=accuracy, macro_f1=accuracy, per_label={}, confusion={}, predicted=predicted)


def report(accuracy: float = 0.9, zero_shot: float = 0.7, predicted: dict[str, int] | None = None, digest: str = "new") -> Report:
    return Report(
        task="movies", digest=digest, evaluation_key=f"e-{digest}", snapshot="s", test_digest="t", rows=100, rows_key="k",
        prompt=scored(accuracy, predicted or {"no": 50, "yes": 50}), zero_shot=scored(zero_shot, {}), majority=scored(0.5, {}),
        interval={"accuracy": (0.8, 0.95), "macro_f1": (0.8, 0.95)}, compute_dtype="float32", seconds=1.0,
    )  # fmt: skip


def compared(lower: float) -> PairedDifference:
    return PairedDifference(metric="accuracy", difference=0.0, lower=lower, upper=0.1, confidence=0.95, rows=100, dropped=0)


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.failures()]


def test_a_good_first_prompt_passes() -> None:
    assert decide(TASK, report(), 1000, None, None).passed


@pytest.mark.parametrize(
    ("measured", "stored", "check"),
    [
        (report(accuracy=0.79), 1000, "minimum"),
        (report(zero_shot=0.9), 1000, "beat_zero_shot"),
        (report(predicted={"no": 99, "yes": 1}), 1000, "collapse"),
        (report(), 70_000, "bytes"),
    ],
)
def test_each_check_fails_alone(measured: Report, stored: int, check: str) -> None:
    assert failed(decide(TASK, measured, stored, None, None)) == [check]


@pytest.mark.parametrize(("share", "passes"), [(0.97, True), (0.99, False)])
def test_a_prompt_that_always_writes_the_same_text_has_collapsed(share: float, passes: bool) -> None:
    texts = TextScores(exact_match=0.9, token_f1=0.9, rouge_l=0.9, bleu=0.9, most_frequent_share=share)
    lenient = TASK.model_copy(update={"gate": TASK.gate.model_copy(update={"metric": "bleu"})})
    measured = report().model_copy(update={"prompt": texts, "zero_shot": texts.model_copy(update={"bleu": 0.1}), "interval": {"bleu": (0.8, 1.0)}})
    assert decide(lenient, measured, 1000, None, None).passed is passes


def test_the_minimum_itself_suffices() -> None:
    assert decide(TASK, report(accuracy=0.8), 1000, None, None).passed


def test_zero_shot_may_be_left_out() -> None:
    lenient = TASK.model_copy(update={"gate": TASK.gate.model_copy(update={"beat_zero_shot": False})})
    assert decide(lenient, report(zero_shot=0.99), 1000, None, None).passed


@pytest.mark.parametrize(("lower", "passes"), [(-0.0099, True), (-0.01, False), (0.02, True)])
def test_the_champion_may_lead_by_less_than_the_margin(lower: float, passes: bool) -> None:
    assert decide(TASK, report(), 1000, "old", compared(lower)).passed is passes


def test_a_champion_needs_a_comparison() -> None:
    with pytest.raises(ValueError, match="comparison"):
        decide(TASK, report(), 1000, "old", None)


def test_a_champion_that_cannot_be_measured_is_said_so() -> None:
    verdict = decide(TASK, report(), 1000, "old", "its base is gone")
    assert (verdict.passed, verdict.comparison) == (True, None)
    assert verdict.checks[-1].observed == "not comparable: its base is gone"


def test_the_champion_itself_is_not_compared() -> None:
    assert decide(TASK, report(), 1000, "new", None).passed


def test_the_key_changes_with_champion_policy_and_evaluation() -> None:
    stricter: Task = TASK.model_copy(update={"gate": TASK.gate.model_copy(update={"minimum": 0.85})})
    keys = {gate_key(TASK, report(), None), gate_key(TASK, report(), "old"), gate_key(stricter, report(), None), gate_key(TASK, report(digest="x"), None)}
    assert len(keys) == 4


def test_a_verdict_binds_what_it_judged() -> None:
    verdict = decide(TASK, report(), 1000, "old", compared(0.0))
    assert (verdict.digest, verdict.champion, verdict.policy, verdict.evaluation_key, verdict.test_digest) == ("new", "old", TASK.policy_digest(), "e-new", "t")
