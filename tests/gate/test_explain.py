"""What a candidate will be asked, told before there is one: which checks, against whom, and what is off."""

from typing import Any

import pytest

from ptpipeline.gate.explain import Opponents, Requirement, list_requirements
from ptpipeline.records.prompts import Generation
from ptpipeline.task.policy import ChampionPolicy, Checks, Gate
from ptpipeline.task.task import Task
from tests.tuning.jobs import declared

TASK = declared("movies")
TEXTS = TASK.model_copy(update={"labels": {}, "generate": Generation(max_new_tokens=4)})


def told(task: Task = TASK, opponents: Opponents = Opponents(), rule: Any = "superiority", **checks: Any) -> Any:
    """Each requirement by its check's name."""
    gate = Gate(minimum=0.8, champion=ChampionPolicy(rule=rule), checks=Checks(**checks))
    requirements = list_requirements(task.model_copy(update={"gate": gate}), opponents)
    by_name: dict[str, Requirement] = {one.check: one for one in requirements}
    assert len(by_name) == len(requirements)
    return by_name


def test_each_check_is_told_once_in_the_order_of_a_verdict() -> None:
    names = list(told())
    assert names[:5] == ["minimum", "gain", "champion", "slices", "finite"]
    assert sorted(names) == sorted({"minimum", "champion", "finite", *Checks.model_fields})


@pytest.mark.parametrize(("rule", "asked"), [("superiority", False), ("non_inferiority", True)])
def test_an_anchor_is_asked_under_non_inferiority_alone(rule: str, asked: bool) -> None:
    for opponents in (Opponents(), Opponents("version 3", "version 2")):
        assert ("anchor" in told(rule=rule, opponents=opponents)) is asked


def test_better_or_not_much_worse_is_asked_by_the_rule() -> None:
    known = Opponents("version 3", "version 2", 0.02)
    assert told(opponents=known)["champion"].asks.startswith("better than version 3,")
    loose = told(opponents=known, rule="non_inferiority")
    assert loose["champion"].asks.startswith("at most 0.0200 worse than version 3,")
    assert loose["anchor"].asks.startswith("at most 0.0200 worse than version 2, the last production version")


def test_a_margin_of_nothing_is_told_as_a_margin() -> None:
    asked = told(opponents=Opponents("version 3", "version 2", 0.0), rule="non_inferiority")
    assert asked["champion"].asks.startswith("at most 0.0000 worse than version 3,")


def test_metrics_and_baselines_are_told_by_their_names_and_figures_alike() -> None:
    assert told()["minimum"].asks == "accuracy of at least 0.8000 on the rows that judge"
    assert told()["gain"].asks.startswith("better than majority and zero-shot, each by")


def test_who_is_not_known_yet_is_said_so() -> None:
    assert "nothing is in production yet" in told()["champion"].asks
    assert "nothing is in production yet" not in told(opponents=Opponents("version 3"))["champion"].asks
    loose = told(opponents=Opponents("version 3"), rule="non_inferiority")
    assert "at most a margin computed from the number of rows worse than the anchor" in loose["anchor"].asks
    assert loose["anchor"].asks.endswith("asked only if the anchor is not the champion")


def test_checks_of_labels_are_off_for_free_texts() -> None:
    assert [told()[name].policy for name in ("never", "worst_label")] == ["block", "warn"]
    assert [told(TEXTS)[name].policy for name in ("never", "worst_label")] == ["off", "off"]
    assert "(by the task's columns, length)" in told(TEXTS)["slices"].asks
    assert "(by the task's columns, label and length)" in told()["slices"].asks
    assert told(TEXTS)["collapse"].asks.startswith("no text is more than")
    assert told()["collapse"].asks.startswith("no label is more than")


def test_bias_is_off_without_pairs() -> None:
    assert told()["bias"].policy == "off"
    assert told(bias={"swaps": (("he", "she"),)})["bias"].policy == "block"


def test_what_the_policy_turned_off_is_told_as_off() -> None:
    assert told(gain="off", slices="off", norms="off")["gain"].policy == "off"
    assert {told(**{name: "off"})[name].policy for name in ("gain", "slices", "norms", "test_rows")} == {"off"}


def test_equal_quality_is_shown_under_non_inferiority_alone() -> None:
    assert "equal quality" in told(rule="non_inferiority")["test_rows"].asks
    assert "equal quality" not in told()["test_rows"].asks
