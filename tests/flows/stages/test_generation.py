"""A task that answers in free text, from rows to production on a tiny model; beside a classification task too."""

from pathlib import Path

import pytest
from pyarrow import parquet

import ptpipeline
from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.plan import plan
from flows.stages.promote import move
from flows.stages.train import train
from ptpipeline.errors import DataError, PtpError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.reports import Report, TextScores
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.serving.engine import Question
from registry.card.description import render_description
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.publish import load_card
from tests.flows.project import Project
from tests.tiny import sentences, write_csv

WORDS = ("positive", "negative")
QUESTIONS = ["the good film was a story", "dull plot and the scene"]


def generating(project: Project, name: str = "tiny-sentiment") -> Project:
    """The task of that name, turned into one that writes the opinion as text."""
    project.edit("  label: label\n", "  target: label\n", name)
    project.edit(
        'labels: {negative: " negative", positive: " positive"}', "generate: {max_new_tokens: 1}", name
    )  # the tiny base never learnt to end
    project.edit("metric: accuracy, minimum: 0.7", "metric: exact_match, minimum: 0.9", name)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return generating(Project(tmp_path, ("tiny-sentiment",)))


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = generating(Project(tmp_path_factory.mktemp("first-night"), ("tiny-sentiment",)))
    made.run()
    return made


def report_of(stages: Context, number: int) -> Report:
    report = stages.registry.ledger.report_of(
        "tiny-sentiment", stages.registry.ledger.version("tiny-sentiment", number).digest
    )
    assert report is not None
    return report


def test_free_text_goes_from_rows_to_production(project: Project) -> None:
    outcome = project.run()
    assert (outcome.status, outcome.metric, outcome.verdict) == ("promoted", "exact_match", "passed")
    assert outcome.candidate > 0.9 > outcome.zero_shot
    predictor = ptpipeline.load("tiny-sentiment", project.settings)
    answers = predictor.predict(QUESTIONS)
    assert [answer.text for answer in answers] == ["positive", "negative"]
    assert [answer.text for answer in answers] == [predictor.predict([question])[0].text for question in QUESTIONS]
    assert answers[0].to_json() == {"text": "positive", "version": "tiny-sentiment@1", "digest": answers[0].digest}
    assert examine(project.stages.registry) == []


@pytest.mark.usefixtures("promoted")
def test_a_report_measures_texts_and_keeps_none(project: Project) -> None:
    stages = project.stages
    report = report_of(stages, 1)
    assert isinstance(report.prompt, TextScores)
    assert isinstance(report.majority, TextScores)
    low, high = report.interval["exact_match"]
    assert low <= report.prompt.exact_match <= high
    assert report.majority.most_frequent_share == 1
    table = parquet.read_table(project.folder / "store" / report.rows_key)
    assert set(table.column_names) == {"id", "tokens", *report.prompt.figures()}
    assert sum(table.column("exact_match").to_pylist()) / report.rows == report.prompt.exact_match


@pytest.mark.usefixtures("promoted")
def test_targets_appear_in_no_line_record_or_page(project: Project) -> None:
    stages = project.stages
    registry, digest = stages.registry, stages.registry.ledger.version("tiny-sentiment", 1).digest
    card = load_card(registry, "tiny-sentiment", digest)
    tuned, verdict = (
        registry.ledger.publication("tiny-sentiment", digest),
        registry.ledger.latest_verdict("tiny-sentiment", digest),
    )
    told = [
        *project.lines,
        render_description(card),
        str(card.snapshot),
        str(card.provenance.report),
        str(tuned),
        str(verdict),
        str(card.metrics()),
        str(card.tags()),
    ]
    assert "confusion" not in card.provenance.plots
    assert {"exact_match", "zero_shot_bleu", "majority_rouge_l"} <= set(card.metrics())
    assert not [line for line in told for word in WORDS if word in line]


@pytest.mark.usefixtures("promoted")
def test_a_challenger_is_compared_row_by_row(project: Project) -> None:
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    outcome = project.run()
    assert project.trained
    assert (outcome.version, outcome.delta) == (2, 0)
    assert any("pass champion: exact match +0.0000" in line for line in project.lines)


def test_a_champion_that_answered_with_labels_needs_a_person(tmp_path: Path) -> None:
    project = Project(tmp_path, ("tiny-sentiment",))
    project.run()
    assert generating(project).run().status == "awaiting approval"
    assert any(
        "it answers the labels negative, positive, the task now asks for free text" in line for line in project.lines
    )
    assert move(project.stages, "tiny-sentiment", PRODUCTION, 2, Cause("ann", "texts now")).version == 2


def test_both_kinds_train_in_one_gang(tmp_path: Path) -> None:
    project = Project(tmp_path, ("labels", "words"))
    generating(project, "words")
    stages = project.stages
    tuned = train(stages, [plan(stages, task, ingest(stages, task)) for task in project.declared()])
    assert not [result for result in tuned.values() if isinstance(result, str)]
    engine = stages.engine("tiny")
    artifacts = {
        name: read_artifact(stages.registry.store, name, result.digest)
        for name, result in tuned.items()
        if not isinstance(result, str)
    }
    for artifact in artifacts.values():
        engine.load(artifact)
    with pytest.raises(DataError, match="words answers free text of at most 1 tokens: it has no labels to rank"):
        engine.score_labels([Question(artifacts["words"].digest, {"text": "good"})])
    with pytest.raises(DataError, match="labels answers labels negative, positive: it generates no text"):
        engine.generate([Question(artifacts["labels"].digest, {"text": "good"})])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('init: {text: " yes"}', "init: class_labels", "the task has no labels"),
        ("num_virtual_tokens: 4", "num_virtual_tokens: 255", "an answer of 1 leave no room for text"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(project: Project, old: str, new: str, sentence: str) -> None:
    project.edit(old, new)
    with pytest.raises(PtpError, match=sentence):
        project.run()


def test_a_target_over_the_limit_names_its_row_and_not_its_text(project: Project) -> None:
    write_csv(project.folder / "tiny-sentiment.csv", [(text, f"{label} indeed") for text, label in sentences(240)])
    told = r"too long: .*\.csv: lines 2, 3, 4 and more; .* the target 1 \(generate\.max_new_tokens\)"
    with pytest.raises(PtpError, match=told) as caught:
        project.run()
    assert "indeed" not in str(caught.value)
