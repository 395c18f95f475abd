"""What a listing of the store tells of a task: its folders, its prompts, their records in order, and nothing else."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ptpipeline.errors import ServiceUnavailable
from ptpipeline.storage import FolderStore, Listed, Stored
from registry.listing import TaskListing, ask_all, list_task, list_tasks, read_all
from registry.versions.projection import tell_servers

ONE, OTHER = "a" * 64, "b" * 64
AT = datetime(2026, 1, 1, tzinfo=UTC)


def listing(*keys: str, **times: datetime) -> TaskListing:
    """A listing of these keys below the task, written at `AT`, or at the time given for the file's stem."""
    stems = {key: key.rsplit("/", 1)[-1].removesuffix(".json") for key in keys}
    listed = [Listed(f"prompts/mood/{key}", times.get(stems[key], AT), 1) for key in keys]
    return TaskListing("mood", {item.key: item for item in listed})


def test_a_folder_holds_what_lies_below_it_alone() -> None:
    of_task = listing("versions/1.json", "versions-old/1.json", "aliases/production.json", "versions.json")
    assert list(of_task.versions) == ["prompts/mood/versions/1.json"]
    assert list(of_task.pointers) == ["prompts/mood/aliases/production.json"]


def test_a_prompt_is_there_if_any_object_of_it_is() -> None:
    of_task = listing(f"{ONE}/manifest.json", f"{OTHER}/records/x.json", f"{'c' * 63}/manifest.json", "mine/x/y")
    assert of_task.digests() == {ONE, OTHER}
    assert of_task.complete() == {ONE}


def test_dossiers_come_the_oldest_first_and_by_key_at_the_same_time() -> None:
    names = {letter: letter * 16 for letter in "abc"}
    keys = [f"{ONE}/records/{names[letter]}.json" for letter in "ba"] + [f"{OTHER}/records/{names['c']}.json"]
    of_task = listing(*keys, f"{ONE}/manifest.json", **{names["c"]: AT.replace(year=2025)})
    assert [key.rsplit("/", 1)[-1][0] for key in of_task.dossiers()] == ["c", "a", "b"]


def test_times_are_written_as_the_ledger_writes_them() -> None:
    assert listing("x/y").at("prompts/mood/x/y") == "2026-01-01T00:00:00.000000+00:00"


def test_each_task_has_a_listing_and_nothing_else_has(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for key in ("mood/versions/1.json", "topic/aliases/x.json", "Not-a-task/versions/1.json", "loose"):
        store.create(f"prompts/{key}", b"{}")
    assert [each.task for each in list_tasks(store)] == ["mood", "topic"]
    assert list(list_task(store, "mood").objects) == ["prompts/mood/versions/1.json"]


def test_what_tells_servers_to_look_is_no_stranger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_servers(store := FolderStore(tmp_path))
    assert (list(list_tasks(store)), caplog.text) == ([], "")
    store.create("prompts/_/aliases/other.json", b"{}")
    assert (list(list_tasks(store)), "other.json is no object" in caplog.text) == ([], True)


def test_a_listing_knows_when_its_objects_were_written(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("prompts/mood/versions/1.json", b"{}")
    os.utime(tmp_path / "prompts/mood/versions/1.json", (AT.timestamp(),) * 2)
    assert list_task(store, "mood").objects["prompts/mood/versions/1.json"].modified == AT


def test_what_is_gone_by_now_is_left_out(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.create("p/one", b"1")
    assert read_all(store, ["p/one", "p/gone"]) == {"p/one": b"1"}


def test_a_store_that_does_not_answer_is_not_taken_for_one_that_lost_something(tmp_path: Path) -> None:
    class Away(FolderStore):
        def read(self, key: str) -> Stored:
            raise ServiceUnavailable("the store does not answer")

    with pytest.raises(ServiceUnavailable):
        read_all(Away(tmp_path), ["p/one"])


def test_answers_belong_to_what_was_asked() -> None:
    assert ask_all(lambda number: number * number, range(50)) == {number: number**2 for number in range(50)}
