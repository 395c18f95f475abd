"""Foreign bytes, which somebody else may have written: parsing them gives a value or a PtpError, and nothing else.

A parser raises whatever it likes for bytes that nobody expected: RecursionError, OverflowError, classes of its own.
Here alone that is turned into the error tree. The object store bounds sizes before it reads (`storage.bounds`).
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ptpipeline.errors import ArtifactError, PtpError, Terminal
from ptpipeline.records.base import digest_of

MAX_DIGITS = 400  # of a number: a float has at most 309 before its point; Python's int() is quadratic in them
ALTERED = "it is altered or from a newer ptpipeline"

_Parsed = TypeVar("_Parsed", bound=BaseModel)


@contextmanager
def parsing(what: str, fix: str = ALTERED, kind: type[Terminal] = ArtifactError) -> Iterator[None]:
    """Raise whatever the block raises as one sentence of that kind; a PtpError passes as it is.

    what: the object, with its address. fix: what is wrong then, or what to do. The sentence never quotes the bytes.
    """
    try:
        yield
    except PtpError:
        raise
    except Exception as error:  # noqa: BLE001 - no list of a parser's errors is complete
        raise kind(f"{what}: {_reason(error)}; {fix}") from None


def parse_record(kind: type[_Parsed], body: bytes, what: str, fix: str = ALTERED) -> _Parsed:
    """Return the record that the JSON in `body` states; ArtifactError if it states none, or none with a digest."""
    with parsing(what, fix):
        record = kind.model_validate_json(body)
        digest_of(record.model_dump(mode="json"))  # numbers and texts that canonical JSON cannot write have no identity
        return record


def parse_json(body: bytes, what: str, fix: str = ALTERED, kind: type[Terminal] = ArtifactError) -> Any:
    """Return the value that the JSON in `body` states, all of whose numbers are finite; else an error of that kind."""
    with parsing(what, fix, kind):
        return json.loads(body, parse_int=_integer, parse_float=_number, parse_constant=_number)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits) if len(digits) <= MAX_DIGITS else math.inf
    if not math.isfinite(number):
        raise ValueError
    return number


def _reason(error: Exception) -> str:
    """Return what is wrong, without any of the bytes: they may be private."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return f"cannot be read ({type(error).__name__})"
