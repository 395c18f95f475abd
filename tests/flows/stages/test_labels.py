"""Tasks of very many labels, and of a label that no answer is right for, from rows to production and its answers."""

import json
from pathlib import Path
from typing import Any

import pytest

import ptpipeline
from flows.stages.ingest import ingest
from ptpipeline.records.reports import TextScores
from tests.flows.project import Project
from tests.golden.product import ptp
from tests.tiny import sentences, write_csv

NAME = "tiny-sentiment"
MANY = [f"{kind} {number}" for kind in ("a film", "plot", "scene", "the story") for number in range(16, 32)]
OFF = ("gain", "collapse", "never", "robustness", "drift", "leakage", "privacy", "bias", "slices", "latency")


def declare(project: Project, labels: list[str], rows: list[tuple[str, str]], **checks: str) -> None:
    """Make the project's task one of these labels and rows, whose gate asks for nothing but the given checks."""
    write_csv(project.folder / f"{NAME}.csv", rows)
    project.edit('labels: {negative: " negative", positive: " positive"}', f"labels: {json.dumps(labels)}")
    project.edit("  label: label\n", "  label: label\n  checks: {rows_per_label: off}\n")
    policies = json.dumps(dict.fromkeys(OFF, "off") | checks)
    project.edit("minimum: 0.7, champion: {rule: non_inferiority, margin: 0.2}", f"minimum: 0, checks: {policies}")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A task of 64 labels, which trained for two steps and is in production."""
    project = Project(tmp_path_factory.mktemp("many"), (NAME,))
    texts = [text for text, _ in sentences(640)]
    declare(project, MANY, [(text, MANY[number % len(MANY)]) for number, text in enumerate(texts)], worst_label="off")
    project.edit("steps: 10", "steps: 2")
    project.edit("warmup_steps: 3, eval_every: 5", "warmup_steps: 1, eval_every: 2")
    assert project.run().status == "promoted"
    return project


def test_every_label_of_very_many_is_in_a_snapshot(many: Project) -> None:
    snapshot = ingest(many.stages, many.task())
    found = [set(info.labels) for info in (snapshot.train, snapshot.dev, snapshot.test)]
    assert found[0] == set(MANY)
    assert sum(info.rows for info in snapshot.splits().values()) == 640


def test_very_many_labels_are_scored_one_by_one(many: Project) -> None:
    registry = many.stages.registry
    report = registry.ledger.report_of(NAME, registry.ledger.version(NAME, 1).digest)
    assert report is not None
    assert not isinstance(report.prompt, TextScores)
    assert set(report.prompt.per_label) == set(MANY)
    assert sum(report.prompt.predicted.values()) == report.rows


def test_an_answer_of_very_many_labels_has_the_chance_of_each(many: Project) -> None:
    [answer] = ptpipeline.load(f"{NAME}@production", many.settings).predict(["the lovely film"])
    assert answer.label in MANY
    assert answer.probabilities is not None
    assert set(answer.probabilities) == set(MANY)
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_the_command_asks_and_measures_a_version_of_very_many_labels(
    many: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in many.settings.model_dump(include={"home", "tasks", "store", "ledger", "dtype"}).items():
        monkeypatch.setenv(f"PTP_{name.upper()}", str(value))
    own = write_csv(
        tmp_path / "own.csv", [(f"{text} twice", MANY[n % 64]) for n, (text, _) in enumerate(sentences(128))]
    )
    code, output = ptp("evaluate", NAME, "--data", str(own), "--json")
    measured: dict[str, Any] = json.loads(output)
    assert (code, measured["rows"], len(measured["scores"]["prompt"]["per_label"])) == (0, 128, 64)
    code, output = ptp("predict", NAME, "a dull plot", "--json")
    assert (code, json.loads(output)["label"] in MANY) == (0, True)
    code, output = ptp("evaluate", NAME, "--data", str(own))
    assert (code, [label for label in MANY if label not in output]) == (0, [])


@pytest.fixture
def third(tmp_path: Path) -> Project:
    """A task one of whose three labels nothing in a text tells, so that no answer is right for it."""
    project = Project(tmp_path, (NAME,))
    rows = [(text, "mixed" if number % 5 == 0 else label) for number, (text, label) in enumerate(sentences(240))]
    declare(project, ["negative", "positive", "mixed"], rows)
    return project


def test_a_first_version_that_is_never_right_for_a_label_is_promoted_with_a_warning(third: Project) -> None:
    outcome = third.run()
    assert outcome.status == "promoted"
    assert [line for line in third.lines if "warning: worst_label: the lowest F1 is 0.0000, of 'mixed'" in line]
    verdict = third.stages.registry.ledger.latest_verdict(NAME, third.stages.registry.ledger.version(NAME, 1).digest)
    assert verdict is not None
    assert [(one.name, one.passed, one.policy) for one in verdict.checks if one.name == "worst_label"] == [
        ("worst_label", False, "warn")
    ]


def test_a_first_version_that_is_never_right_for_a_label_is_refused_if_the_task_says_so(third: Project) -> None:
    third.edit('checks: {"gain"', 'checks: {worst_label: block, "gain"')
    outcome = third.run()
    assert (outcome.status, outcome.verdict) == ("gate failed", "failed: worst_label")


def test_a_label_without_enough_test_rows_is_no_worst_one(third: Project) -> None:
    third.edit('checks: {"gain"', 'checks: {worst_label: {policy: block, min_rows: 60}, "gain"')
    assert third.run().status == "promoted"
