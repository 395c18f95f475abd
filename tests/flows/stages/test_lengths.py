"""Rows that are too long: told by their lines before any training, left out, or cut the same everywhere."""

import json
from pathlib import Path

import pytest

import ptpipeline
from flows.on_demand.measure import measure_file
from flows.stages.ingest import ingest
from flows.stages.lengths import build_text
from ptpipeline.data.rows import split_of
from ptpipeline.errors import ContextError, DataError
from ptpipeline.prompts.artifact import read_artifact
from ptpipeline.records.data import Split
from ptpipeline.records.versions import VersionRef
from tests.flows.project import Project
from tests.tiny import sentences, write_csv

LONG = "good film " * 150


def long_in(project: Project, split: Split) -> int:
    """Make one row of that split too long; return its line."""
    rows, spec = sentences(240), project.task().data.split
    number = next(n for n in range(240) if split_of(f"{LONG}{n}", spec) == split)
    rows[7] = (f"{LONG}{number}", "positive")
    write_csv(project.folder / "tiny-sentiment.csv", rows)
    return 9  # behind the header line


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, ("tiny-sentiment",))
    made.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, test: 0.25, reserve: 0.15}")
    return made


@pytest.mark.parametrize("split", ["train", "dev", "test", "reserve"])
def test_a_long_row_of_any_split_is_told_before_training(split: Split, project: Project) -> None:
    line = long_in(project, split)
    with pytest.raises(ContextError, match=rf"task tiny-sentiment: too long: .*sentiment.csv: line {line}; a text may"):
        project.run()
    assert not project.trained


def test_its_own_advice_is_good(project: Project) -> None:
    long_in(project, "test")
    project.edit("  label: label\n", "  label: label\n  too_long: drop\n")
    assert project.run().status == "promoted"
    snapshot = ingest(project.stages, project.task())
    check = next(check for check in snapshot.checks if check.name == "too_long")
    assert (check.count, check.outcome, check.detail) == (1, "warned", "line 9")
    assert sum(info.rows for info in snapshot.splits().values()) == 239


@pytest.mark.parametrize("how", ["block", "drop", "truncate_middle"])
def test_a_template_that_leaves_no_room_is_told_before_any_row(project: Project, how: str) -> None:
    project.edit("  label: label\n", f"  label: label\n  too_long: {how}\n")
    project.edit('template: "{text}', f'template: "{"very long words " * 120}{{text}}')
    with pytest.raises(ContextError, match=r"task tiny-sentiment: template: \d+ tokens without a text, and 251 fit"):
        project.run()
    assert not project.trained


def test_a_target_is_never_cut_and_its_advice_does_not_say_so(project: Project) -> None:
    rows = sentences(240)
    rows[7] = (rows[7][0], "good " * 80)
    write_csv(project.folder / "tiny-sentiment.csv", rows)
    project.edit("  label: label\n", "  target: label\n  too_long: truncate_end\n")
    project.edit('labels: {negative: " negative", positive: " positive"}\n', "generate: {max_new_tokens: 8}\n")
    project.edit("metric: accuracy", "metric: exact_match")
    with pytest.raises(ContextError, match=r"line 9; .* the target 8 \(generate.max_new_tokens\), and none is cut"):
        project.run()


def test_rows_that_were_left_out_are_named_where_a_split_is_short(project: Project) -> None:
    write_csv(project.folder / "tiny-sentiment.csv", [(f"{text} " * 90, label) for text, label in sentences(240)])
    project.edit("  label: label\n", "  label: label\n  too_long: drop\n")
    with pytest.raises(DataError, match=r"check rows_per_label found .*; checks before this one: .*too_long found \d+"):
        project.run()


def test_a_longer_prompt_leaves_out_other_rows(project: Project) -> None:
    rows = sentences(240)
    rows[7] = (f"{'good film ' * 55}", "positive")
    write_csv(project.folder / "tiny-sentiment.csv", rows)
    project.edit("  label: label\n", "  label: label\n  too_long: drop\n")
    before = ingest(project.stages, project.task())
    project.edit("num_virtual_tokens: 4", "num_virtual_tokens: 180")
    counts = [
        sum(check.count for check in snapshot.checks if check.name == "too_long")
        for snapshot in (before, ingest(project.stages, project.task()))
    ]
    assert counts == [0, 1]


def test_rows_have_to_fit_beside_the_longest_prompt_of_a_search(project: Project) -> None:
    project.edit("num_virtual_tokens: 4", "search: {length: [40, 4]}")
    stages, searched = project.stages, project.task()
    limits = {
        length: build_text(stages, searched.model_copy(update={"tune": tune})).limit
        for length, tune in zip((40, 4), searched.tune.variants(), strict=True)
    }
    assert build_text(stages, searched).limit == limits[40] < limits[4]


def test_rows_that_were_left_out_come_back_with_another_tokenizer_of_the_same_name(project: Project) -> None:
    long_in(project, "test")
    project.edit("  label: label\n", "  label: label\n  too_long: drop\n")
    before = ingest(project.stages, project.task())
    assert ingest(project.stages, project.task()).source_key == before.source_key
    config = project.folder / "base/config.json"
    fields = json.loads(config.read_text())
    config.unlink()  # it may be a link to a file of all tests
    config.write_text(json.dumps(fields | {"max_position_embeddings": 2 * fields["max_position_embeddings"]}))
    after = ingest(project.stages, project.task())
    counts = [sum(check.count for check in snapshot.checks if check.name == "too_long") for snapshot in (before, after)]
    assert counts == [1, 0]


def test_cut_rows_are_counted_and_read_alike(project: Project) -> None:
    long_in(project, "test")
    project.edit("  label: label\n", "  label: label\n  too_long: truncate_start\n")
    assert project.run().status == "promoted"
    assert any("are cut (truncate_start): 1 in test" in line for line in project.lines)
    registry = project.stages.registry
    digest = registry.ledger.version("tiny-sentiment", 1).digest
    report = registry.ledger.report_of("tiny-sentiment", digest)
    assert report is not None
    assert report.measures["too_long.rows"] == 1
    assert read_artifact(registry.store, "tiny-sentiment", digest).manifest.too_long == "truncate_start"
    predictor = ptpipeline.load("tiny-sentiment", project.settings)
    one, other = predictor.predict([f"awful {LONG}", f"lovely {LONG}"])
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)


def test_a_file_with_a_long_row_names_its_line(project: Project) -> None:
    project.run()
    path = write_csv(project.folder / "own.csv", [*sentences(20, seed=3), (LONG, "positive")])
    with pytest.raises(ContextError, match=r"own.csv: too long: line 22; a text may have"):
        measure_file(project.stages, VersionRef("tiny-sentiment", 1), path)
    project.edit("  label: label\n", "  label: label\n  too_long: drop\n")
    assert measure_file(project.stages, VersionRef("tiny-sentiment", 1), path).left_out == {"too_long": 1}
