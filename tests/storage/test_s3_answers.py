"""What a server that is no honest S3 server lists and tells: it ends within bounds, as one sentence."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ptpipeline.data import s3
from ptpipeline.errors import ServiceUnavailable, SettingsError
from ptpipeline.storage import S3Store, bounds, s3_answers
from ptpipeline.storage.s3 import RequestLimits, make_client
from tests.data.declared import declared
from tests.http_server import Quiet, serve

PAGE = "<ListBucketResult><Name>b</Name>{}<IsTruncated>{}</IsTruncated>{}</ListBucketResult>"
OBJECT = "<Contents><Key>p/a.csv</Key><LastModified>{}</LastModified><ETag>e</ETag><Size>{}</Size></Contents>"
DATE, STRANGE = "2026-01-01T00:00:00Z", "does not answer as S3 does"

Tell = Callable[[int], str]


def never_ending(number: int) -> str:
    """A page that holds nothing, and names another one each time."""
    return PAGE.format("", "true", f"<NextContinuationToken>{number}</NextContinuationToken>")


def going_round(_: int) -> str:
    """A page that holds something, and names itself."""
    return PAGE.format(OBJECT.format(DATE, 1), "true", "<NextContinuationToken>t</NextContinuationToken>")


ANSWERS: dict[str, Tell] = {
    "pages that hold nothing": never_ending,
    "a page that names itself": going_round,
    "another page that has no name": lambda _: PAGE.format("", "true", ""),
    "a size that is no number": lambda _: PAGE.format(OBJECT.format(DATE, "x"), "false", ""),
    "an object without a size": lambda _: PAGE.format("<Contents><Key>p/a</Key></Contents>", "false", ""),
    "too many bytes": lambda _: PAGE.format(" " * s3_answers.MAX_ANSWER, "false", ""),
    "too many tags": lambda _: "<a>" * (s3_answers.MAX_TAGS + 1),
}


def listing(tell: Tell, pause: float = 0.0) -> type[Quiet]:
    """A server that answers every request by the page with its number, byte by byte if there is a pause."""
    numbers = iter(range(10**6))

    class Listing(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            body = tell(next(numbers)).encode()
            if not pause:
                return self.answer(200, body, "application/xml")
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(pause)
            return None

    return Listing


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ROWS_KEY_ID", "ROWS_SECRET"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setattr(s3_answers, "MAX_EMPTY", 5)


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_list_of_a_store_ends_in_a_sentence(kind: str) -> None:
    with serve(listing(ANSWERS[kind])) as url, pytest.raises(SettingsError, match=STRANGE):
        list(S3Store("bucket", endpoint=url).keys("tasks"))


@pytest.mark.parametrize("kind", [*ANSWERS, "a size below nothing", "a size beyond all"])
def test_the_list_of_a_source_ends_in_a_sentence(kind: str) -> None:
    sizes = {"a size below nothing": -1, "a size beyond all": 10**30}
    tell = ANSWERS.get(kind) or (lambda _: PAGE.format(OBJECT.format(DATE, sizes[kind]), "false", ""))
    keys = ["ROWS_KEY_ID", "ROWS_SECRET"]
    with serve(listing(tell)) as url:
        place = {"url": "s3://bucket/p/", "endpoint": url, "credentials_env": keys}
        source = declared(source={"path": None, "s3": place}).data.sources[None]
        with pytest.raises(SettingsError, match=STRANGE):
            s3.identify(source, Path())


def test_a_list_that_trickles_in_ends_by_the_clock() -> None:
    limits = RequestLimits(0.2, 1)
    with serve(listing(lambda _: " " * 1000, 0.02)) as url, pytest.raises(ServiceUnavailable, match="does not answer"):
        list(S3Store("bucket", endpoint=url, limits=limits).keys("tasks"))


def trickling(pause: float, count: int) -> type[Quiet]:
    """A server that gives one object, of so many bytes, byte by byte."""

    class Trickling(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", str(count))
            self.end_headers()
            with suppress(OSError):
                for _ in range(count):
                    self.wfile.write(b"x")
                    time.sleep(pause)

    return Trickling


def test_an_object_that_trickles_in_ends_by_the_clock() -> None:
    began = time.monotonic()
    with serve(trickling(0.05, 100)) as url, pytest.raises(ServiceUnavailable, match="does not answer"):
        S3Store("bucket", endpoint=url, limits=RequestLimits(0.3, 1)).read("tasks/t.json")
    assert time.monotonic() - began < 2


def test_a_large_object_has_longer_than_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SLOWEST", 10)  # bytes per second
    with serve(trickling(0.05, 10)) as url:
        stored = S3Store("bucket", endpoint=url, limits=RequestLimits(0.3, 1)).read("tasks/t.json")
    assert stored.body == b"x" * 10


def breaking(status: int, waits: bool, times: int) -> type[Quiet]:
    """A server that begins an answer, and hangs up or says no more; so many times, and then it answers."""
    asked: list[str] = []

    class Breaking(Quiet):
        def do_PUT(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if len(asked) > times:
                return self.answer(200, b"")
            self.send_response(status)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"<Error>")
            self.wfile.flush()
            time.sleep(0.5 if waits else 0)
            self.close_connection = True
            return None

        do_GET = do_PUT  # noqa: N815

    return Breaking


@pytest.mark.parametrize("waits", [False, True], ids=["hangs up", "says no more"])
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_that_breaks_off_is_asked_for_again(status: int, waits: bool) -> None:
    with serve(breaking(status, waits, 2)) as url:
        client = make_client(url, RequestLimits(0.2, 3))
        client.put_object(Bucket="bucket", Key="tasks/t.json", Body=b"x")


@pytest.mark.parametrize("waits", [False, True], ids=["hangs up", "says no more"])
def test_answers_that_all_break_off_are_those_of_a_server_that_is_away(waits: bool) -> None:
    with serve(breaking(500, waits, 99)) as url, pytest.raises(ServiceUnavailable, match="does not answer"):
        S3Store("bucket", endpoint=url, limits=RequestLimits(0.2, 2)).create("tasks/t.json", b"x")


def test_some_pages_may_hold_nothing() -> None:
    """As those of a bucket with many objects that were deleted."""
    last = PAGE.format(OBJECT.format(DATE, 1), "false", "")
    with serve(listing(lambda number: never_ending(number) if number < 4 else last)) as url:
        assert list(S3Store("bucket", endpoint=url).keys("tasks")) == ["p/a.csv"]


def test_an_error_is_read_within_the_bound() -> None:
    class Failing(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(400, b"x" * (s3_answers.MAX_ANSWER + 1))

    with serve(Failing) as url, pytest.raises(s3_answers.Strange):
        make_client(url).get_object(Bucket="b", Key="k")
