"""What people may see of a verdict, and what is withheld from them."""

from typing import Any

import pytest

from benchmarks.fixtures.prompts import a_report, a_task, a_verdict, an_artifact
from ptpipeline.gate.decide import APPROVAL
from ptpipeline.gate.disclosure import NOT_SHOWN, QUALITY, describe_failures, disclose, disclose_verdict, is_withheld
from ptpipeline.gate.spending import Budget, look_at
from ptpipeline.records.reports import PairedDifference, SliceDifference
from ptpipeline.records.verdicts import Check, Reveal, Verdict

TASK = a_task()
REPORT = a_report(an_artifact(TASK), 0.7123)


def a_check(name: str, passed: bool, **changes: Any) -> Check:
    return Check(name=name, passed=passed, observed="0.7123 of it", required="at least 0.8").model_copy(update=changes)


def judged(*failed: str, **changes: Any) -> Verdict:
    """A quiet verdict in which these checks failed."""
    names = [*QUALITY, "collapse", "bytes"]
    verdict = a_verdict(TASK, REPORT, "champion", passed=not failed)
    update = {
        "checks": [a_check(name, name not in failed) for name in names],
        "figures": "quiet",
        "measures": {"x": 0.7},
    }
    return verdict.model_copy(update=update | changes)


def names(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks}


def test_a_quiet_refusal_shows_no_report_and_no_number_that_was_observed() -> None:
    shown = disclose(REPORT, judged("champion"))
    assert shown.report is None
    assert shown.verdict is not None
    assert "0.7123" not in str(shown.verdict.to_json())
    assert (shown.verdict.comparison, shown.verdict.comparisons(), shown.verdict.measures) == (None, {}, {})
    assert {check.observed for check in shown.verdict.checks} == {NOT_SHOWN}


def test_no_comparison_with_anybody_is_shown() -> None:
    pair = PairedDifference(
        metric="accuracy", difference=0.1, lower=0.0, upper=0.2, confidence=0.95, rows=20, dropped=0, p_value=0.01
    )
    part = SliceDifference(name="label no", rows=9, difference=0.1, p_harm=0.9)
    verdict = disclose_verdict(judged("champion", anchor=pair, baselines={"majority": pair}, slices=[part]))
    assert (verdict.anchor, verdict.baselines, verdict.slices, verdict.comparison) == (None, {}, [], None)


@pytest.mark.parametrize(
    "changes", [{"figures": "open"}, {"reveal": Reveal(by="ann", look=look_at(1, 2, Budget(0.05)))}]
)
def test_open_and_revealed_refusals_are_shown_whole(changes: dict[str, Any]) -> None:
    verdict = judged("champion", **changes)
    assert disclose(REPORT, verdict) == (REPORT, verdict)


def test_a_passed_candidate_is_shown_whole() -> None:
    assert disclose(REPORT, judged()) == (REPORT, judged())


def test_a_candidate_without_a_verdict_is_shown() -> None:
    assert disclose(REPORT, None) == (REPORT, None)


@pytest.mark.parametrize("place", range(len(QUALITY)))
def test_after_the_first_failure_no_other_check_of_quality_is_shown(place: int) -> None:
    for others in ((), QUALITY[place + 1 :]):
        shown = disclose_verdict(judged(QUALITY[place], *others))
        assert names(shown) == {*QUALITY[: place + 1], "collapse", "bytes"}
        assert [check.name for check in shown.failures()] == [QUALITY[place]]


def test_what_compares_answers_with_the_true_labels_is_ordered_from_the_strictest() -> None:
    assert QUALITY == ("champion", "anchor", "gain", "minimum", "slices", "privacy", "worst_label")


def test_a_failure_that_only_warns_hides_what_comes_behind_it_too() -> None:
    checks = [a_check(name, name not in ("gain", "minimum")) for name in QUALITY]
    checks[QUALITY.index("gain")] = a_check("gain", False, policy="warn")
    assert names(disclose_verdict(judged("minimum", checks=checks))) == {"champion", "anchor", "gain"}


def test_how_many_rows_would_show_a_gain_is_not_told() -> None:
    check = a_check("test_rows", False, required="at least 815 rows, to show a gain", policy="warn")
    shown = disclose_verdict(judged("champion", checks=[a_check("champion", False), check]))
    assert "815" not in str(shown.to_json())


def test_what_nothing_compares_with_is_withheld_and_says_why() -> None:
    waiting = a_check("champion", True, observed="not comparable: its rows are gone", required=APPROVAL)
    verdict = judged(checks=[waiting, a_check("minimum", True)])
    assert is_withheld(verdict)
    assert disclose_verdict(verdict).checks[0] == waiting
    assert disclose_verdict(verdict).checks[1].observed == NOT_SHOWN


def test_the_reasons_of_a_quiet_refusal_hold_no_figure() -> None:
    assert describe_failures(judged("champion")) == f"champion: {NOT_SHOWN}, required at least 0.8"
    assert "0.7123 of it" in describe_failures(judged("champion", figures="open"))


def test_what_is_shown_decides_nothing() -> None:
    quiet = TASK.model_copy(update={"gate": TASK.gate.model_copy(update={"figures": "quiet"})})
    assert quiet.policy_digest() == TASK.policy_digest()
