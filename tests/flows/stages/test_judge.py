"""Whole nights with prompts that should not pass: each is stopped by the check that is meant for it, and production
stands.
"""

import csv
import random
from pathlib import Path

import pytest

from flows.stages.outcome import Outcome
from flows.stages.promote import move
from ptpipeline.data.rows import normalise, split_of
from ptpipeline.records.verdicts import Look, Verdict
from ptpipeline.records.versions import PRODUCTION
from registry.ledger.looks import count_looks
from registry.versions.commit import Cause
from tests.flows.project import Project
from tests.tiny import sentences, write_csv

DEFAULT = "champion: {rule: superiority}"


def by_superiority(folder: Path) -> Project:
    made = Project(folder, ("tiny-sentiment",))
    made.edit("champion: {rule: non_inferiority, margin: 0.2}", DEFAULT)
    return made


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return by_superiority(tmp_path)


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = by_superiority(tmp_path_factory.mktemp("first-night"))
    assert made.run().status == "promoted"
    return made


def verdict(project: Project, version: int) -> Verdict:
    ledger = project.stages.registry.ledger
    found = ledger.latest_verdict("tiny-sentiment", ledger.version("tiny-sentiment", version).digest)
    assert found is not None
    return found


def failed(project: Project, outcome: Outcome) -> set[str]:
    return {check.name for check in verdict(project, outcome.version).failures()}


def look(project: Project, version: int) -> Look:
    found = verdict(project, version).look
    assert found is not None
    return found


def promotions(project: Project) -> int:
    return len(project.stages.registry.ledger.history("tiny-sentiment", PRODUCTION))


def rows_file(project: Project) -> Path:
    return project.folder / "tiny-sentiment.csv"


# ---------------------------------------------------------------- prompts that should not pass


def test_a_prompt_that_leans_to_one_label_has_collapsed(project: Project) -> None:
    """Every row was called positive while it trained, and the test rows have both labels."""
    spec = project.task().data.split
    write_csv(
        rows_file(project),
        [(text, label if split_of(normalise(text), spec) == "test" else "positive") for text, label in sentences(240)],
    )
    project.edit(
        "split: {dev: 0.15, test: 0.25}",
        "split: {dev: 0.15, test: 0.25}\n  checks: {rows_per_label: off, near_duplicate: off}",
    )
    project.edit(
        'init: {text: " yes"}, steps: 10, batch_size: 8, learning_rate: 0.05',
        "init: sampled_vocab, steps: 60, patience: 12, batch_size: 8, learning_rate: 0.3",
    )
    project.edit("minimum: 0.7", "minimum: 0.0, checks: {collapse: {max_share: 0.7}}")
    assert "collapse" in failed(project, project.run())
    assert promotions(project) == 0


def test_shuffled_labels_bring_no_gain_and_the_interval_is_told(project: Project) -> None:
    labels = [label for _, label in sentences(240)]
    random.Random(1).shuffle(labels)
    write_csv(rows_file(project), [(text, label) for (text, _), label in zip(sentences(240), labels, strict=True)])
    project.edit("minimum: 0.7", "minimum: 0.0")
    outcome = project.run()
    assert (outcome.status, promotions(project)) == ("no gain", 0)
    assert "gain: over" in outcome.reason
    assert "95% bounds" in outcome.reason


def test_test_rows_that_leaked_into_training_are_found(project: Project) -> None:
    """The same texts stand under several groups, and both checks of the ingest that would say so are off."""
    with rows_file(project).open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["text", "label", "speaker"])
        for copy in range(2):
            written.writerows([text, label, f"{copy}-{number}"] for number, (text, label) in enumerate(sentences(240)))
    project.edit(
        "split: {dev: 0.15, test: 0.25}",
        "split: {dev: 0.15, test: 0.25, group: speaker}\n  checks: {split_overlap: off, duplicate: off, "
        "near_duplicate: off}",
    )
    outcome = project.run()
    assert failed(project, outcome) == {"leakage"}
    assert promotions(project) == 0


@pytest.mark.usefixtures("promoted")
def test_a_snapshot_that_drifted_is_found(project: Project) -> None:
    kept = [(text, label) for text, label in sentences(600) if label == "positive" or len(text) % 5 == 0]
    write_csv(rows_file(project), [(f"yesterday evening somebody wrote {text}", label) for text, label in kept])
    outcome = project.run()
    assert "drift" in failed(project, outcome)
    assert [row.version for row in project.stages.registry.ledger.history("tiny-sentiment", PRODUCTION)] == [1]


@pytest.mark.usefixtures("promoted")
def test_an_equal_challenger_does_not_take_the_champions_place(project: Project) -> None:
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    outcome = project.run()
    assert (outcome.status, failed(project, outcome), promotions(project)) == ("gate failed", {"champion"}, 1)


# ---------------------------------------------------------------- nights on the same rows


@pytest.mark.usefixtures("promoted")
def test_every_new_candidate_is_a_look_and_an_unchanged_night_is_none(project: Project) -> None:
    looks = [look(project, 1)]
    project.run()
    for before, rate in (("0.05", "0.04"), ("0.04", "0.03")):
        project.edit(f"learning_rate: {before}", f"learning_rate: {rate}")
        looks.append(look(project, project.run().version))
    assert [found.number for found in looks] == [1, 2, 3]
    assert [found.alpha for found in looks] == sorted((found.alpha for found in looks), reverse=True)


@pytest.mark.usefixtures("promoted")
def test_a_policy_that_is_changed_until_it_passes_takes_a_look_each_time(project: Project) -> None:
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    first = look(project, project.run().version)
    project.run()
    assert look(project, 2) == first
    project.edit("minimum: 0.7", "minimum: 0.75")
    assert look(project, project.run().version).number == first.number + 1


def test_the_reserve_judges_when_the_test_rows_are_spent(project: Project) -> None:
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, test: 0.2, reserve: 0.2}")
    project.edit("rule: superiority", "rule: superiority, looks: 2")
    versions = [project.run().version]
    for before, rate in (("0.05", "0.04"), ("0.04", "0.03")):
        project.edit(f"learning_rate: {before}", f"learning_rate: {rate}")
        versions.append(project.run().version)
    assert [(look(project, version).test_set, look(project, version).number) for version in versions] == [
        (1, 1),
        (1, 2),
        (2, 1),
    ]
    assert any("the test rows have served 2 looks; the reserve of" in line for line in project.lines)
    again = project.run()
    assert (again.version, look(project, again.version)) == (versions[-1], look(project, versions[-1]))


def test_what_the_test_rows_answered_they_answer_again_behind_their_last_look(project: Project) -> None:
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, test: 0.2, reserve: 0.2}")
    project.edit("rule: superiority", "rule: superiority, looks: 2")
    project.run()
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    version = project.run().version
    before = look(project, version)
    assert (before.test_set, before.number) == (1, 2)
    assert project.run().version == version
    assert look(project, version) == before
    assert not any("the reserve of" in line for line in project.lines)


def test_a_reserve_that_is_cut_out_later_leaves_the_first_word_to_a_person(project: Project) -> None:
    """The champion was trained on it, so nothing compares with it; once a person promoted what learnt without it, the
    gate decides again.
    """
    project.edit("rule: superiority", "rule: superiority, looks: 1")
    assert project.run().status == "promoted"
    project.edit("split: {dev: 0.15, test: 0.25}", "split: {dev: 0.15, test: 0.25, reserve: 0.2}")
    waiting = project.run()
    assert (waiting.status, failed(project, waiting)) == ("awaiting approval", set())
    assert any(
        "was trained on" in check.observed
        for check in verdict(project, waiting.version).checks
        if check.name == "champion"
    )
    move(project.stages, "tiny-sentiment", PRODUCTION, waiting.version, Cause("ann", "the first without the reserve"))
    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    found = verdict(project, project.run().version)
    assert found.comparison is not None
    assert (found.look and found.look.test_set, found.comparison.dropped) == (2, 0)


@pytest.mark.usefixtures("promoted")
def test_a_rebuilt_ledger_still_knows_the_looks(project: Project) -> None:
    from registry.repair.rebuild import rebuild

    project.edit("learning_rate: 0.05", "learning_rate: 0.04")
    project.run()
    stages = project.stages
    rows = [row for row in stages.registry.store.keys("reports/tiny-sentiment") if row.endswith("rows.parquet")]
    assert rows
    stages.registry.ledger.close()
    for path in project.folder.glob("ledger.db*"):
        path.unlink()
    stages = project.stages
    rebuild(stages.registry)
    project.edit("learning_rate: 0.04", "learning_rate: 0.03")
    assert look(project, project.run().version).number == 3
    assert count_looks(stages.registry.ledger, "tiny-sentiment", ["0" * 16]) == 0
