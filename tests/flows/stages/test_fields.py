"""A task of two columns, from rows to production on a tiny model, and what a person asks of it."""

import csv
import html
import json
import math
from collections import Counter
from pathlib import Path

import pytest

import ptpipeline
from flows.on_demand.diff import diff
from flows.on_demand.export import export
from flows.on_demand.measure import measure_file
from flows.stages.ingest import ingest
from ptpipeline.data.rows import normalise_fields
from ptpipeline.data.snapshot import load_split
from ptpipeline.errors import DataError
from ptpipeline.evaluation.examples import Writer, choose_examples
from ptpipeline.models.base import prepare_base
from ptpipeline.models.load import load_base
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.reports import Report
from ptpipeline.records.versions import PRODUCTION, VersionRef
from registry.card.page import render_page
from registry.versions.publish import load_card
from tests.flows.project import Project
from tests.golden.product import ptp
from tests.prompts.adapters import theirs
from tests.tiny import sentences

TOPICS = ("film", "plot", "scene", "story")


def write_pairs(path: Path, rows: list[tuple[str, str]]) -> Path:
    """The sentences as reviews of a topic each, in two columns of which one has another name than its field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = [(TOPICS[number % 4], review, label) for number, (review, label) in enumerate(rows)]
        csv.writer(file).writerows([("topic", "snippet", "label"), *table])
    return path


def pairs(project: Project) -> Project:
    """The task of the project, turned into one of two columns."""
    write_pairs(project.folder / "tiny-sentiment.csv", sentences(240))
    project.edit("  text: text\n", "  fields: {review: snippet}\n")
    project.edit('template: "{text}', 'template: "{topic}: {review}')
    return project


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = pairs(Project(tmp_path_factory.mktemp("night"), ("tiny-sentiment",)))
    made.edit("gate: {metric: accuracy,", "gate: {metric: accuracy, checks: {bias: {swaps: [[film, plot]]}},")
    made.edit("  label: label\n", "  label: label\n  slices: [topic]\n")
    made.edit("promote: auto", "promote: auto\ntexts_in_reports: true\nhard_prompt: {examples: 2}")
    assert made.run().status == "promoted"
    return made


def test_two_columns_go_from_rows_to_production(night: Project) -> None:
    registry = night.stages.registry
    head = registry.ledger.head("tiny-sentiment", PRODUCTION)
    assert head is not None
    artifact = read_artifact(registry.store, "tiny-sentiment", head.digest)
    assert artifact.manifest.template == "{topic}: {review}\nSentiment:"
    asked = [{"topic": "film", "review": "the lovely story"}, {"review": "a dull scene", "topic": "plot"}]
    answers = ptpipeline.load("tiny-sentiment", night.settings).predict(asked)
    assert [answer.label for answer in answers] == ["positive", "negative"]


def test_probes_change_every_field(night: Project) -> None:
    registry = night.stages.registry
    report = registry.ledger.report_of("tiny-sentiment", registry.ledger.version("tiny-sentiment", 1).digest)
    assert report is not None
    rows = load_split(registry.store, night.stages.snapshot("tiny-sentiment", report.snapshot), "test")
    holding = [row for row in rows if {"film", "plot"} & set(" ".join(row.fields.values()).split())]
    assert any(not {"film", "plot"} & set(row.fields["review"].split()) for row in holding)
    assert report.measures["bias.rows"] == len(holding)
    assert report.measures["robustness.rows"] == report.rows


def test_a_snapshot_has_a_column_for_each_field(night: Project) -> None:
    context = night.stages
    snapshot = ingest(context, night.task())
    assert snapshot.fields == ["review", "topic"]
    rows = load_split(context.registry.store, snapshot, "test")
    assert {frozenset(row.fields) for row in rows} == {frozenset({"review", "topic"})}
    assert {row.fields["topic"] for row in rows} <= set(TOPICS)


def test_words_do_not_pass_from_one_field_to_the_next() -> None:
    assert normalise_fields({"a": "x y", "b": "z"}) != normalise_fields({"a": "x", "b": "y z"})


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ("the lovely story", "text 1 for .* is one text, but the template has the fields review and topic"),
        ({"review": "a"}, "the field 'topic' is missing; the template has the fields review and topic"),
        ({"review": "a", "topic": "b", "text": "c"}, "the field 'text' is unknown"),
        ({"review": "a", "topic": 3}, "the field 'topic' is int; expected text"),
        ({"review": "a", "topic": "\ud800"}, "text 1 for .*: not Unicode"),
        (7, "text 1 for .* is int; expected text"),
    ],
)
def test_a_text_of_other_fields_is_refused_in_a_sentence(asked: object, fault: str, night: Project) -> None:
    with pytest.raises(DataError, match=fault):
        ptpipeline.load("tiny-sentiment", night.settings).predict([asked])  # type: ignore[list-item]


def test_fields_and_files_are_asked_by_the_command(night: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(night, monkeypatch)
    path = night.folder / "asked.jsonl"
    rows = [{"topic": "film", "review": "lovely"}, {"topic": "plot", "review": "the dull scene", "more": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output = ptp("predict", "tiny-sentiment", "--input", str(path), "--json")
    assert code == 0, output
    assert [json.loads(line)["label"] for line in output.splitlines()] == ["positive", "negative"]
    code, output = ptp("predict", "tiny-sentiment", "--field", "topic=film", "--field", "review=1=dull plot", "--json")
    assert json.loads(output)["label"] == "negative"


@pytest.mark.parametrize(
    ("name", "body", "options"),
    [
        ("asked.csv", 'more,review,topic\n1,"a, lovely",film\n2,"the dull scene",plot\n', []),
        ("asked.csv", 'topic;review\nfilm;"a, lovely"\nplot;the dull scene\n', ["--delimiter", ";"]),
        ("asked.tsv", "topic\treview\nfilm\ta, lovely\nplot\tthe dull scene\n", []),
    ],
)
def test_a_table_of_fields_is_asked_row_by_row(
    night: Project, monkeypatch: pytest.MonkeyPatch, name: str, body: str, options: list[str]
) -> None:
    enter(night, monkeypatch)
    Path(name).write_text(body)
    code, output = ptp("predict", "tiny-sentiment", "--input", name, *options, "--json")
    assert code == 0, output
    answers = [json.loads(line) for line in output.splitlines()]
    assert [(one["index"], one["label"]) for one in answers] == [(0, "positive"), (1, "negative")]
    by_fields = ptpipeline.load("tiny-sentiment", night.settings).predict([{"topic": "film", "review": "a, lovely"}])
    assert answers[0]["probabilities"] == pytest.approx(by_fields[0].probabilities, abs=1e-6)


def test_peft_answers_rows_of_two_fields_as_ptpipeline_does(night: Project) -> None:
    folder = night.folder / "peft"
    export(night.settings, "tiny-sentiment@1", "peft", folder)
    base = load_base(prepare_base("tiny", night.settings), "float32")
    template = json.loads((folder / "manifest.json").read_text())["template"]
    words = {label: base.encode(f" {label}", False) for label in ("negative", "positive")}
    assert {len(ids) for ids in words.values()} == {1}
    for topic, review in (("film", "the lovely story"), ("plot", "a dull scene"), ("story", "good and fine")):
        ids = base.encode(template.replace("{topic}", topic).replace("{review}", review), True)
        logits = theirs(base, folder, ids)[0]
        scores = {label: float(logits.log_softmax(-1)[token]) for label, (token,) in words.items()}
        total = sum(map(math.exp, scores.values()))
        [answer] = ptpipeline.load("tiny-sentiment", night.settings).predict([{"topic": topic, "review": review}])
        assert answer.probabilities == pytest.approx({one: math.exp(s) / total for one, s in scores.items()}, abs=1e-4)


def report_of(project: Project) -> Report:
    registry = project.stages.registry
    found = registry.ledger.report_of("tiny-sentiment", registry.ledger.version("tiny-sentiment", 1).digest)
    assert found is not None
    return found


def test_examples_of_the_hard_prompt_hold_both_fields(night: Project) -> None:
    context, task = night.stages, night.task()
    registry = context.registry
    train = load_split(registry.store, context.snapshot("tiny-sentiment", report_of(night).snapshot), "train")
    manifest = read_artifact(
        registry.store, "tiny-sentiment", registry.ledger.version("tiny-sentiment", 1).digest
    ).manifest
    base = load_base(prepare_base("tiny", night.settings), "float32")
    front = base.tokenizer.decode(Writer(base, manifest).write(task.hard_prompt, train, 200).ids)
    chosen = choose_examples(train, 2, True)
    assert [f"{row.fields['topic']}: {row.fields['review']}\nSentiment: {row.label}\n\n" for row in chosen] == [
        f"{part}\n\n" for part in front.split("\n\n") if part
    ]
    assert report_of(night).hard_prompt is not None


@pytest.fixture(scope="module")
def poor(night: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same with a second version, which hardly trained and is worse than the first."""
    made = night.copy(tmp_path_factory.mktemp("poor"))
    made.edit('init: {text: " yes"}, steps: 10', "steps: 2")
    made.edit("checks: {bias:", "checks: {slices: {min_rows: 5}, bias:")
    assert made.run().version == 2
    return made


def test_a_field_may_be_a_slice_in_which_versions_are_compared(poor: Project) -> None:
    context = poor.stages
    registry, version = context.registry, context.registry.ledger.version("tiny-sentiment", 2)
    verdict = registry.ledger.latest_verdict("tiny-sentiment", version.digest)
    assert verdict is not None
    rows = load_split(registry.store, context.snapshot("tiny-sentiment", report_of(poor).snapshot), "test")
    counts = Counter(row.fields["topic"] for row in rows)
    found = {part.name: part for part in verdict.slices}
    assert {name: found[f"topic {name}"].rows for name in TOPICS} == counts
    assert all(found[f"topic {name}"].difference < 0 for name in TOPICS)


def test_the_page_of_a_version_shows_both_fields_of_a_wrong_row(poor: Project) -> None:
    registry = poor.stages.registry
    version = registry.ledger.version("tiny-sentiment", 2)
    card = load_card(registry, version.task, version.digest)
    page = html.unescape(render_page(card, version).decode())
    assert "{topic}: {review}" in page
    mistakes = card.provenance.mistakes
    assert mistakes is not None
    rows = {(topic, review) for topic, review, _ in csv.reader((poor.folder / "tiny-sentiment.csv").open())}
    wrong = [pair for pair in rows if any(set(pair) <= set(row.text.split("\n")) for row in mistakes.shown)]
    assert len(wrong) == len(mistakes.shown) > 0
    assert [row.text for row in mistakes.shown if f">{row.text}<" not in page] == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--field", "topic"], "--field 'topic' has no `=`"),
        (["--field", "topic=a", "--field", "topic=b"], "--field topic is given twice"),
        (["--field", "topic=a"], "--field: the field 'review' is missing"),
        (
            ["text", "--field", "topic=a"],
            "TEXT and --field given; give texts, or --field NAME=TEXT",
        ),
        ([], "no text given; give texts, or --field"),
        (["--input", "none.csv"], "none.csv: no such file"),
        (["--input", "half.csv"], "half.csv: no column 'topic'"),
        (["--input", "empty.jsonl"], "empty.jsonl: line 2: a field is missing"),
        (["--input", "rows.data"], "rows.data: its name does not tell its format"),
    ],
)
def test_a_wrong_question_is_one_sentence(
    arguments: list[str],
    fault: str,
    night: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enter(night, monkeypatch)
    Path("half.csv").write_text("review\na\n")
    Path("rows.data").write_text("review\na\n")
    Path("empty.jsonl").write_text('{"review": "a", "topic": "b"}\n{"review": "a", "topic": null}\n')
    code, _ = ptp("predict", "tiny-sentiment", *arguments)
    assert (code, fault in capsys.readouterr().err.replace("\n", " ")) == (1, True)


def test_a_row_is_traced_by_its_fields(night: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(night, monkeypatch)
    context = night.stages
    row = load_split(context.registry.store, ingest(context, night.task()), "train")[0]
    pairs = [part for name, text in row.fields.items() for part in ("--field", f"{name}={text.upper()}")]
    code, output = ptp("lineage", *pairs, "--json")
    assert code == 0, output
    assert [json.loads(line)["version"] for line in output.splitlines()] == [1]


def test_a_file_is_measured_by_its_fields(night: Project) -> None:
    path = write_pairs(night.folder / "own.csv", sentences(40, seed=9))
    report = measure_file(night.stages, VersionRef("tiny-sentiment", 1), path)
    assert report.rows == 40
    assert report.scores["prompt"].figures()["accuracy"] > 0.9


def test_other_fields_do_not_compare(night: Project, tmp_path: Path) -> None:
    copy = night.copy(tmp_path)
    copy.edit("  fields: {review: snippet}\n", "  text: snippet\n")
    copy.edit("{topic}: {review}", "{text}")
    assert copy.run().status == "awaiting approval"
    told = "it reads the fields review and topic, the task's rows now have the field text"
    assert any(told in line for line in copy.lines)
    with pytest.raises(DataError, match="cannot be measured on the rows of task tiny-sentiment: it reads the fields"):
        diff(copy.stages, VersionRef("tiny-sentiment", 1), VersionRef("tiny-sentiment", 2))


def test_a_row_with_an_empty_field_is_left_out_and_told(tmp_path: Path) -> None:
    project = pairs(Project(tmp_path, ("tiny-sentiment",)))
    with (tmp_path / "tiny-sentiment.csv").open("a") as file:
        file.write("film,,positive\n,a lovely plot of it,positive\n")
    checks = {check.name: check for check in ingest(project.stages, project.task()).checks}
    assert (checks["empty_text"].count, checks["empty_text"].detail) == (2, "lines 242, 243")


def test_the_same_fields_in_another_order_ask_for_the_same_rows(tmp_path: Path) -> None:
    project = pairs(Project(tmp_path, ("tiny-sentiment",)))
    before = ingest(project.stages, project.task())
    project.edit("{topic}: {review}", "{review} ({topic})")
    assert ingest(project.stages, project.task()).digest == before.digest


def enter(project: Project, patch: pytest.MonkeyPatch) -> None:
    """Make the project's folder the present one, and let the settings name what it holds."""
    for name, value in {"HOME": "home", "TASKS": "tasks", "DTYPE": "float32"}.items():
        patch.setenv(f"PTP_{name}", value)
    patch.setenv("PTP_STORE", str(project.settings.store))
    patch.setenv("PTP_LEDGER", str(project.settings.ledger))
    patch.chdir(project.folder)


def test_a_group_may_be_a_field(tmp_path: Path) -> None:
    project = pairs(Project(tmp_path, ("tiny-sentiment",)))
    rows = [(f"topic {number // 3}", text, label) for number, (text, label) in enumerate(sentences(240))]
    with (tmp_path / "tiny-sentiment.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("topic", "snippet", "label"), *rows])
    project.edit("test: 0.25}", "test: 0.25, group: topic}")
    context = project.stages
    snapshot = ingest(context, project.task())
    topics = [
        {row.fields["topic"] for row in load_split(context.registry.store, snapshot, split)}
        for split in snapshot.splits()
    ]
    assert sum(map(len, topics)) == len(set().union(*topics)) == 80
