"""Settings of a task file that work against each other are told, each at its field."""

import re
from pathlib import Path

import pytest

from ptpipeline.task.advice import advise_task
from ptpipeline.task.folder import load_task
from tests.task.test_task import GOOD, written

SOUND = GOOD.replace("{steps: 5}", "{steps: 300}")


@pytest.mark.parametrize(
    ("old", "new", "place", "sentence"),
    [
        ("steps: 300", "steps: 20", "tune.steps", "all 20 steps lie within the warm-up of 20 (tune.warmup_steps)"),
        ("steps: 300", "steps: 50, warmup_steps: 60", "tune.steps", "never as high as learning_rate"),
        ("steps: 300", "steps: 90, eval_every: 91", "tune.eval_every", "dev is measured at the end alone"),
        ("steps: 300", "steps: 100, patience: 2", "tune.patience", "never ends the run early"),
        ('good: " good"', 'good: " bad thing"', "labels.good", "begin with those of the label 'bad', ' bad'"),
        ("Sentiment:", "Sentiment: ", "template", "ends in white space, and the words of 'bad' begin with it"),
        (
            '"{text}\\nSentiment:"',
            "\u201c{text}\\nSentiment:\u201d",
            "template",
            "stands in curly quotes, which the model reads",
        ),
        ('"{text}\\nSentiment:"', "'{text}\\nSentiment:'", "template", "a backslash and an n, which are no line end"),
        ("minimum: 0.5", "minimum: 0.5, checks: {bias: block}", "gate.checks.bias", "without pairs of terms"),
        (
            "gate: {metric: accuracy, minimum: 0.5}",
            "gate: {metric: accuracy, minimum: 0.5, checks: {gain: {over: [hard_prompt]}}}\nhard_prompt: {examples: 0}",
            "gate.checks.gain",
            "equals zero-shot",
        ),
        (
            "\ntemplate:",
            "\n  checks: {rows_per_label: off, min_rows_per_label: 3}\ntemplate:",
            "data.checks.min_rows_per_label",
            "because rows_per_label is off",
        ),
    ],
)
def test_what_works_against_itself_is_told_at_its_field(
    tmp_path: Path, old: str, new: str, place: str, sentence: str
) -> None:
    assert advise_task(load_task(written(tmp_path, SOUND))) == {}
    assert old in SOUND
    [(found, told)] = advise_task(load_task(written(tmp_path, SOUND.replace(old, new)))).items()
    assert ".".join(found) == place
    assert sentence in told


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: 300", "steps: 90, eval_every: 90"),
        ("steps: 300", "steps: 101, patience: 2"),
        ("minimum: 0.5}", "minimum: 0.5, checks: {bias: off}}"),
        ("minimum: 0.5}", "minimum: 0.5, checks: {gain: {over: [hard_prompt]}}}"),
        ("\ntemplate:", "\n  checks: {min_rows_per_label: 3}\ntemplate:"),
    ],
)
def test_what_does_not_work_against_itself_is_not_told(tmp_path: Path, old: str, new: str) -> None:
    assert old in SOUND
    assert advise_task(load_task(written(tmp_path, SOUND.replace(old, new)))) == {}


@pytest.mark.parametrize("check", ["never: block", "worst_label: {min_f1: 0.5}"])
def test_a_check_of_labels_judges_no_free_text(tmp_path: Path, check: str) -> None:
    generating = re.sub(r"\n  label: \w+", "\n  target: label", SOUND)
    generating = re.sub(r"\nlabels: .*", "\ngenerate: {max_new_tokens: 8}", generating)
    generating = generating.replace(
        "metric: accuracy, minimum: 0.5", f"metric: bleu, minimum: 0.5, checks: {{{check}}}"
    )
    [place] = advise_task(load_task(written(tmp_path, generating)))
    assert place == ("gate", "checks", check.partition(":")[0])


def test_a_check_of_labels_that_is_off_is_not_told_of_free_text(tmp_path: Path) -> None:
    generating = re.sub(r"\n  label: \w+", "\n  target: label", SOUND)
    generating = re.sub(r"\nlabels: .*", "\ngenerate: {max_new_tokens: 8}", generating)
    generating = generating.replace(
        "metric: accuracy, minimum: 0.5", "metric: bleu, minimum: 0.5, checks: {never: off}"
    )
    assert advise_task(load_task(written(tmp_path, generating))) == {}
