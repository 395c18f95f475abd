"""Prompts that should not pass, really trained on real rows with the shipped base: each is stopped by the check that is
meant for it.

Run by `make soak`; PTP_SOAK_HOME names a folder whose downloads are used again.
"""

import csv
import os
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.stages.chain import run_task
from flows.stages.context import Context, select_tasks
from flows.stages.outcome import Outcome
from ptpipeline.data.rows import Row, normalise, split_of
from ptpipeline.records.verdicts import Verdict
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.settings import Settings
from ptpipeline.task.data import SplitSpec
from tests.shipped import TASKS, texts

pytestmark = pytest.mark.soak

SPLIT = SplitSpec(dev=0.05, test=0.25)
TASK = """\
name: mood
base_model: smollm2-135m-wheel
data:
  source: {{path: {path}, format: csv}}
  text: text
  label: label
  split: {{dev: 0.05, test: 0.25{group}}}
  checks: {{rows_per_label: off, near_duplicate: off{checks}}}
template: "{{text}}\\nSentiment:"
labels: {{bad: " negative", good: " positive"}}
tune: {{num_virtual_tokens: 16, init: sampled_vocab, steps: 60, batch_size: 16, learning_rate: 0.02,
  eval_every: 20, seed: 0}}
gate: {{metric: accuracy, minimum: 0.0{gate}}}
promote: auto
"""


class Project:
    """A folder with one task over a file of rows, and the verdicts of its nights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks = folder / "tasks"
        self.tasks.mkdir()
        (self.tasks / "base_models.yaml").write_text((TASKS / "base_models.yaml").read_text())
        home = Path(os.environ.get("PTP_SOAK_HOME", folder / "home"))
        self.settings = Settings(
            home=home, tasks=self.tasks, store=f"file://{folder / 'store'}", ledger=f"sqlite:///{folder / 'ledger.db'}"
        )

    def night(self, rows: Sequence[tuple[str, ...]], **settings: str) -> tuple[Outcome, Verdict]:
        """Train and judge on these rows of text, label and perhaps a group."""
        path = self.folder / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label", "group")[: len(rows[0])], *rows])
        (self.tasks / "mood.yaml").write_text(
            TASK.format(**{"path": path, "group": "", "checks": "", "gate": ""} | settings)
        )
        stages = Context.open(self.settings)
        outcome = run_task(stages, select_tasks(self.settings).tasks[0])
        found = stages.registry.ledger.latest_verdict(
            "mood", stages.registry.ledger.version("mood", outcome.version).digest
        )
        assert found is not None
        for check in found.checks:
            print(
                f"{'pass' if check.passed else 'FAIL' if check.blocks else 'warn'} {check.name}: "
                f"{check.observed}; required {check.required}"
            )
        return outcome, found

    def promoted(self) -> list[int]:
        """The versions that were promoted, in order."""
        return [row.version for row in Context.open(self.settings).registry.ledger.history("mood", PRODUCTION)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def movies(count: int = 2500) -> list[Row]:
    """So many reviews, always the same."""
    return random.Random(0).sample(texts("movie-sentiment"), count)


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.failures()}


def test_a_prompt_that_is_stuck_on_one_label_has_collapsed(project: Project) -> None:
    """It sees good reviews only while it trains; the test rows have both."""
    rows = [row for row in movies() if row.label == "good" or split_of(normalise(row.text), SPLIT) == "test"]
    outcome, verdict = project.night([(row.text, row.label) for row in rows])
    assert {"collapse", "gain"} <= failed(verdict)
    assert (outcome.status, project.promoted()) == ("no gain", [])


def test_a_prompt_of_shuffled_labels_brings_no_gain(project: Project) -> None:
    """Its training labels are shuffled, the test rows' are true."""
    rows = movies()
    learnt = [row for row in rows if split_of(normalise(row.text), SPLIT) != "test"]
    labels = [row.label for row in learnt]
    random.Random(1).shuffle(labels)
    shuffled = dict(zip((row.id for row in learnt), labels, strict=True))
    outcome, verdict = project.night([(row.text, shuffled.get(row.id, row.label)) for row in rows])
    assert "gain" in failed(verdict)
    assert (outcome.status, project.promoted()) == ("no gain", [])


def test_test_rows_that_leaked_into_training_are_found(project: Project) -> None:
    """Every review stands under two reviewers, and the ingest's own checks are off."""
    rows = [(row.text, row.label, f"{copy}-{row.id}") for row in movies(1500) for copy in range(2)]
    outcome, verdict = project.night(rows, group=", group: group", checks=", split_overlap: off, duplicate: off")
    assert "leakage" in failed(verdict)
    assert verdict.measures["leakage.exact"] > 0.5
    assert (outcome.status, project.promoted()) != ("promoted", [1])


def test_a_prompt_of_a_drifted_snapshot_is_stopped(project: Project) -> None:
    """Overnight the file of reviews became one of tweets."""
    first, _ = project.night([(row.text, row.label) for row in movies()], gate=", checks: {gain: off}")
    assert first.status == "promoted"
    _, verdict = project.night(
        [(row.text, row.label) for row in texts("tweet-sentiment")[:2500]], gate=", checks: {gain: off}"
    )
    assert "drift" in failed(verdict)
    assert project.promoted() == [1]


def test_a_task_on_which_no_prompt_helps_ends_without_gain(project: Project) -> None:
    """Its labels are a hash of the text: nothing can be learnt."""
    rows = [(row.text, ("bad", "good")[zlib.crc32(row.text.encode()) % 2]) for row in movies()]
    outcome, verdict = project.night(rows)
    assert (outcome.status, project.promoted()) == ("no gain", [])
    assert "95% bounds" in outcome.reason
    assert "gain" in failed(verdict)
