"""Foreign bytes, which somebody else may have written: parsing them gives a value or a PtpError, and nothing else.

A parser raises whatever it likes for bytes that nobody expected: RecursionError, OverflowError, classes of its own.
Here alone that is turned into the error tree; `tests/test_foreign.py` holds every other module to it. Sizes are bounded
before anything is read (`storage.bounds`, `read_file`), and what JSON may unfold into before it is parsed.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from ptpipeline.errors import ArtifactError, NotFound, PtpError, Terminal, is_panic
from ptpipeline.interpreter import explain_import
from ptpipeline.private import open_regular
from ptpipeline.records.base import MAX_INTEGER

MAX_DIGITS = 400  # of a number: a float has at most 309 before its point; Python's int() is quadratic in them
MAX_CONTAINERS, MAX_VALUES = 250_000, 2_000_000  # of a JSON text; each takes some hundred, some ten bytes of memory
ALTERED = "it is altered or from a newer ptpipeline"

# Of a request, whose answer is then read as it comes: what 7 kB of gzip within gzip unfold into fits no memory, and
# HTTP libraries unfold a piece before anybody can count it.
UNPACKED = {"accept-encoding": "identity"}

# C0 and C1 (newlines too), marks and overrides of direction, line separators, halves of surrogate pairs
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

_Parsed = TypeVar("_Parsed", bound=BaseModel)


@contextmanager
def parsing(
    what: str, fix: str = ALTERED, kind: type[Terminal] = ArtifactError, quoting: bool = False
) -> Iterator[None]:
    """Raise whatever the block raises as one sentence of that kind; a PtpError passes as it is.

    what: the object, with its address. fix: what is wrong then, or what to do. quoting: whether the sentence says what
    the parser says, which may quote the bytes: never of rows or of what somebody asked.
    """
    try:
        yield
    except PtpError:
        raise
    except BaseException as error:  # no list of a parser's errors is complete
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if isinstance(error, Exception) and (told := explain_import(error)):  # a parser is imported when it is used
            raise told from None
        raise kind(f"{what}: {_reason(error)}{_quote(error) if quoting else ''}; {fix}") from None


def parse_record(kind: type[_Parsed], body: bytes, what: str, fix: str = ALTERED) -> _Parsed:
    """Return the record that the JSON in `body` states; ArtifactError if it states none, or none with a digest.

    Numbers and texts that canonical JSON cannot write have no identity: `parse_json` refuses them.
    """
    value = parse_json(body, what, fix)
    with parsing(what, fix):
        return kind.model_validate(value)


def parse_json(
    body: bytes, what: str, fix: str = ALTERED, kind: type[Terminal] = ArtifactError, largest: float = MAX_INTEGER
) -> Any:
    """Return the value that the JSON in `body` states; else an error of that kind.

    Its numbers are finite, its integers at most `largest` (by default those of canonical JSON), its texts Unicode, its
    keys distinct; it is at most 200 levels deep, which is pydantic's own limit.
    """
    with parsing(what, fix, kind):
        if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS or body.count(b",") > MAX_VALUES:
            raise _Refused("holds too many values")
        try:
            from_json(body, allow_inf_nan=False, cache_strings=False)  # refuses depth and lone surrogates
        except ValueError as error:  # its words name a place, and quote nothing
            raise _Refused(f"is not valid JSON: {error}") from None
        return json.loads(
            body.decode(),
            parse_int=partial(_integer, largest),
            parse_float=_number,
            parse_constant=_number,
            object_pairs_hook=_distinct,
        )


def read_file(path: Path, most: int, kind: type[Terminal] = ArtifactError) -> bytes:
    """Return the bytes of a file that somebody else may have written.

    Raises an error of that kind if it is larger than `most` bytes or no regular file (a pipe would keep us waiting),
    NotFound if it is not there or cannot be read.
    """
    check_file(path, most, kind)
    try:
        with open_regular(path) as file:
            body = file.read(most + 1)
    except OSError as error:
        raise NotFound(f"{path}: cannot be read ({error.strerror})") from None
    if len(body) > most:
        raise kind(f"{path}: more than {most} bytes; it grew while it was read")
    return body


def check_file(path: Path, most: int, kind: type[Terminal] = ArtifactError) -> int:
    """Return the size of a file; raises what `read_file` raises."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise NotFound(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not a path'})") from None
    if not stat.S_ISREG(found.st_mode):
        raise kind(f"{path}: not a regular file")
    if found.st_size > most:
        raise kind(f"{path}: {found.st_size} bytes, at most {most} allowed")
    return found.st_size


def escape_controls(text: str) -> str:
    """Return the text with every character that a terminal or a reading direction acts upon written out, as `\\x1b`."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shorten(value: Any, most: int = 120) -> str:
    """Return how a foreign value looks, in at most that many characters, none of which a terminal acts upon."""
    shown = ascii(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


class _Refused(ValueError):
    """Well-formed, but no value of ours; the message says why and quotes nothing."""


def _integer(largest: float, digits: str) -> int:
    if len(digits) > MAX_DIGITS or abs(number := int(digits)) > largest:
        raise _Refused("holds an integer that canonical JSON cannot write")
    return number


def _number(digits: str) -> float:
    number = float(digits) if len(digits) <= MAX_DIGITS else math.inf
    if not math.isfinite(number):
        raise _Refused("holds a number that is not finite")
    return number


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("names a field twice")
    return found


def _quote(error: BaseException) -> str:
    """Return the parser's own words, shortened to a line that no terminal acts upon."""
    words = " ".join(str(error).split())
    return f": {shorten(words, 240)[1:-1]}" if words else ""


def _reason(error: BaseException) -> str:
    """Return what is wrong, without any of the bytes: they may be private."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        return f"{shorten(place)[1:-1]}: {said}" if place else said
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return f"cannot be read ({os.strerror(error.errno)})"  # the system's words: a library's own may quote bytes
    return str(error) if isinstance(error, _Refused) else f"cannot be read ({type(error).__name__})"
