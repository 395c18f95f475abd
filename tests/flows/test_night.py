"""What Prefect shows of a task's verdict: every check, and labels as they are written."""

import pytest
from markdown_it import MarkdownIt

from benchmarks.fixtures.prompts import a_request, a_task
from flows import night
from flows.night import build_table, name_starter, render_verdict
from flows.stages.chain import Night
from flows.stages.outcome import Outcome
from ptpipeline.records.reports import PairedDifference
from ptpipeline.records.verdicts import Check, Look
from registry.card.markdown import escape

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


def test_what_is_not_known_is_not_told() -> None:
    """Figures are withheld, nothing was compared by a test, and no look was taken."""
    verdict = a_request(a_task(), champion="c" * 64).verdict
    assert verdict is not None
    assert verdict.comparison is not None
    untested = verdict.comparison.model_copy(update={"p_value": None, "test": "", "margin": 0.0})
    withheld = OUTCOME.model_copy(update={"zero_shot": None, "candidate": None, "champion": None, "page": None})
    page = render_verdict(withheld, verdict.model_copy(update={"comparison": untested, "look": None}))
    assert "| champion | accuracy | **+0.0200** | -0.0100 to +0.0500 at 95% | – | – | 20 |" in page
    assert "accuracy: " not in page
    assert "Look " not in page
    assert "MLflow" not in page


@pytest.mark.parametrize(
    ("actor", "schedule", "starter"),
    [
        ("prefect", "0-2-x-x-x-utc", "nightly"),
        ("prefect", None, "prefect"),
        ("ann", None, "prefect (claims ann)"),
        ("ann", "0-2-x-x-x-utc", "prefect (claims ann)"),  # who gives a name may not approve what comes of it
    ],
)
def test_a_run_was_started_by_whoever_gives_a_name_else_by_the_scheduler(
    actor: str, schedule: str | None, starter: str
) -> None:
    assert name_starter(actor, schedule) == starter


def test_the_table_has_the_columns_of_all_tasks_and_the_wide_ones_last() -> None:
    unknown = OUTCOME.model_copy(update={"task": "b", "page": None, "delta": None})
    rows = build_table(Night({"b": unknown, "c": OUTCOME.model_copy(update={"task": "c"})}, {"a": "no rows"}))
    assert [(row["task"], row["status"]) for row in rows] == [("a", "failed"), ("b", "no gain"), ("c", "no gain")]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert list(rows[0])[-2:] == ["reason", "page"]
    assert [row["delta"] for row in rows] == [None, None, 0.1]


def test_a_task_that_failed_behind_its_outcome_is_told_as_failed() -> None:
    [row] = build_table(Night({"mood": OUTCOME}, {"mood": "its table could not be written"}))
    assert row["status"] == "failed"


def test_a_cell_of_the_table_is_no_markdown_which_prefect_renders() -> None:
    words = "[x](javascript:alert(1)) ![p](http://evil.test/p.png) `ptp run mood`, <b>"
    told = OUTCOME.model_copy(update={"reason": words, "plan": words})
    rows = build_table(Night({"mood": told}, {"other": words}))
    cells = [rows[0]["reason"], rows[0]["plan"], rows[1]["reason"]]
    assert {MarkdownIt("commonmark").render(cell).count("<") for cell in cells} == {2}  # the paragraph
    assert rows[0]["page"] == OUTCOME.page


def test_a_line_of_the_night_shows_a_users_words_as_they_are_written() -> None:
    row = {"task": "mood", "status": "failed", "reason": escape("*all* | <b>"), "page": None}
    assert night._render_row(row) == r"mood **failed**: \*all\* \| &lt;b>"
    assert night._render_row(row | {"page": "http://x", "reason": None}) == "[mood](http://x) **failed**: "
