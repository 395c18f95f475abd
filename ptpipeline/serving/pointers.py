"""The pointers of a store as a server follows them: which there are, and the tag of the bytes of each.

Whoever changes a pointer then changes one object of the store (`MOVED_KEY`). So between two looks at all pointers a
server asks for that one alone, however many tasks there are.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from ptpipeline.errors import ArtifactError, NotFound, SettingsError
from ptpipeline.records.base import is_name
from ptpipeline.serving.refusals import Place
from ptpipeline.storage import ObjectStore
from ptpipeline.storage.addresses import AliasPointer, parse
from ptpipeline.storage.keys import MOVED_KEY, PROMPTS, aliases_prefix, pointer_key
from ptpipeline.storage.signed import without_checks

DISCOVER = 60.0  # seconds between two lists of all aliases, each with a look at all pointers
READERS = 8  # requests at the same time
UNREADABLE = "unreadable"  # no store gives such a tag


class Pointers:
    """The pointers of some tasks, or of all; `known` are those that were found."""

    def __init__(self, store: ObjectStore, tasks: Collection[str], clock: Callable[[], float]) -> None:
        """tasks: none is all of the store. clock: seconds."""
        self.store, self.tasks, self.clock = store, tasks, clock
        self.known: set[Place] = set()
        self._listed: float | None = None
        self._tags: dict[Place, str | None] = {}
        self._moved = ""  # the tag that the object at MOVED_KEY had before all pointers were seen

    def discover(self) -> bool:
        """List the aliases of the store once a minute; return whether this was the time."""
        if self._listed is not None and self.clock() - self._listed < DISCOVER:
            return False
        tasks = sorted(self.tasks) or [folder.removeprefix(f"{PROMPTS}/") for folder in self.store.folders(PROMPTS)]
        with ThreadPoolExecutor(READERS) as pool:  # not all objects below `prompts/`: each night adds a dozen to a task
            folders = pool.map(lambda task: list(self.store.keys(aliases_prefix(task))), filter(is_name, tasks))
            found = [parse(key) for keys in folders for key in keys]
        self.known = {Place(at.task, at.alias) for at in found if isinstance(at, AliasPointer)}
        self._listed, self._moved = self.clock(), ""  # a writer that died behind its pointer changed nothing else
        return True

    def look(self, held: Mapping[Place, str]) -> dict[Place, str | None]:
        """Return the tag of the bytes of pointers, None for one that is not there, UNREADABLE for one that cannot be
        read, or that this reader may not read while it may read others: somebody encrypted it.

        All are asked for if one moved, else those that were not seen yet. What showed something else than is `held`, by
        tag, is told again: a refusal of it may be over. Raises ServiceUnavailable and SettingsError if the store cannot
        be asked.
        """
        refused: list[SettingsError] = []

        def ask(key: str, known: str) -> str | None:
            try:
                return _read_tag(self.store, key, known)
            except SettingsError as error:
                refused.append(error)
                return UNREADABLE

        moved = ask(MOVED_KEY, self._moved)
        places = sorted(self.known | held.keys())
        seen = {place: self._tags[place] for place in places if place in self._tags} if moved == self._moved else {}
        with ThreadPoolExecutor(READERS) as pool:
            asked = [place for place in places if place not in seen]
            tags = pool.map(lambda place: ask(pointer_key(*place), held.get(place, "")), asked)
            found = dict(zip(asked, tags, strict=True))
        if refused and moved in (None, UNREADABLE) and set(found.values()) <= {UNREADABLE}:
            raise refused[0]
        self._tags |= found
        self._moved = "" if moved in (None, UNREADABLE) else moved
        return found | {place: tag for place, tag in seen.items() if place not in held or held[place] != tag}


def _read_tag(store: ObjectStore, key: str, known: str) -> str | None:
    """Return the tag of the object, whatever its bytes say; they are not sent if the tag is still `known`.

    None if there is none, UNREADABLE if it cannot be read. Raises ServiceUnavailable and SettingsError if the store
    cannot be asked.
    """
    bare = without_checks(store)
    try:
        changed = bare.read_changed(key, known) if known else bare.read(key)
        return known if changed is None else changed.etag
    except NotFound:
        return None
    except ArtifactError:  # too large, or a link: `read_promotion` says so
        return UNREADABLE
