"""The whole chain on a tiny model, a folder and SQLite: what is new runs, what is known does not run again."""

from collections.abc import Callable
from pathlib import Path

import pytest

import ptpipeline
from flows.stages.chain import Mode, Result, run
from flows.stages.context import select_tasks
from flows.stages.ingest import ingest
from flows.stages.plan import plan
from flows.stages.promote import move
from flows.stages.train import train
from ptpipeline.errors import (
    NotFound,
    PromotionRefused,
)
from ptpipeline.records.versions import PRODUCTION
from ptpipeline.storage.keys import prompt_prefix
from registry.repair.doctor import examine
from registry.versions.commit import Cause
from registry.versions.promotion import rollback
from tests.flows.project import Project
from tests.tiny import sentences, write_csv


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, ("tiny-sentiment",))


def test_a_task_goes_from_rows_to_production(project: Project) -> None:
    outcome = project.run()
    assert (outcome.status, outcome.verdict, outcome.version) == ("promoted", "passed", 1)
    assert outcome.candidate > outcome.zero_shot
    answers = ptpipeline.load("tiny-sentiment", project.settings).predict(
        ["the good film was a story", "dull plot and the scene"]
    )
    assert [(a.label, a.version) for a in answers] == [
        ("positive", "tiny-sentiment@1"),
        ("negative", "tiny-sentiment@1"),
    ]
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)
    assert examine(project.stages.registry) == []


def test_a_second_run_trains_and_measures_nothing(project: Project) -> None:
    first = project.run()
    second = project.run()
    assert not project.trained
    assert any("source unchanged (by size and sha256 of each file)" in line for line in project.lines)
    assert any("was measured on these" in line for line in project.lines)
    assert (second.status, second.version) == ("unchanged", first.version)
    assert len(project.stages.registry.ledger.history("tiny-sentiment")) == 1


@pytest.mark.usefixtures("promoted")
def test_a_new_recipe_trains_and_meets_the_champion(project: Project) -> None:
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    outcome = project.run()
    assert project.trained
    assert outcome.version == 2
    assert outcome.champion is not None
    assert any("pass champion: accuracy +" in line or "pass champion: accuracy -" in line for line in project.lines)


@pytest.mark.usefixtures("promoted")
def test_a_new_policy_gates_again_without_training(project: Project) -> None:
    project.edit("minimum: 0.7", "minimum: 0.75")
    outcome = project.run()
    assert not project.trained
    assert outcome.verdict == "passed"


def test_a_failed_gate_registers_but_does_not_promote(project: Project) -> None:
    project.edit('init: {text: " yes"}, steps: 10', "steps: 2")
    outcome = project.run()
    assert (outcome.status, outcome.version) == ("no gain", 1)
    with pytest.raises(PromotionRefused, match="failed the gate"):
        move(project.stages, "tiny-sentiment", PRODUCTION, 1, Cause("me", "I insist"))
    with pytest.raises(NotFound):
        ptpipeline.load("tiny-sentiment", project.settings)


def test_manual_promotion_awaits_a_person(project: Project) -> None:
    project.edit("promote: auto", "promote: manual")
    assert project.run().status == "awaiting approval"
    move(project.stages, "tiny-sentiment", PRODUCTION, 1, Cause("ann", "reviewed"))
    assert ptpipeline.load("tiny-sentiment", project.settings).resolved.number == 1


def test_a_gang_trains_several_tasks_and_one_failure_stays_alone(tmp_path: Path) -> None:
    project = Project(tmp_path, ("one", "two", "three"))
    project.edit("learning_rate: 0.05", "learning_rate: 1.0e+30", "two")
    stages = project.stages
    plans = [plan(stages, task, ingest(stages, task)) for task in project.declared()]
    results = train(stages, plans)
    assert "not finite" in str(results["two"])
    assert not isinstance(results["one"], str)
    assert not isinstance(results["three"], str)


def test_one_tasks_error_ends_that_task_alone(tmp_path: Path) -> None:
    project = Project(tmp_path, ("one", "two"))
    project.edit("text: text", "text: body", "two")
    night = run(project.stages, select_tasks(project.settings), Mode(isolate=True))
    assert (list(night.outcomes), list(night.errors)) == (["one"], ["two"])
    assert "no column 'body'" in night.errors["two"]


def test_every_stage_is_a_step_of_its_own_and_what_is_known_already_is_one_step(project: Project) -> None:
    names: list[str] = []

    def step(name: str, work: Callable[[], Result], /) -> Result:
        names.append(name)
        return work()

    run(project.stages, select_tasks(project.settings), Mode(step))
    stages = ["ingest", "plan", "train tiny (1 task)", "evaluate", "gate", "register", "promote"]
    assert names == [stage if " " in stage else f"{stage} tiny-sentiment" for stage in stages]
    names.clear()
    night = run(project.stages, select_tasks(project.settings), Mode(step))
    assert names == [f"{stage} tiny-sentiment" for stage in ("ingest", "plan", "finish")]
    assert night.outcomes["tiny-sentiment"].plan == "unchanged"


def test_a_run_without_promotion_leaves_production_alone(project: Project) -> None:
    night = run(project.stages, select_tasks(project.settings), Mode(promote=False))
    assert night.outcomes["tiny-sentiment"].status == "awaiting approval"
    assert project.stages.registry.ledger.history("tiny-sentiment") == []


@pytest.mark.usefixtures("promoted")
def test_changed_rows_make_a_new_snapshot_and_train(project: Project) -> None:
    write_csv(project.folder / "tiny-sentiment.csv", sentences(260))
    assert project.run().version == 2


@pytest.mark.usefixtures("promoted")
def test_a_rollback_goes_back_and_is_served(project: Project) -> None:
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    assert project.run().status == "promoted"
    rollback(project.stages.registry, "tiny-sentiment", Cause("ann", "complaints"))
    assert ptpipeline.load("tiny-sentiment", project.settings).resolved.number == 1
    assert ptpipeline.load("tiny-sentiment@2", project.settings).resolved.number == 2


@pytest.mark.usefixtures("promoted")
def test_a_night_does_not_undo_a_rollback(project: Project) -> None:
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    assert project.run().version == 2
    rollback(project.stages.registry, "tiny-sentiment", Cause("ann", "complaints"))
    outcome = project.run()
    assert outcome.status == "rolled back"
    assert ptpipeline.load("tiny-sentiment", project.settings).resolved.number == 1


def test_changed_test_rows_are_measured_without_training(project: Project) -> None:
    from ptpipeline.data.rows import normalise, split_of

    first = project.run()
    spec = project.task().data.split
    more = [row for row in sentences(600, 7) if split_of(normalise(row[0]), spec) == "test"]
    write_csv(project.folder / "tiny-sentiment.csv", list(dict([*sentences(240), *more]).items()))
    second = project.run()
    assert not project.trained
    assert any("test accuracy" in line for line in project.lines)
    assert second.version == first.version


def test_given_test_rows_are_measured_without_training(project: Project) -> None:
    rows = sentences(240)
    train = write_csv(project.folder / "train.csv", rows[:160])
    test = write_csv(project.folder / "test.csv", rows[160:230])
    source = f'path: "{project.folder / "tiny-sentiment.csv"}", format: csv'
    project.edit(source, f'train: {{path: "{train}", format: csv}}, test: {{path: "{test}", format: csv}}')
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15}")
    first = project.run()
    assert first.version == 1
    write_csv(test, rows[160:])
    second = project.run()
    assert not project.trained
    assert any("test accuracy" in line for line in project.lines)
    assert second.version == first.version
    write_csv(train, rows[1:160])
    project.run()
    assert project.trained


def test_overlaps_that_a_task_keeps_are_told_by_the_gate(project: Project) -> None:
    rows = sentences(240)
    train = write_csv(project.folder / "train.csv", rows[:160])
    test = write_csv(project.folder / "test.csv", rows[140:])
    source = f'path: "{project.folder / "tiny-sentiment.csv"}", format: csv'
    project.edit(source, f'train: {{path: "{train}", format: csv}}, test: {{path: "{test}", format: csv}}')
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, on_overlap: keep}")
    assert project.run().status == "gate failed"
    assert any("FAIL leakage: 19.00% of the test rows are in the training rows" in line for line in project.lines)


@pytest.mark.usefixtures("promoted")
def test_a_champion_with_other_labels_needs_a_person(project: Project) -> None:
    path = project.folder / "tiny-sentiment.csv"
    path.write_text(path.read_text().replace(",positive", ",happy"))
    project.edit(
        'labels: {negative: " negative", positive: " positive"}', 'labels: {negative: " negative", happy: " positive"}'
    )
    outcome = project.run()
    assert (outcome.status, outcome.version) == ("awaiting approval", 2)
    assert any("not comparable: it answers the labels negative, positive" in line for line in project.lines)
    assert move(project.stages, "tiny-sentiment", PRODUCTION, 2, Cause("ann", "new labels")).version == 2


@pytest.mark.usefixtures("promoted")
def test_a_champion_that_was_mended_is_compared_after_all(project: Project) -> None:
    """While its bytes were away the candidate waited for a person; once they are back the gate asks it, at the same
    look.
    """
    stages = project.stages
    champion = stages.registry.ledger.version("tiny-sentiment", 1)
    key = f"prompts/tiny-sentiment/{champion.digest}/prompt.safetensors"
    body = stages.registry.store.read(key).body
    stages.registry.store.delete(key)
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    waiting = project.run()
    assert (waiting.status, waiting.delta) == ("awaiting approval", None)
    stages.registry.store.create(key, body)
    compared = project.run()
    assert (compared.version, compared.delta is None) == (waiting.version, False)
    verdicts = stages.registry.ledger.verdicts(
        "tiny-sentiment", stages.registry.ledger.version("tiny-sentiment", compared.version).digest
    )
    assert len({verdict.look.number for verdict in verdicts if verdict.look}) == 1


def test_an_older_version_is_judged_again_on_promotion(project: Project) -> None:
    project.edit("promote: auto", "promote: manual")
    for rate in ("0.05", "0.04"):
        project.edit("learning_rate: 0.05", f"learning_rate: {rate}")
        project.run()
    move(project.stages, "tiny-sentiment", PRODUCTION, 2, Cause("ann", "first"))
    moved = move(project.stages, "tiny-sentiment", PRODUCTION, 1, Cause("ann", "on second thoughts"))
    assert (moved.version, moved.previous) == (1, 2)


def test_a_broken_task_file_stops_no_other(project: Project) -> None:
    (project.tasks / "broken.yaml").write_text("name: [\n")
    tasks, broken = select_tasks(project.settings)
    assert [task.name for task in tasks] == ["tiny-sentiment"]
    assert "not valid YAML" in broken["broken"]


@pytest.mark.usefixtures("promoted")
def test_lost_bytes_are_trained_anew(project: Project) -> None:
    import shutil

    digest = project.stages.registry.ledger.version("tiny-sentiment", 1).digest
    shutil.rmtree(project.folder / "store" / prompt_prefix("tiny-sentiment", digest))
    outcome = project.run()
    assert project.trained
    assert outcome.version == 1
    assert examine(project.stages.registry) == []
