"""A file or folder that is published survives a power loss: all that it holds is synced before its name changes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptpipeline.durable import make, publish


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the file system, in order: syncs and new folders by their names, and renames."""
    found: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir")}

    def fsync(descriptor: int) -> None:
        found.append(str(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path)))
        real["fsync"](descriptor)

    def mkdir(path: Any, *args: Any, **options: Any) -> None:
        real["mkdir"](path, *args, **options)
        found.append(f"made {Path(path).relative_to(tmp_path)}")

    def replace(source: Any, target: Any) -> None:
        real["replace"](source, target)
        found.append("renamed")

    for name, noting in (("fsync", fsync), ("mkdir", mkdir), ("rename", replace), ("replace", replace)):
        monkeypatch.setattr(os, name, noting)
    return found


def test_a_file_is_synced_before_it_has_its_name_and_its_name_behind_it(tmp_path: Path, events: list[str]) -> None:
    (tmp_path / "partial").write_bytes(b"body")
    publish(tmp_path / "partial", tmp_path / "whole")
    assert events == ["partial", "renamed", "."]


def test_all_that_a_folder_holds_is_synced_before_it_has_its_name(tmp_path: Path, events: list[str]) -> None:
    for name in ("partial/one", "partial/deep/two"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"body")
    events.clear()
    publish(tmp_path / "partial", tmp_path / "whole")
    assert events[-2:] == ["renamed", "."]
    synced = events[:-2]
    assert sorted(synced) == ["partial", "partial/deep", "partial/deep/two", "partial/one"]
    assert synced.index("partial/deep/two") < synced.index("partial/deep") < synced.index("partial")


def test_each_new_folder_is_synced_into_the_one_above_it(tmp_path: Path, events: list[str]) -> None:
    make(tmp_path / "one" / "two")
    assert events == ["made one", ".", "made one/two", "one"]
    events.clear()
    make(tmp_path / "one" / "two")
    assert events == []


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_new_folders_have_the_rights_that_are_asked_for(tmp_path: Path) -> None:
    make(tmp_path / "one" / "two", 0o700)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "one", tmp_path / "one" / "two")} == {0o700}
