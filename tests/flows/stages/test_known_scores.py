"""A run probes with the scores that it has just stored: it asks for each test row once."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

import ptpipeline
from flows.stages.chain import run_task
from flows.stages.context import Context
from flows.stages.measure import read_known
from ptpipeline.data.snapshot import load_split
from ptpipeline.evaluation.probes.likelihood import bare_likelihoods
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.reports import Report
from ptpipeline.serving.engine import Engine, Question
from tests.flows.project import Project
from tests.flows.stages.test_generation import generating

NAME = "tiny-sentiment"


class Noting(Engine):
    """An engine that notes which texts it is asked together with others: latency asks for one at a time."""

    asked: list[str]

    def score_labels(self, questions: Sequence[Question]) -> list[Tensor]:
        self.asked += [question.fields["text"] for question in questions if len(questions) > 1]
        return super().score_labels(questions)

    def generate(self, questions: Sequence[Question]) -> list[str]:
        self.asked += [question.fields["text"] for question in questions if len(questions) > 1]
        return super().generate(questions)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path, (NAME,))
    project.edit("gate: {", "gate: {checks: {bias: {policy: warn, swaps: [[good, bad]]}}, ")
    return project


def run_noted(project: Project) -> tuple[Context, Noting, Report, Artifact]:
    """The project's run with an engine that notes its questions; the promoted prompt with its report."""
    context = project.stages
    engine = Noting(context.engine("tiny").base)
    engine.asked = []
    context._engines = dict.fromkeys(context._engines, engine)
    run_task(context, project.task())
    artifact = ptpipeline.load(NAME, project.settings).resolved.artifact
    report = context.registry.ledger.report_of(NAME, artifact.digest)
    assert report is not None
    return context, engine, report, artifact


@pytest.mark.parametrize("generates", [False, True])
def test_a_run_asks_for_each_test_row_once(project: Project, generates: bool) -> None:
    context, engine, report, _ = run_noted(generating(project) if generates else project)
    rows = load_split(context.registry.store, context.snapshot(NAME, report.snapshot), "test")
    asked = Counter(engine.asked)
    assert {asked[row.text] for row in rows} == {1}
    assert {"robustness.case", "bias.flips", "privacy.auc"} <= set(report.measures)


def test_the_scores_of_prompt_and_bare_base_are_read_from_their_own_results(project: Project) -> None:
    context, engine, report, artifact = run_noted(project)
    rows = load_split(context.registry.store, context.snapshot(NAME, report.snapshot), "test")
    known = read_known(context, report, artifact.manifest)
    scores = engine.score_labels([Question(artifact.digest, row.fields) for row in rows])
    for row, own in zip(rows, scores, strict=True):
        assert known.prompted[row.id] == pytest.approx(own.tolist(), abs=1e-5)
    bare = [known.bare[row.id][list(artifact.manifest.labels).index(row.label)] for row in rows]
    assert bare == pytest.approx(bare_likelihoods(engine, artifact, rows), abs=1e-5)
    assert known.bare != known.prompted


def test_calibrated_scores_of_the_bare_base_are_not_the_probes(project: Project) -> None:
    project.edit("tune: {", "scoring: {calibrated: true}\ntune: {")
    context, _, report, artifact = run_noted(project)
    known = read_known(context, report, artifact.manifest)
    assert (set(known.bare), len(known.prompted)) == (set(), report.rows)
