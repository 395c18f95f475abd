"""What the object store holds of one task, listed once and read once: `prompts/<task>/...` by its parts."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from typing import TypeVar

from ptpipeline.errors import NotFound
from ptpipeline.records import DIGEST_PATTERN, is_name
from ptpipeline.storage import ObjectStore

READERS = 8  # requests at a time; a client of S3 keeps ten connections

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Shelf:
    """One task's keys, with the time at which each object was written."""

    task: str
    keys: dict[str, datetime]

    def of(self, *folder: str) -> list[str]:
        """The keys below `prompts/<task>/<folder>`, in order."""
        prefix = "/".join(("prompts", self.task, *folder, ""))
        return [key for key in self.keys if key.startswith(prefix)]

    def digests(self) -> set[str]:
        """Prompts of which any object is there."""
        found = {parts[2] for key in self.keys if len(parts := key.split("/")) > 3}
        return {digest for digest in found if re.fullmatch(DIGEST_PATTERN, digest)}

    def records(self, digests: Iterable[str]) -> list[str]:
        """The keys of the dossiers of those prompts, the oldest first."""
        wanted = set(digests)
        found = [key for key in self.keys if (parts := key.split("/"))[2] in wanted and parts[3:4] == ["records"]]
        return sorted(found, key=lambda key: (self.keys[key], key))

    def at(self, key: str) -> str:
        """When the object was written, as the ledger writes times."""
        return self.keys[key].isoformat(timespec="microseconds")


def shelf_of(store: ObjectStore, task: str) -> Shelf:
    """That task's shelf."""
    return Shelf(task, {item.key: item.modified for item in store.listed(f"prompts/{task}")})


def shelves(store: ObjectStore) -> Iterator[Shelf]:
    """The shelf of every task that the store knows, in one listing of it; what lies at no task's place is
    passed over.
    """
    for task, items in groupby(store.listed("prompts"), key=lambda item: item.key.split("/")[1]):
        keys = {item.key: item.modified for item in items if item.key.count("/") > 1}
        if keys and is_name(task):
            yield Shelf(task, keys)


def read_all(store: ObjectStore, keys: Iterable[str]) -> dict[str, bytes]:
    """The bodies of those objects, read side by side; one that is gone by now is left out."""
    return {key: body for key, body in asked(partial(_body, store), keys).items() if body is not None}


def asked(question: Callable[[_Asked], _Answer], things: Iterable[_Asked]) -> dict[_Asked, _Answer]:
    """The answer for each thing, asked side by side; raises what the first that fails raises."""
    ordered = list(things)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(ordered, pool.map(question, ordered), strict=True))


def _body(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.read(key).body
    except NotFound:
        return None
