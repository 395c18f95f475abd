"""The folder of task files: what lies there besides tasks stops none of them."""

import os
import shutil
from pathlib import Path

import pytest

from ptpipeline.errors import NotFound, TaskFileError
from ptpipeline.task.folder import find_base_model, find_shared_prompt, load_task, sound_tasks, task_files
from tests.task.test_task import GOOD, SHIPPED, written


def lock(folder: Path) -> None:
    (folder / ".#reviews.yaml").symlink_to("user@host.12345:1700000000")


def companion(folder: Path) -> None:
    (folder / "._reviews.yaml").write_bytes(b"\x00\x05\x16\x07\x00\x02")


def swap(folder: Path) -> None:
    (folder / ".reviews.yaml.swp").write_bytes(b"b0VIM 9.1\x00")


def backup(folder: Path) -> None:
    (folder / "reviews.yaml~").write_text("name: [")
    (folder / "#reviews.yaml#").write_text("name: [")


def note(folder: Path) -> None:
    (folder / "README.md").write_text("our tasks")
    (folder / "old").mkdir()
    (folder / "old" / "draft.yaml").write_text("name: [")


@pytest.mark.parametrize("leave", [lock, companion, swap, backup, note])
def test_what_an_editor_or_a_system_leaves_is_no_task(tmp_path: Path, leave) -> None:  # type: ignore[no-untyped-def]
    written(tmp_path, GOOD)
    leave(tmp_path)
    sound, broken = sound_tasks(tmp_path)
    assert ([task.name for task in sound], broken) == (["reviews"], {})


def folder_of_that_name(folder: Path) -> str:
    (folder / "stray.yaml").mkdir()
    return "stray.yaml: not a regular file"


def dangling_link(folder: Path) -> str:
    (folder / "stray.yaml").symlink_to("nowhere")
    return "stray.yaml: cannot be read (No such file or directory)"


def link_to_itself(folder: Path) -> str:
    (folder / "stray.yaml").symlink_to("stray.yaml")
    return "stray.yaml: cannot be read (Too many levels of symbolic links)"


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "stray.yaml")
    return "stray.yaml: not a regular file"


def empty(folder: Path) -> str:
    (folder / "stray.yaml").touch()
    return "stray.yaml:1: expected a mapping of fields"


def other_bytes(folder: Path) -> str:
    (folder / "stray.yaml").write_bytes(b"\xff\xfe\x00")
    return "stray.yaml: not readable as YAML in UTF-8"


def copied(folder: Path) -> str:
    shutil.copy(folder / "reviews.yaml", folder / "reviews (copy).yaml")
    return "reviews (copy).yaml:1: name: found 'reviews', expected the file's own name 'reviews (copy)'"


def name_without_encoding(folder: Path) -> str:
    shutil.copy(folder / "reviews.yaml", os.fsencode(folder) + b"/r\xe9.yaml")
    return "r\\udce9.yaml:1: name: found 'reviews', expected the file's own name"


def name_of_two_lines(folder: Path) -> str:
    shutil.copy(folder / "reviews.yaml", folder / "a\nb.yaml")
    return "a\\nb.yaml:1: name: found 'reviews', expected the file's own name"


def short_ending(folder: Path) -> str:
    (folder / "other.yml").write_text(GOOD)
    return "other.yml: is not read, because files of tasks end in .yaml: rename it to other.yaml"


def loud_ending(folder: Path) -> str:
    (folder / "other.YAML").write_text(GOOD)
    return "other.YAML: is not read, because files of tasks end in .yaml"


STRAYS = [
    folder_of_that_name,
    dangling_link,
    link_to_itself,
    pipe,
    empty,
    other_bytes,
    copied,
    name_without_encoding,
    name_of_two_lines,
    short_ending,
    loud_ending,
]


@pytest.mark.parametrize("leave", STRAYS)
def test_a_stray_file_is_told_and_stops_no_other_task(tmp_path: Path, leave) -> None:  # type: ignore[no-untyped-def]
    written(tmp_path, GOOD)
    expected = leave(tmp_path)
    sound, broken = sound_tasks(tmp_path)
    assert [task.name for task in sound] == ["reviews"]
    [(name, sentence)] = broken.items()
    assert expected in sentence
    assert "\n" not in name + sentence
    (name + sentence).encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_the_right_to_read_is_told(tmp_path: Path) -> None:
    written(tmp_path, GOOD).chmod(0)
    assert "Permission denied" in sound_tasks(tmp_path)[1]["reviews"]


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_folder_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFound, match=rf"PTP_TASKS: no folder .*{name}; start in the project's folder"):
        task_files(tmp_path / name)


def test_a_shared_prompt_of_a_tasks_name_is_refused(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    text = "reviews: {base_model: tiny, sources: [a, b]}\nall: {base_model: tiny, sources: [a, b]}\n"
    (tmp_path / "shared_prompts.yaml").write_text(text)
    with pytest.raises(TaskFileError, match="'reviews' is also the name of a task, and both would share one numbering"):
        find_shared_prompt(tmp_path, "reviews")
    assert find_shared_prompt(tmp_path, "all").sources == ["a", "b"]


@pytest.mark.parametrize("leave", [Path.mkdir, os.mkfifo])
def test_what_stands_in_the_place_of_the_base_models_is_told(tmp_path: Path, leave) -> None:  # type: ignore[no-untyped-def]
    leave(tmp_path / "base_models.yaml")
    with pytest.raises(TaskFileError, match=r"base_models\.yaml: not a regular file"):
        find_base_model(tmp_path, "tiny")


def test_an_unknown_base_model_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text("one: {path: a}\ntwo: {path: b}\n")
    with pytest.raises(NotFound, match="one, two"):
        find_base_model(tmp_path, "three")


@pytest.mark.parametrize("revision", ["main", "v1.0", "abc1234", "0" * 39])
def test_a_hub_model_at_a_name_that_moves_is_refused(revision: str, tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text(f"one: {{hub: owner/name, revision: '{revision}'}}\n")
    with pytest.raises(TaskFileError, match=rf"revision: {revision}` may name another model tomorrow: give the commit"):
        find_base_model(tmp_path, "one")


@pytest.mark.parametrize("pin", [f"revision: '{'0a' * 20}'", f"revision: main, fingerprint: '{'0a' * 32}'"])
def test_a_hub_model_is_pinned_by_its_commit_or_its_fingerprint(pin: str, tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text(f"one: {{hub: owner/name, {pin}}}\n")
    assert find_base_model(tmp_path, "one").hub == "owner/name"


@pytest.mark.parametrize("place", ["path: a", f"hub: a/b, revision: '{'0a' * 20}'"])
def test_a_sha256_is_that_of_a_package(place: str, tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text(f"one: {{{place}, sha256: '{'0a' * 32}'}}\n")
    with pytest.raises(TaskFileError, match="`sha256` is that of the archive of a `package`: leave it out"):
        find_base_model(tmp_path, "one")


def test_shipped_packages_are_pinned_by_their_content() -> None:
    for path in task_files(SHIPPED):
        task = load_task(path)
        assert task.data.source.sha256
        assert find_base_model(SHIPPED, task.base_model).sha256


def test_a_wrong_base_model_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "base_models.yaml").write_text("one: {path: a}\ntwo: {path: b, hub: c}\n")
    with pytest.raises(TaskFileError, match=r"base_models.yaml:2: two: .*give exactly one"):
        find_base_model(tmp_path, "two")
