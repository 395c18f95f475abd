"""What Prefect shows of a task's verdict: every check, and labels as they are written."""

from benchmarks.fixtures.prompts import a_request, a_task
from flows.night import render_verdict
from flows.stages.outcome import Outcome
from ptpipeline.records.reports import PairedDifference
from ptpipeline.records.verdicts import Check, Look

OUTCOME = Outcome(
    task="mood",
    metric="accuracy",
    status="no gain",
    zero_shot=0.6,
    candidate=0.7,
    champion=0.6,
    delta=0.1,
    lower=-0.1,
    upper=0.3,
    verdict="failed: gain",
    version=3,
    bytes=144,
    reason="gain: *nothing* | <b>",
    page="http://127.0.0.1:5000/#/models/mood",
)
CHECKS = [
    Check(name="gain", passed=False, observed="over zero_shot +0.1 | never `bad`\n# title", required="better"),
    Check(name="minimum", passed=True, observed="0.7", required="0.5"),
    Check(name="robustness", passed=False, observed="31%", required="25%", policy="warn"),
]


def told() -> str:
    verdict = a_request(a_task(), champion="c" * 64).verdict
    assert verdict is not None
    pair = PairedDifference(
        metric="macro_f1",
        difference=0.1,
        lower=-0.1,
        upper=0.3,
        confidence=0.95,
        rows=20,
        dropped=0,
        p_value=0.2,
        test="paired bootstrap",
        margin=0.01,
    )
    look = Look(test_set=1, number=2, alpha=0.0076, spent=0.038, budget=0.05)
    return render_verdict(
        OUTCOME,
        verdict.model_copy(
            update={
                "checks": CHECKS,
                "comparison": pair,
                "baselines": {"zero_shot": pair},
                "look": look,
                "passed": False,
            }
        ),
    )


def test_every_check_is_a_line() -> None:
    lines = told().splitlines()
    assert "- ✓ pass **minimum**: 0.7; required (blocks): 0.5" in lines
    assert "- ⚠ warning **robustness**: 31%; required (warns): 25%" in lines
    assert any(line.startswith("- ✗ **FAIL** **gain**: ") for line in lines)


def test_comparisons_and_budget_stand_before_the_checks() -> None:
    before, _, _ = told().partition("## Checks")
    assert (
        "| champion (margin 0.0100) | macro F1 | **+0.1000** | -0.1000 to +0.3000 at 95% | 0.2 | paired "
        "bootstrap | 20 |" in before
    )
    assert "| zero-shot (margin 0.0100) |" in before
    assert "Look 2 at these test rows: it may err with a chance of 0.0076; 0.038 of 0.050 is spent." in before


def test_a_users_words_are_shown_as_they_are_written() -> None:
    lines = told().splitlines()
    [row] = [line for line in lines if "**gain**" in line]
    assert r"over zero\_shot +0.1 \| never \`bad\` \# title" in row
    assert r"gain: \*nothing\* \| &lt;b>" in lines
