"""What is registered: versions, promotions, and the pointers that readers follow."""

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from ptpipeline.records.base import Grown, Instant, Key, Number, Record, Time, Words, digest_of

PRODUCTION = "production"


class PromptVersion(Record):
    """An immutable registered prompt, numbered per task by the ledger. MLflow's names for it are replaceable.

    `collected` says that the garbage collection deleted its bytes, or is about to; the number is not reused.
    """

    task: str
    number: Number
    digest: Key
    verdict: Key | None
    passed: bool | None
    registered_at: Time
    collected: bool = False


class VersionRef(NamedTuple):
    """A version by its task and number."""

    task: str
    number: int

    def __str__(self) -> str:
        return f"{self.task}@{self.number}"


class Beside(Record):
    """A second version that an alias names beside its own: a canary, or a shadow.

    A canary answers `percent` of the requests, on its own `verdict`, or by an `override`. A shadow (percent 0) answers
    none: it is asked too, and its answers are only compared.
    """

    version: Number
    digest: Key
    percent: Annotated[int, Field(ge=0, le=99)]
    verdict: Key | None = None
    override: bool = False

    @property
    def is_shadow(self) -> bool:
        """Whether its answers are only compared."""
        return self.percent == 0


class Promotion(Grown):
    """One row of the append-only ledger that moves an alias; seq counts from 1 per (task, alias).

    `override` says that a person promoted it although the gate refused it; `release` names the set of versions that was
    promoted together. `chain` is the digest of the row before it, which no row had that an older ptpipeline wrote.
    `beside` is a second version that the alias names too, for a part of the requests or as a shadow.
    """

    LATER: ClassVar = frozenset({"override", "release", "chain", "beside"})

    task: str
    alias: str
    seq: Number
    version: Number
    digest: Key
    previous: Number | None
    actor: Words
    reason: Words
    verdict: Key | None
    at: Instant
    override: bool = False
    release: str | None = None
    chain: Key | None = None
    beside: Beside | None = None

    def row_digest(self) -> str:
        """Return the digest of the whole row, which the next row of the alias holds as its `chain`."""
        return digest_of(self.to_json())

    def follows(self, before: "Promotion | None") -> bool:
        """Return whether the row may stand behind that one: the chain, once begun, names each row before."""
        if self.chain is None:
            return before is None or before.chain is None
        return before is not None and self.chain == before.row_digest()


class Pointer(Record):
    """The object that serving reads, `prompts/<task>/aliases/<alias>.json`: a whole promotion row.

    The nonce makes equal promotions differ in bytes, because an ETag is a hash of the content.
    """

    schema_version: Literal[1] = 1
    promotion: Promotion
    nonce: str = Field(min_length=16)


class VersionName(Record):
    """The digest of a version's number, at `prompts/<task>/versions/<number>.json`, for readers without the ledger."""

    schema_version: Literal[1] = 1
    task: str
    number: Number
    digest: Key
