"""A task's folder is exchanged for a link between two calls of the store: collection, repair and a server's last good
set leave alone what the link leads to. What happens within a call is a matter of tests/storage/test_links.py.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.fixtures.prompts import a_task, an_artifact, published
from ptpipeline.errors import PtpError
from ptpipeline.serving.last_good import LastGood
from ptpipeline.storage import FolderStore, Listed, Stored
from ptpipeline.storage.keys import task_prefix
from registry.garbage.collect import collect
from registry.garbage.roots import Retention
from registry.ledger.ledger import Ledger
from registry.registry import Registry
from registry.repair.doctor import examine
from registry.repair.mend import fix
from registry.versions.commit import Cause
from registry.versions.promotion import promote

TASK = a_task()
FOLDERS = [task_prefix(TASK.name), f"{task_prefix(TASK.name)}/{an_artifact(TASK, 1).digest}"]


class Exchanging(FolderStore):
    """Before its call of that number, the folder goes and a link to a copy of it, outside, is in its place."""

    def __init__(self, root: Path, folder: str, at: int) -> None:
        super().__init__(root)
        self.outside, self.left, self._folder = root.with_name("outside"), at, root / folder
        self.copied: dict[str, bytes] = {}

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            shutil.copytree(self._folder, self.outside, dirs_exist_ok=True)
            self.copied = bodies(self.outside)
            self._folder.rename(self.root.with_name("aside"))
            self._folder.symlink_to(self.outside)

    def read(self, key: str) -> Stored:
        self._count()
        return super().read(key)

    def create(self, key: str, body: bytes) -> None:
        self._count()
        super().create(key, body)

    def replace(self, key: str, body: bytes, etag: str) -> None:
        self._count()
        super().replace(key, body, etag)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        self._count()
        return super().list_objects(prefix)


def bodies(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of four versions, of which one may go, and which lacks a name, a pointer and a row."""
    folder = tmp_path_factory.mktemp("damaged") / "project"
    folder.mkdir()
    registry = Registry(Ledger(f"sqlite:///{folder}/ledger.db"), FolderStore(folder / "store"))
    for seed in range(4):
        published(registry, TASK, seed)
    promote(registry, TASK, 1, Cause("me", "because"))
    for key in ("aliases/production", "versions/2", "history/production/000001"):
        registry.store.delete(f"{task_prefix(TASK.name)}/{key}.json")
    registry.ledger.close()
    return folder


def gc(registry: Registry) -> None:
    collect(registry, Retention(candidates=1, grace=timedelta(0)), apply=True)


def repair(registry: Registry) -> None:
    fix(registry, {TASK.name: TASK}, examine(registry))


@pytest.mark.parametrize("folder", FOLDERS, ids=["task", "prompt"])
@pytest.mark.parametrize("verb", [gc, repair])
def test_what_a_link_leads_to_is_left_alone(
    damaged: Path, tmp_path: Path, verb: Callable[[Registry], None], folder: str
) -> None:
    for number in range(1, 400, 13):  # every call takes seconds, and shows no more
        project = shutil.copytree(damaged, tmp_path / str(number))
        store = Exchanging(project / "store", folder, number)
        registry = Registry(Ledger(f"sqlite:///{project}/ledger.db"), store)
        with suppress(PtpError):
            verb(registry)
        registry.ledger.close()
        if store.left > 0:
            break
        assert bodies(store.outside) == store.copied
    assert number > 20


@pytest.mark.parametrize("call", range(1, 8))
def test_a_last_good_set_is_not_led_out(tmp_path: Path, call: int) -> None:
    good, (old, new) = LastGood(tmp_path, "file:///store"), (an_artifact(TASK, seed) for seed in range(2))
    good.save_prompts([old])
    good.store = store = Exchanging(good.store.root, task_prefix(TASK.name), call)
    good.save_prompts([new])
    good.keep([new.digest])
    assert bodies(store.outside) == store.copied


def test_a_last_good_set_makes_as_many_calls(tmp_path: Path) -> None:
    good = LastGood(tmp_path, "file:///store")
    good.save_prompts([an_artifact(TASK, 0)])
    good.store = store = Exchanging(good.store.root, task_prefix(TASK.name), 0)
    good.save_prompts([an_artifact(TASK, 1)])
    good.keep([an_artifact(TASK, 1).digest])
    assert store.left == -7
