"""What serving records: what each server holds, observes and compares; and one answer."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from ptpipeline.records.base import Count, Grown, Instant, Record, digest_of


class Holding(NamedTuple):
    """A prompt that a server has loaded."""

    task: str
    digest: str


class Observed(NamedTuple):
    """The promotion of an alias that a server answers by."""

    task: str
    alias: str
    seq: int
    version: int


class Refused(NamedTuple):
    """A promotion that a server does not take, and why; it goes on with the one before."""

    task: str
    alias: str
    reason: str


class Tally(NamedTuple):
    """How a shadow's answers compare with those of the version that an alias answers by, since promotion `seq`.

    asked: texts that both answered, `differ` of them differently. failed: requests that the shadow did not answer.
    judged: answers whose right one was told; `first` counts those that the alias's own version alone had right,
    `second` those that the shadow alone had right.
    """

    task: str
    alias: str
    seq: int
    version: int
    shadow: int
    asked: Count = 0
    differ: Count = 0
    failed: Count = 0
    judged: Count = 0
    first: Count = 0
    second: Count = 0


class CanaryTally(NamedTuple):
    """How often the right answers that were told later agree with those of an alias's own version and of its canary,
    since promotion `seq`.

    Each text is answered by one of them, so the newest judged answer of either stands against the next one of the
    other: of these pairs, `first` counts those in which the alias's own version alone was right, `second` the canary
    alone.
    """

    task: str
    alias: str
    seq: int
    version: int
    canary: int
    judged: Count = 0
    right: Count = 0
    canary_judged: Count = 0
    canary_right: Count = 0
    first: Count = 0
    second: Count = 0


class PassedOn(NamedTuple):
    """The right answer, by its hash, to a text that another server answered: that one counts it.

    request, number: the id of its answer, and the index of the text.
    """

    request: str
    number: Count
    task: str
    right: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ServerReport(Grown):
    """The prompts that a server has loaded, at `servers/<server>.json`; after a restart it may need their bytes
    again.

    `observed` and `refused` say what each alias is to this server, `trials` and `canaries` how its shadows and canaries
    compare, `passed` what it was told of other servers' answers. `sha256` is the digest of all other fields, which
    shows bits that rotted.
    """

    LATER: ClassVar = frozenset({"sha256", "observed", "refused", "trials", "canaries", "passed"})

    schema_version: Literal[1] = 1
    server: str
    at: Instant
    holds: list[Holding]
    sha256: str = ""
    observed: list[Observed] = []
    refused: list[Refused] = []
    trials: list[Tally] = []
    canaries: list[CanaryTally] = []
    passed: list[PassedOn] = []

    def compute_sha256(self) -> str:
        """Return the digest of all fields but `sha256`."""
        return digest_of(self.model_copy(update={"sha256": ""}).to_json())


class Answer(Record):
    """One prediction and the version that made it: a label with all probabilities, or the text of a generation task."""

    label: str | None
    probabilities: dict[str, float]
    version: str
    digest: str
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values without the fields of the other kind of task."""
        absent = ("label", "probabilities") if self.text is not None else ("text",)
        return {key: value for key, value in super().to_json().items() if key not in absent}
