"""What every record is: a frozen value that turns into canonical JSON."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"


DIGEST_PATTERN = r"^[0-9a-f]{64}$"

# What canonical JSON and the ledger's columns hold: a stored record beyond them is refused when it is parsed.
MAX_INTEGER = 2**53 - 1  # RFC 8785, section 3.2.2.3
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]  # of rows, tokens or bytes; a seed
Number = Annotated[int, Field(ge=1, le=999_999_999)]  # of a version, a promotion or a look
Key = Annotated[str, Field(max_length=64)]  # a digest


def _check_time(text: str) -> str:
    try:
        known = datetime.fromisoformat(text)
        known.astimezone(UTC)
    except (ValueError, OverflowError):
        known = None
    if known is None or known.tzinfo is None:
        raise ValueError("no time with an offset from UTC")
    return text


Time = Annotated[str, Field(max_length=32)]  # ISO 8601 in UTC, with microseconds
Instant = Annotated[Time, AfterValidator(_check_time)]  # one that readers compute with, whoever wrote it
Words = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # of a person: PostgreSQL stores no NUL


def digest_of(value: Any) -> str:
    """Return the hex sha256 of the canonical JSON (RFC 8785) of a value."""
    return hashlib.sha256(rfc8785.dumps(value)).hexdigest()


def read_clock() -> datetime:
    """Return the time in UTC by this machine's clock. Anybody may set it: it dates records, and no lease ends by it."""
    return datetime.now(UTC)


def now() -> str:
    """Return the current time as ISO 8601 in UTC, with microseconds."""
    return read_clock().isoformat()


def is_name(text: str) -> bool:
    """Tell whether `text` may name a task or an alias, and so become part of a key, a path or a URL."""
    return re.fullmatch(NAME_PATTERN, text) is not None


class Record(BaseModel):
    """A frozen value. Unknown fields are refused, so that an older reader never drops what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for canonical digests and storage."""
        return self.model_dump(mode="json")


class Grown(Record):
    """A record that gained fields after some were stored.

    The fields in `LATER` are left out at their default, so that an older stored record keeps its digest.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in self.LATER or getattr(self, name) != type(self).model_fields[name].default
        }
