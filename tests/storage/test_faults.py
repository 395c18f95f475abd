"""Storage behind a network that fails: whatever happens to a request, the object is whole and the caller is told the
truth.
"""

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple

import boto3
import pytest

from benchmarks.faults import Fault, FaultProxy, Request, scripted, seeded
from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.errors import PreconditionFailed, ServiceUnavailable
from ptpipeline.storage import ObjectStore, RequestLimits, S3Store, Stored

pytestmark = pytest.mark.servers

OLD, NEW, OTHER = b"old", b"new, with a nonce", b"another's, with a nonce"
BEFORE = (Fault.ERROR_BEFORE, Fault.CUT_BEFORE, Fault.SILENT_BEFORE, Fault.LATE)
SILENT = (Fault.SILENT_BEFORE, Fault.SILENT_AFTER)
SILENCE = 1.0  # seconds


class Line(NamedTuple):
    """A bucket of a real server, reached directly and through a proxy."""

    direct: S3Store
    proxy: FaultProxy

    @cache
    def behind(self, seconds: float, attempts: int) -> S3Store:
        """Return the store behind the proxy for one who waits so long for an answer, and asks so often."""
        return S3Store("faults", endpoint=self.proxy.endpoint, limits=RequestLimits(seconds, attempts))


@pytest.fixture(scope="module")
def line(s3_server: S3Server) -> Iterator[Line]:
    boto3.client("s3", endpoint_url=s3_server.endpoint).create_bucket(Bucket="faults")
    with FaultProxy(s3_server.endpoint, silence=SILENCE) as proxy:
        yield Line(S3Store("faults", endpoint=s3_server.endpoint), proxy)


class Faulty:
    """One fresh key on that line, with faults of its own."""

    def __init__(
        self, line: Line, faults: Sequence[Fault | None] = (), method: str | None = None, attempts: int = 1
    ) -> None:
        self.direct, self.proxy = line.direct, line.proxy
        # Who waits for a short time only gives up also where the machine is slow, and the fault is another request's.
        self.store = line.behind(0.8 * SILENCE if set(faults) & set(SILENT) else 30.0, attempts)
        self.key = f"{uuid.uuid4().hex}/a"
        self.proxy.injected.clear()
        self.proxy.plan = scripted(faults, method)

    def stored(self) -> bytes | None:
        """What lies there when every late request has arrived."""
        self.proxy.settle()
        return self.direct.read(self.key).body if self.direct.exists(self.key) else None


Use = Callable[..., Faulty]


@pytest.fixture
def faulty(line: Line) -> Use:
    return partial(Faulty, line)


def told(call: Callable[[], object]) -> str:
    try:
        call()
    except PreconditionFailed:
        return "lost"
    except ServiceUnavailable:
        return "not known"
    return "done"


@pytest.mark.parametrize("fault", Fault)
def test_a_create_is_told_truly(faulty: Use, fault: Fault) -> None:
    use = faulty([fault], "PUT")
    answer = told(lambda: use.store.create(use.key, NEW))
    assert answer == ("not known" if fault in BEFORE else "done")
    assert use.stored() == (None if fault in BEFORE and fault != Fault.LATE else NEW)
    assert told(lambda: use.store.create(use.key, NEW)) == "done"
    assert use.proxy.injected == {fault: 1}


@pytest.mark.parametrize("fault", Fault)
def test_a_replace_is_told_truly(faulty: Use, fault: Fault) -> None:
    use = faulty([fault], "PUT")
    use.direct.create(use.key, OLD)
    etag = use.store.read(use.key).etag
    answer = told(lambda: use.store.replace(use.key, NEW, etag))
    assert answer == ("not known" if fault in BEFORE else "done")
    assert use.stored() == (OLD if fault in BEFORE and fault != Fault.LATE else NEW)


@pytest.mark.parametrize("fault", Fault)
def test_a_repeated_put_is_done(faulty: Use, fault: Fault) -> None:
    use = faulty([fault, None, fault], "PUT", attempts=2)
    assert told(lambda: use.store.create(use.key, OLD)) == "done"
    etag = use.store.read(use.key).etag
    assert told(lambda: use.store.replace(use.key, NEW, etag)) == "done"
    assert use.stored() == NEW


@pytest.mark.parametrize("fault", Fault)
def test_a_delete_is_told_truly(faulty: Use, fault: Fault) -> None:
    use = faulty([fault], "DELETE")
    use.direct.create(use.key, OLD)
    answer = told(lambda: use.store.delete(use.key))
    there = use.stored()
    assert there in (None, OLD)
    assert answer == ("done" if fault in (Fault.TWICE, Fault.CUT_WITHIN) else "not known")
    assert answer == "not known" or there is None
    assert told(lambda: use.store.delete(use.key)) == "done"
    assert use.stored() is None


def test_a_delete_that_may_come_late_is_not_called_done_by_a_repeat(faulty: Use) -> None:
    use = faulty([Fault.LATE], "DELETE", attempts=2)
    use.direct.create(use.key, OLD)
    assert told(lambda: use.store.delete(use.key)) == "not known"
    assert use.stored() is None


@pytest.mark.parametrize("fault", Fault)
def test_a_read_gives_the_bytes_or_nothing(faulty: Use, fault: Fault) -> None:
    use = faulty([fault])
    use.direct.create(use.key, OLD)
    found: list[Stored] = []
    answer = told(lambda: found.append(use.store.read(use.key)))
    assert (answer, [item.body for item in found]) in (("done", [OLD]), ("not known", []))
    assert use.store.read(use.key).body == OLD


@pytest.mark.parametrize("fault", Fault)
def test_a_listing_gives_all_or_fails(faulty: Use, fault: Fault) -> None:
    use = faulty([fault])
    use.direct.create(use.key, OLD)
    folder, found = use.key.removesuffix("/a"), list[str]()
    answer = told(lambda: found.extend(use.store.keys(folder)))
    assert (answer, found) in (("done", [use.key]), ("not known", []))
    assert list(use.store.keys(folder)) == [use.key]


@pytest.mark.parametrize("fault", Fault)
def test_whether_an_object_is_there_is_known_or_not_told(faulty: Use, fault: Fault) -> None:
    use = faulty([fault])
    use.direct.create(use.key, OLD)
    found: list[bool] = []
    assert (told(lambda: found.append(use.store.exists(use.key))), found) in (("done", [True]), ("not known", []))


def test_where_the_read_back_fails_too_nothing_is_known(faulty: Use) -> None:
    use = faulty([Fault.CUT_AFTER, Fault.CUT_BEFORE, Fault.CUT_BEFORE])  # a read is tried by both of its ways
    assert told(lambda: use.store.create(use.key, NEW)) == "not known"
    assert use.stored() == NEW


@pytest.mark.parametrize("fault", [Fault.CUT_AFTER, Fault.TWICE])
def test_who_was_overtaken_before_the_read_back_reads_again(faulty: Use, fault: Fault) -> None:
    """Our write did happen, and another's, read from it, has replaced it since."""

    def overtaking(request: Request) -> Fault | None:
        if request.method == "GET":
            use.direct.replace(use.key, OTHER, use.direct.read(use.key).etag)
        return fault if request.method == "PUT" else None

    use = faulty()
    use.proxy.plan = overtaking
    use.direct.create(use.key, OLD)
    etag = use.direct.read(use.key).etag
    assert told(lambda: use.store.replace(use.key, NEW, etag)) == "lost"
    assert use.stored() == OTHER


def test_a_late_replace_never_overwrites_a_newer_one(faulty: Use) -> None:
    use = faulty([Fault.LATE], "PUT")
    use.direct.create(use.key, OLD)
    etag = use.direct.read(use.key).etag
    assert told(lambda: use.store.replace(use.key, NEW, etag)) == "not known"
    assert told(lambda: use.store.replace(use.key, OTHER, etag)) == "done"
    assert use.stored() == OTHER


def test_a_late_create_never_overwrites_a_newer_one(faulty: Use) -> None:
    use = faulty([Fault.LATE], "PUT")
    assert told(lambda: use.store.create(use.key, NEW)) == "not known"
    use.direct.create(use.key, OTHER)
    assert use.stored() == OTHER


@pytest.mark.parametrize("seed", range(2))
def test_no_acknowledged_write_of_many_is_lost(faulty: Use, seed: int) -> None:
    """Writers append their nonces to one object; the model is the list itself."""
    use = faulty()
    use.proxy.plan = seeded(seed, share=0.3)
    use.direct.create(use.key, b"[]")
    acknowledged: list[str] = []
    attempted: list[str] = []
    lock = threading.Lock()

    def write(writer: int) -> None:
        for _ in range(8):
            nonce = uuid.uuid4().hex
            with lock:
                attempted.append(nonce)
            if append(use.store, use.key, nonce):
                with lock:
                    acknowledged.append(nonce)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    final = json.loads(use.stored() or b"")
    assert len(final) == len(set(final))
    assert set(acknowledged) <= set(final) <= set(attempted)
    assert acknowledged
    assert use.proxy.injected.total() >= 5


def append(store: ObjectStore, key: str, nonce: str) -> bool:
    """Whether the store said that the nonce stands in the list."""
    try:
        stored = store.read(key)
        store.replace(key, json.dumps([*json.loads(stored.body), nonce]).encode(), stored.etag)
    except (PreconditionFailed, ServiceUnavailable):
        return False
    return True
