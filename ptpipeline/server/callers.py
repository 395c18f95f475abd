"""Who may ask: bearer tokens, of which the file holds only the hash, with the tasks and the rate of each."""

import hashlib
import hmac
import math
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from filelock import FileLock
from pydantic import Field

from ptpipeline.errors import NotFound, SettingsError
from ptpipeline.foreign import parse_json, parsing, read_file, shorten
from ptpipeline.private import write_private
from ptpipeline.records.base import DIGEST_PATTERN, NAME_PATTERN, Record, is_name
from ptpipeline.server.refusals import Refusal

MAX_BYTES = 2**20
_FIX = "`ptp token NAME` writes it; remove the file to begin again"


class Token(Record):
    """A token by its name. `tasks`: those that it may use, none is all. `per_minute`: how many texts."""

    name: str = Field(pattern=NAME_PATTERN)
    sha256: str = Field(pattern=DIGEST_PATTERN)
    tasks: tuple[str, ...] = ()
    per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class TokenFile(Record):
    """What the file of tokens holds."""

    schema_version: Literal[1] = 1
    tokens: tuple[Token, ...] = ()


class Caller(NamedTuple):
    """Who asks: what they may use, and what is left of their rate."""

    name: str
    tasks: frozenset[str]
    bucket: "Bucket | None"

    def check_task(self, task: str) -> None:
        """Raise Refusal if the caller may not use the task."""
        if not self.may_use(task):
            raise Refusal(403, f"the token {self.name} may not use that task; ask for one that may", "forbidden_task")

    def may_use(self, task: str) -> bool:
        """Return whether the caller may use the task."""
        return not self.tasks or task in self.tasks

    def spend(self, texts: int) -> None:
        """Take so many texts from what the caller may ask now; raise Refusal if that is less."""
        if self.bucket is not None:
            self.bucket.take(texts)


class Bucket:
    """What a caller may still ask: `per_minute` texts at once, and as many more in each minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left, self._seen = float(per_minute), clock()

    def take(self, texts: int) -> None:
        """Take so many texts; raise Refusal, which says when, if they are not left."""
        if texts > self.per_minute:
            raise Refusal(
                400, f"{texts} texts at once, at most {self.per_minute} a minute are allowed: send fewer", "too_many"
            )
        now = self._clock()
        self._left = min(float(self.per_minute), self._left + (now - self._seen) * self.per_minute / 60)
        self._seen = now
        if texts > self._left:
            wait = (texts - self._left) * 60 / self.per_minute
            raise Refusal(
                429,
                f"more than {self.per_minute} texts a minute: ask again in {math.ceil(wait)} s",
                "rate_limited",
                wait,
            )
        self._left -= texts


class Tokens:
    """The tokens of a file, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._callers: list[tuple[bytes, Caller]] = []

    def find(self, given: str) -> Caller | None:
        """Return whose token that is. It takes the same time for every token. Raises SettingsError if the file is bad.

        A token has 256 random bits, so a plain hash hides it: there is nothing to guess.
        """
        self._read_again()
        digest, found = hashlib.sha256(given.encode()).hexdigest().encode(), None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def __len__(self) -> int:
        self._read_again()
        return len(self._callers)

    def _read_again(self) -> None:
        try:
            state = self.path.stat()
        except OSError:
            self._stamp, self._callers = None, []
            read_tokens(self.path)  # it is not there, or this says why it cannot be looked at
            return
        stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
        if stamp != self._stamp:
            before = {caller.name: caller.bucket for _, caller in self._callers}
            self._callers = [(token.sha256.encode(), _admit(token, before)) for token in read_tokens(self.path).tokens]
            self._stamp = stamp


def _admit(token: Token, before: dict[str, Bucket | None]) -> Caller:
    """Return the caller of a token; what they spent counts on if their rate is the same."""
    bucket = before.get(token.name)
    if token.per_minute is None:
        bucket = None
    elif bucket is None or bucket.per_minute != token.per_minute:
        bucket = Bucket(token.per_minute)
    return Caller(token.name, frozenset(token.tasks), bucket)


def read_tokens(path: Path) -> TokenFile:
    """Return the tokens of a file, none if there is no file.

    Raises SettingsError if it cannot be read, or if other users may write to it: they could let themselves in.
    """
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SettingsError(f"{path}: other users may write to it; run `chmod go-w {path}`")
        body = read_file(path, MAX_BYTES, SettingsError)
    except FileNotFoundError:
        return TokenFile()
    except (OSError, NotFound) as error:
        raise SettingsError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with parsing(f"{path}: not a file of tokens", _FIX, SettingsError):
        return TokenFile.model_validate(parse_json(body, f"{path}: not a file of tokens", _FIX, SettingsError))


def make_token(path: Path, name: str, tasks: list[str], per_minute: int | None) -> str:
    """Return a new token of that name, whose hash is added to the file, in place of the one before it.

    Raises SettingsError if the file cannot be read or written, or a task is no name: it would open nothing.
    """
    for task in tasks:
        if not is_name(task):
            raise SettingsError(
                f"--task {shorten(task)}: not a task's name; name each task, without a pattern or an alias, or leave "
                "--task out for all tasks"
            )
    token = f"ptp_{secrets.token_urlsafe(32)}"
    with parsing(f"token {name}", "see `ptp token --help`", SettingsError, quoting=True):
        entry = Token(
            name=name,
            sha256=hashlib.sha256(token.encode()).hexdigest(),
            tasks=tuple(sorted(set(tasks))),
            per_minute=per_minute,
        )
    _change(path, name, [entry])
    return token


def revoke_token(path: Path, name: str) -> None:
    """Take the token of that name out of the file; a running server refuses it from its next request on.

    Raises NotFound if there is none, SettingsError if the file cannot be read or written.
    """
    if name not in {token.name for token in read_tokens(path).tokens}:
        raise NotFound(f"{path}: there is no token {name}; `ptp token` lists them")
    _change(path, name, [])


def _change(path: Path, name: str, entries: list[Token]) -> None:
    read_tokens(path)  # nothing is made beside a file that cannot be one
    try:
        if path.exists() and path.stat().st_uid != os.geteuid():  # it would be made ours with the tokens that it holds
            raise SettingsError(f"{path}: belongs to another user, whose tokens it holds; name another file")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), mode=0o600):
            others = [token for token in read_tokens(path).tokens if token.name != name]
            tokens = sorted([*others, *entries], key=lambda token: token.name)
            readers = path.stat().st_mode & 0o044 if path.exists() else 0  # a container reads it as a user of its own
            write_private(path, TokenFile(tokens=tuple(tokens)).model_dump_json(indent=1).encode(), 0o600 | readers)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written ({error.strerror}); name another file with --tokens") from None
