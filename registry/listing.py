"""What the object store holds of one task, listed once: the objects in its folder, and what lies at each key."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from typing import TypeVar

from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.storage import Listed, ObjectStore
from ptpipeline.storage.addresses import (
    Address,
    AliasPointer,
    HistoryRow,
    NumberedVersion,
    PointersMoved,
    PromptObject,
    is_dossier,
    names_content,
    parse,
    parse_task,
)
from ptpipeline.storage.keys import PROMPTS, task_prefix

READERS = 8  # requests at a time; a client of S3 keeps ten connections

log = logging.getLogger(__name__)

_Thing = TypeVar("_Thing")
_Answer = TypeVar("_Answer")
_Kind = TypeVar("_Kind", bound=Address)


@dataclass(frozen=True)
class TaskListing:
    """One task's objects by key, as the store listed them."""

    task: str
    objects: dict[str, Listed] = field(default_factory=dict)

    @cached_property
    def versions(self) -> dict[str, NumberedVersion]:
        """The names of versions, by key."""
        return self._of_kind(NumberedVersion)

    @cached_property
    def history(self) -> dict[str, HistoryRow]:
        """The promotions of all aliases, by key."""
        return self._of_kind(HistoryRow)

    @cached_property
    def pointers(self) -> dict[str, AliasPointer]:
        """The pointers of all aliases, by key."""
        return self._of_kind(AliasPointer)

    def malformed(self) -> list[str]:
        """The keys in the task's folder that are of no form of ours: what others put there, such as links."""
        return [key for key, address in self._addresses.items() if address is None]

    @cached_property
    def prompts(self) -> dict[str, list[Listed]]:
        """The objects of each prompt, by its digest."""
        prompts: dict[str, list[Listed]] = {}
        for key, address in self._of_kind(PromptObject).items():
            prompts.setdefault(address.digest, []).append(self.objects[key])
        return prompts

    def digests(self) -> set[str]:
        """The prompts of which any object is stored."""
        return set(self.prompts)

    def complete(self) -> set[str]:
        """The prompts whose manifest is stored."""
        return {address.digest for address in self._of_kind(PromptObject).values() if address.is_manifest}

    def dossiers(self) -> list[str]:
        """The keys of the dossiers of all prompts, the oldest first."""
        dossiers = [key for key, address in self._of_kind(PromptObject).items() if address.is_dossier]
        return sorted(dossiers, key=lambda key: (self.objects[key].modified, key))

    def files(self) -> list[str]:
        """The keys that name their content, without dossiers: plots, records beside prompts, pages, quarantine."""
        return [key for key in self.objects if names_content(key) and not is_dossier(key)]

    def at(self, key: str) -> str:
        """When the object was written, as the ledger writes times."""
        return self.objects[key].modified.isoformat(timespec="microseconds")

    def _of_kind(self, kind: type[_Kind]) -> dict[str, _Kind]:
        return {key: address for key, address in self._addresses.items() if isinstance(address, kind)}

    @cached_property
    def _addresses(self) -> dict[str, Address | None]:
        return {key: parse(key) for key in self.objects}


def list_task(store: ObjectStore, task: str) -> TaskListing:
    """List that task's objects."""
    return TaskListing(task, {item.key: item for item in store.list_objects(task_prefix(task))})


def list_tasks(store: ObjectStore) -> Iterator[TaskListing]:
    """List every task that the store knows, in one listing of it; what lies below no task's folder is passed over with
    a warning.
    """
    for task, items in groupby(store.list_objects(PROMPTS), key=lambda item: parse_task(item.key)):
        if task is not None:
            yield TaskListing(task, {item.key: item for item in items})
        else:
            for item in items:
                if isinstance(parse(item.key), PointersMoved):
                    continue
                log.warning("%s/%s is no object of the registry; nothing reads or deletes it", store.url, item.key)


def read_all(store: ObjectStore, keys: Iterable[str]) -> dict[str, bytes]:
    """Read those objects side by side; one that is gone by now is left out.

    One that may not be read, because it is too large for its kind or a link, counts with a warning as empty bytes,
    which are nothing to any parser: so it is judged as any other that was altered.
    """
    return {key: body for key, body in ask_all(partial(_body, store), keys).items() if body is not None}


def read_accepted(store: ObjectStore, keys: Iterable[str]) -> dict[str, bytes | str]:
    """Read those objects side by side: their bytes, or why one is refused; one that is gone by now is left out."""
    return {key: answer for key, answer in ask_all(partial(_body_or_flaw, store), keys).items() if answer is not None}


def ask_all(question: Callable[[_Thing], _Answer], things: Iterable[_Thing]) -> dict[_Thing, _Answer]:
    """Ask the question about each thing, side by side; raises what the first that fails raises."""
    ordered = list(things)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(ordered, pool.map(question, ordered), strict=True))


def _body_or_flaw(store: ObjectStore, key: str) -> bytes | str | None:
    try:
        return store.read(key).body
    except NotFound:
        return None
    except ArtifactError as error:
        return str(error).removeprefix(f"{store.url}/{key}: ")


def _body(store: ObjectStore, key: str) -> bytes | None:
    answer = _body_or_flaw(store, key)
    if isinstance(answer, str):
        log.warning("%s/%s: %s", store.url, key, answer)
        return b""
    return answer
