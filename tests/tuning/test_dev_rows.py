"""The dev rows that a training answers: few, and the same each time."""

from pathlib import Path

from ptpipeline.data.rows import Row
from ptpipeline.data.sample import choose_dev_rows
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.storage import FolderStore
from ptpipeline.task.folder import find_task
from ptpipeline.task.recipe import Tune
from ptpipeline.tuning.tune import TaskData, _prepare_work, build_job, build_task_text
from tests.evaluation.probed import tiny
from tests.tiny import tiny_project

ROWS = [Row(f"{number:04}", {"text": f"text {number}"}, "a") for number in range(300)]


def choose_ids(rows: list[Row], limit: int) -> set[str]:
    return {row.id for row in choose_dev_rows(rows, limit)}


def test_the_same_rows_are_chosen_in_any_order_of_the_split() -> None:
    chosen = choose_dev_rows(ROWS, 200)
    assert len(chosen) == 200
    assert chosen == sorted(choose_dev_rows(ROWS[::-1], 200))


def test_chosen_rows_keep_the_order_of_the_split() -> None:
    assert choose_dev_rows(ROWS, 50) == sorted(choose_dev_rows(ROWS, 50))
    assert choose_dev_rows(ROWS, 300) == ROWS


def test_fewer_rows_are_a_part_of_more_and_not_its_first() -> None:
    assert choose_ids(ROWS, 50) < choose_ids(ROWS, 200)
    assert choose_ids(ROWS, 50) != {row.id for row in ROWS[:50]}


def test_a_new_row_takes_the_place_of_one_at_most() -> None:
    assert len(choose_ids(ROWS, 50) - choose_ids(ROWS[1:], 50)) <= 1


def test_a_job_answers_the_chosen_dev_rows_and_learns_from_all_train_rows(tmp_path: Path) -> None:
    task, store = find_task(tiny_project(tmp_path), "tiny-sentiment"), FolderStore(tmp_path / "store")
    snapshot = take_snapshot(task, store, tmp_path)
    job = build_job(tiny(), TaskData(task, snapshot), Tune(dev_rows=7, init={"text": " yes"}), store)
    assert (len(job.dev), len(job.train)) == (7, snapshot.train.rows)


def test_every_trial_of_a_search_reads_texts_of_the_length_that_the_longest_prompt_leaves(tmp_path: Path) -> None:
    task, store = find_task(tiny_project(tmp_path), "tiny-sentiment"), FolderStore(tmp_path / "store")
    search = {"length": [2, 8]}
    searched = task.model_copy(update={"tune": Tune(init={"text": " yes"}, search=search)})
    work = _prepare_work(tiny(), TaskData(searched, take_snapshot(task, store, tmp_path)), store, lambda line: None)
    longest = build_task_text(tiny(), task, Tune(num_virtual_tokens=8, init={"text": " yes"}))
    assert [job.text.limit for job in work.jobs] == [longest.limit] * 2
