"""Whether an object store honours conditional puts, tried before it is trusted: without them, versions could be lost.

Some servers answer 200 to a conditional put and ignore the condition; then two promoters overwrite each other unseen.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ptpipeline.errors import PreconditionFailed, PtpError, SettingsError
from ptpipeline.storage import ObjectStore, Stored
from ptpipeline.storage.keys import probe_key

log = logging.getLogger(__name__)

RACERS = 4  # SeaweedFS lets losers of a race wait in steps of a second: about one second with four, two with six


def check_conditional_puts(store: ObjectStore) -> None:
    """Try creates and replaces on fresh keys, one after another and concurrently, and remove the keys.

    Raises SettingsError that names the store and what it ignored, ServiceUnavailable if the store does not answer. A
    store without atomic conditions may survive these few races by chance: the benchmark of the registry races longer.
    """
    nonce = uuid.uuid4().hex
    one, created, replaced, missing = (probe_key(nonce, name) for name in ("one", "created", "replaced", "none"))
    with _removed_afterwards(store, [one, created, replaced, missing]):
        _check_one_writer(store, one, missing)
        _race(
            store,
            created,
            "several creates of one key at once (If-None-Match: *)",
            lambda body: store.create(created, body),
        )
        store.create(replaced, b"first")
        etag = store.read(replaced).etag
        _race(
            store,
            replaced,
            "several replaces by one tag at once (If-Match)",
            lambda body: store.replace(replaced, body, etag),
        )


def _check_one_writer(store: ObjectStore, key: str, missing: str) -> None:
    store.create(key, b"first")
    first = _expect(store, key, b"first")
    _must_refuse(store, "a create of a key that exists (If-None-Match: *)", lambda: store.create(key, b"second"))
    _expect(store, key, b"first")
    try:
        store.replace(key, b"second", first.etag)
    except PreconditionFailed:
        raise _unfit(store, "refuses a replace by the tag that it just gave (If-Match)") from None
    _expect(store, key, b"second")
    _must_refuse(store, "a replace by an outdated tag (If-Match)", lambda: store.replace(key, b"third", first.etag))
    _must_refuse(store, "a replace of a missing key (If-Match)", lambda: store.replace(missing, b"third", first.etag))
    _expect(store, key, b"second")


def _expect(store: ObjectStore, key: str, body: bytes) -> Stored:
    stored = store.read(key)
    if stored.body != body:
        raise _unfit(store, "does not return the bytes that were written last")
    return stored


def _must_refuse(store: ObjectStore, what: str, put: Callable[[], None]) -> None:
    try:
        put()
    except PreconditionFailed:
        return
    raise _ignored_condition(store, what)


def _race(store: ObjectStore, key: str, what: str, put: Callable[[bytes], None]) -> None:
    """Put different bytes concurrently, RACERS times: exactly one may be acknowledged, and its bytes are stored."""
    start = threading.Barrier(RACERS)

    def attempt(number: int) -> bytes | None:
        body = b"racer %d" % number
        start.wait()
        try:
            put(body)
        except PreconditionFailed:
            return None
        return body

    with ThreadPoolExecutor(RACERS) as pool:
        won = [body for body in pool.map(attempt, range(RACERS)) if body is not None]
    if not won:
        raise _unfit(store, f"refuses all of {what}")
    if len(won) > 1 or store.read(key).body != won[0]:
        raise _ignored_condition(store, what)


def _ignored_condition(store: ObjectStore, what: str) -> SettingsError:
    return _unfit(store, f"answers with success to {what} and ignores the condition")


def _unfit(store: ObjectStore, fault: str) -> SettingsError:
    return SettingsError(
        f"PTP_STORE: {store.where} {fault}, so versions and aliases could be lost there; use a store that "
        "honours If-Match and If-None-Match: AWS S3, SeaweedFS, or a folder"
    )


@contextmanager
def _removed_afterwards(store: ObjectStore, keys: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for key in keys:
            try:
                store.delete(key)
            except PtpError as error:  # what the check found matters more
                log.warning("%s could not be removed from %s: %s", key, store.url, error)
