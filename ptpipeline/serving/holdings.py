"""The prompts that a server holds: verified, computed and ready to answer, each once, by its digest."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from ptpipeline.errors import NotFound, Overloaded
from ptpipeline.prompts.artifact import Artifact, read_ensemble
from ptpipeline.records.base import DIGEST_PATTERN
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.serving import Holding
from ptpipeline.records.versions import Promotion
from ptpipeline.serving.last_good import LastGood
from ptpipeline.serving.resolver import read_prompt
from ptpipeline.storage import ObjectStore

SHA = "sha256:"
RETAINED = 900.0  # seconds that a prompt stays after it was last asked for; no request may take as long
ON_REQUEST = 1000  # prompts that are held because somebody asked for their number or digest


class Holder(Protocol):
    """What computes the answers: the batcher on this machine, or a gateway."""

    def hold(self, artifact: Artifact, members: Sequence[Artifact]) -> None:
        """Load the prompt, compute its cache, and answer one question with it. Blocks; one thread calls at a time.

        Raises BaseModelError, ArtifactError or another PtpError if the prompt cannot answer. To hold it again changes
        nothing.
        """

    def drop(self, digest: str) -> None:
        """Unload the prompt, or what of it was loaded; requests that were accepted before are still answered."""


class Held(NamedTuple):
    """A prompt that answers. `number` is that of its version, if it is known; `proven` says that the store was read."""

    number: int | None
    digest: str
    manifest: PromptManifest
    proven: bool


class Holdings:
    """One thread at a time may call `hold`, `make_room` and `prune`, any thread the rest."""

    def __init__(self, holder: Holder, good: LastGood, clock: Callable[[], float]) -> None:
        self._holder, self._good, self._clock = holder, good, clock
        self._held: dict[str, Held] = {}
        self._numbers: dict[tuple[str, int], str] = {}
        self._used: dict[str, float] = {}  # when each was last asked for

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, source: ObjectStore, task: str, digest: str, number: int | None) -> Held:
        """Return the prompt, which is held from now on; one that only the last good set proved is read again.

        source: the store, or the last good set. Raises NotFound, ArtifactError, what the store raises, and what
        `Holder.hold` raises.
        """
        held, proven = self._held.get(digest), source is not self._good.store
        if held is None or held.proven < proven or held.manifest.task != task:  # no task names another's prompt
            name = f"{task}@{SHA + digest if number is None else number}"
            artifact = read_prompt(source, task, digest, name)
            members = read_ensemble(source, artifact)
            if held is None:  # else the store only confirms it: one digest, one prompt
                try:
                    self._holder.hold(artifact, members)
                except BaseException:
                    self._holder.drop(digest)  # whatever of it was loaded before it failed
                    raise
            if proven:
                self._good.save_prompts([*members, artifact])
            held = Held(number, digest, artifact.manifest, proven)
        if number is not None:
            held = held._replace(number=number)
            self._numbers[task, number] = digest
        self._used[digest] = self._clock()
        self._held[digest] = held
        return held

    def find(self, task: str, name: str) -> Held | None:
        """Return the task's prompt of that number, or of `sha256:` and its digest; None if it is not held.

        Raises NotFound if the name has another form.
        """
        if name.startswith(SHA):
            digest = name.removeprefix(SHA)
            if not re.fullmatch(DIGEST_PATTERN, digest):
                raise NotFound(f"{name[:80]!r} names no prompt of {task}; expected {SHA} and 64 hexadecimal digits")
        else:
            digest = self._numbers.get((task, int(name)), "")
        self.use(digest)  # before it is looked up: `prune` looks again after it took a prompt out
        held = self._held.get(digest)
        if held is None:
            self._used.pop(digest, None)
        return held if held and held.manifest.task == task else None

    def use(self, digest: str) -> None:
        """Note that somebody asked for the prompt, so that it stays as long as the request may run."""
        self._used[digest] = self._clock()

    def list(self) -> list[Holding]:
        """Return what is held, as the server reports it."""
        return [Holding(held.manifest.task, digest) for digest, held in list(self._held.items())]

    def make_room(self, named: Collection[str]) -> None:
        """Raise Overloaded if no further prompt may be held on request. named: digests that aliases name."""
        if len(self._held.keys() - set(named)) >= ON_REQUEST:
            self.prune(named)
        others = self._held.keys() - set(named)
        if len(others) >= ON_REQUEST:
            wait = RETAINED - (self._clock() - min(self._used.get(digest, 0.0) for digest in others))
            raise Overloaded(
                f"{len(others)} versions are held because somebody asked for their number or digest, and no more are; "
                "ask by an alias, or wait",
                max(wait, 1.0),
            )

    def prune(self, named: Collection[str]) -> bool:
        """Drop what no alias names and nobody asked for lately; return whether there was any."""
        since, dropped = self._clock() - RETAINED, False
        for digest in self._held.keys() - set(named):
            used = self._used.get(digest, 0.0)
            if used > since:
                continue
            held = self._held.pop(digest)
            if self._used.get(digest, 0.0) != used:  # somebody found it just before it was taken out
                self._held[digest] = held
                continue
            self._used.pop(digest, None)
            self._holder.drop(digest)
            dropped = True
        if dropped:
            self._numbers = {name: digest for name, digest in self._numbers.items() if digest in self._held}
            members = {
                digest
                for held in self._held.values()
                for digest in (held.manifest.members.digests if held.manifest.members else ())
            }
            self._good.keep(self._held.keys() | members)
        return dropped


def list_holdings(promotions: Iterable[Promotion]) -> list[Holding]:
    """Return the prompts that the promotions name."""
    return [
        Holding(row.task, digest)
        for row in promotions
        for digest in (row.digest, *([row.beside.digest] if row.beside else []))
    ]
