"""What an object store promises: slash-separated keys, bytes, conditional puts; and what a lost answer means."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

from ptpipeline.errors import ArtifactError, NotFound, SettingsError

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

    Any call raises ServiceUnavailable if the store does not answer, SettingsError if a person has to correct
    something: credentials, rights, a missing bucket, a full disk. ServiceUnavailable from a put means "not known": the
    object is not there now, and a slow server may still apply the put. It does so under the put's own condition, so it
    never overwrites what came in between: repeat a create with the same bytes, a replace from a fresh read.
    """

    url: str
    where: str

    def read(self, key: str) -> Stored:
        """Return the object's bytes and tag; NotFound if there is none, ArtifactError if it is larger than its kind may
        be (`bounds`), or no file.
        """

    def read_changed(self, key: str, etag: str) -> Stored | None:
        """Return what `read` does; None if the object still has that tag, and then its bytes are not sent."""

    def exists(self, key: str) -> bool:
        """Return whether the object is there."""

    def create(self, key: str, body: bytes) -> None:
        """Put a new object; PreconditionFailed if the key holds other bytes.

        Does nothing if the key holds the same bytes: it does not matter who wrote them. The object's age stays that of
        the first write.
        """

    def replace(self, key: str, body: bytes, etag: str) -> None:
        """Overwrite the object that was read under `etag`; PreconditionFailed if it changed since, or is gone.

        Also raised if our write did happen, its answer was lost, and another writer replaced it before we looked: so it
        says that the object is not ours now, not that it never was. Read again and decide again. A lost answer is
        settled by comparing bytes, and tags are hashes of bytes: if it matters who wrote, or if equal bytes may return,
        the body has to contain a nonce, as pointers do.
        """

    def delete(self, key: str) -> None:
        """Remove the object; does nothing if there is none.

        After ServiceUnavailable it may still be removed later, and no condition protects what is created there
        meanwhile: whoever deletes keeps others from writing the key until a delete has been answered.
        """

    def list_objects(self, prefix: str) -> Iterator[Listed]:
        """Iterate over all objects below the folder `prefix`, fetched page by page; those of one folder come
        together. What others put there is among them, even at keys that the other calls refuse.
        """

    def keys(self, prefix: str) -> Iterator[str]:
        """Iterate over the keys of `list_objects`."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Iterate over the folders in the folder `prefix`, without what they hold, however much it is."""


def overwrite(store: ObjectStore, key: str, body: bytes) -> None:
    """Put the object in place of whatever lies there, also of what nobody can read, such as a link.

    Raises PreconditionFailed if another writer comes in between.
    """
    try:
        stored = store.read(key)
    except NotFound:
        store.create(key, body)
    except ArtifactError:
        store.delete(key)
        store.create(key, body)
    else:
        if stored.body != body:
            store.replace(key, body, stored.etag)


def is_key(key: str) -> bool:
    """Whether it is a safe relative name, because keys become paths and URLs."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """Return `key` itself; ArtifactError unless `is_key`: a listing names what others put elsewhere, too."""
    if not is_key(key):
        raise ArtifactError(f"object key {key!r}: expected names of letters, digits, `._-` separated by `/`")
    return key


def without_login(name: str, url: str) -> str:
    """Return `url` itself; SettingsError that names the setting, without the login, if it contains one."""
    if "@" in url:  # before any parser sees it, because its errors would print the whole address
        shown = re.sub(r"^(\w+://)?.*@", r"\1...@", url)
        raise SettingsError(
            f"{name}: {shown!r} contains a user name or password; give the keys in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and remove what is before the @"
        )
    return url
