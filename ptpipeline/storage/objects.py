"""What an object store promises: slash-separated keys, bytes, conditional puts; and what a lost answer means."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

from ptpipeline.errors import SettingsError

_KEY = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")


class Stored(NamedTuple):
    """An object's bytes and the tag that a conditional replace has to cite."""

    body: bytes
    etag: str


class Listed(NamedTuple):
    """An object of a listing: its key, when its bytes were written (UTC, by the store's clock, to the second), its
    size.
    """

    key: str
    modified: datetime
    bytes: int


class ObjectStore(Protocol):
    """Keys are slash-separated names; bodies are bytes; every put is conditional and whole.

    url: the address as settings give it. where: the store as messages name it, with its server's address.

    Any call raises ServiceUnavailable where the store does not answer, SettingsError where a person has to mend
    something: credentials, rights, a missing bucket, a full disk. ServiceUnavailable from a put means "not known": it
    is not there now, and a slow server may yet apply it. Then it is applied under its own condition, so it never
    overwrites what came between: repeat a create with the same bytes, a replace from a fresh read.
    """

    url: str
    where: str

    def read(self, key: str) -> Stored:
        """The object's bytes and tag; NotFound where there is none."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def create(self, key: str, body: bytes) -> None:
        """Put a new object; PreconditionFailed where the key is taken by other bytes.

        Silent where it holds the same bytes: such keys name content, so it is all the same who wrote it. Its age stays
        that of the first write.
        """

    def replace(self, key: str, body: bytes, etag: str) -> None:
        """Overwrite the object that was read under `etag`; PreconditionFailed where it changed since, or is gone.

        Also raised where our write did happen, its answer was lost, and another replaced it before we looked: so it
        says that the object is not ours now, never that it was not. Read again and decide anew. A lost answer is
        settled by comparing bytes, and tags are hashes of bytes: where it matters who wrote, or where equal bytes may
        come back, the body has to carry a nonce, as pointers do.
        """

    def delete(self, key: str) -> None:
        """Remove the object; silent where there is none.

        After ServiceUnavailable it may still be removed later, and no condition protects what is created there
        meanwhile: whoever deletes keeps others from writing the key until a delete has been answered.
        """

    def listed(self, prefix: str) -> Iterator[Listed]:
        """All objects below the folder `prefix`, fetched page by page as they are taken; those below one folder stand
        together.
        """

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of `listed`."""


def checked_key(key: str) -> str:
    """`key` itself where it is a safe relative name, else SettingsError: keys become paths and URLs."""
    if not _KEY.fullmatch(key):
        raise SettingsError(f"object key {key!r}: expected names of letters, digits, `._-` separated by `/`")
    return key


def without_login(name: str, url: str) -> str:
    """`url` itself where it carries no user name or password, else SettingsError naming the setting, without them."""
    if "@" in url:  # also before a parser sees it: its errors would print the whole
        shown = re.sub(r"^(\w+://)?.*@", r"\1...@", url)
        raise SettingsError(
            f"{name}: {shown!r} carries a user name or password; give the keys in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and remove what stands before the @"
        )
    return url
