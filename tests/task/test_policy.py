"""The gate's policy in a task file: a word or a section per check, and one sentence for what is wrong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ptpipeline.errors import TaskFileError
from ptpipeline.task.folder import load_task
from ptpipeline.task.policy import Bias, ChampionPolicy, Checks, Gate
from tests.tiny import tiny_project


def test_a_word_stands_for_the_policy() -> None:
    checks = Checks.model_validate({"drift": "warn", "leakage": {"max_share": 0.01}})
    assert (checks.drift.policy, checks.leakage.policy, checks.leakage.max_share) == ("warn", "block", 0.01)


def test_what_is_not_said_is_safe() -> None:
    blocks = {name for name, rule in Checks() if rule.policy == "block"}
    assert blocks == {"gain", "collapse", "never", "leakage", "drift", "slices", "bytes", "bias", "privacy"}
    assert ChampionPolicy().rule == "superiority"


def test_a_check_that_came_later_changes_no_policy_until_it_is_set(tmp_path: Path) -> None:
    path = tiny_project(tmp_path, ("movies",)) / "movies.yaml"
    before = load_task(path).policy_digest()
    assert (
        before == "94eb3f9fd9998dac2c83dee315d19e1642f15b64a8cdc03a3b04440a1abea076"
    )  # as it was before there was `worst_label`
    text = path.read_text()
    for checks, same in (
        ("{worst_label: warn}", True),
        ("{worst_label: {min_f1: 0.2}}", False),
        ("{worst_label: off}", False),
        ("{leakage: {fields: []}, robustness: {fields: []}, bias: {fields: []}}", True),
        ("{leakage: {fields: [text]}}", False),
        ("{robustness: {fields: [text]}}", False),
        ("{bias: {fields: [text]}}", False),
    ):
        path.write_text(text.replace("minimum: 0.7, ", f"minimum: 0.7, checks: {checks}, "))
        assert (load_task(path).policy_digest() == before) is same


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        (
            "checks: {drift: maybe}",
            r"gate\.checks\.drift\.policy: found 'maybe': Input should be 'block', 'warn' or 'off'",
        ),
        (
            "checks: {bias: {fields: [texts]}}",
            r"gate: found .*: gate\.checks\.bias\.fields names 'texts', but the template has the field text",
        ),
        ("checks: {drfit: warn}", r"gate\.checks\.drfit: unknown field; allowed here: bias, bytes, "),
        (
            "checks: {privacy: {max_auc: 0.3}}",
            r"gate\.checks\.privacy\.max_auc: found 0\.3: .*greater than or equal to 0\.5",
        ),
        (
            "checks: {bias: {swaps: [[he, she], [she, they]]}}",
            r"gate\.checks\.bias\.swaps: .* with no term in two pairs",
        ),
        (
            "checks: {bias: {swaps: [[he, she], [He, they]]}}",
            r"gate\.checks\.bias\.swaps: .* with no term in two pairs",
        ),
        ("checks: {gain: {over: [champion]}}", r"gate\.checks\.gain\.over\.0: found 'champion'"),
        ("champion: {margin: 0.01}", r"gate\.champion\.margin: found 0\.01: .* set `rule: non_inferiority`"),
        ("champion: {rule: better}", r"gate\.champion\.rule: found 'better'"),
        (
            "beat_zero_shot: true",
            r"gate\.beat_zero_shot: unknown field; allowed here: champion, checks, figures, metric, minimum",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, gate: str, sentence: str) -> None:
    path = tiny_project(tmp_path, ("movies",)) / "movies.yaml"
    path.write_text(
        path.read_text().replace(
            "minimum: 0.7, champion: {rule: non_inferiority, margin: 0.2}", f"minimum: 0.7, {gate}"
        )
    )
    with pytest.raises(TaskFileError, match=rf"movies\.yaml:\d+: {sentence}"):
        load_task(path)


def test_swaps_need_two_terms() -> None:
    with pytest.raises(ValidationError, match="two terms"):
        Bias(swaps=(("he", " "),))


def test_the_budget_is_what_confidence_leaves() -> None:
    assert Gate(minimum=0.5).champion.budget == 0.05
