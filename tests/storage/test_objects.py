"""The object store's contract, over a folder and over a real S3 server."""

import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults import FaultProxy
from benchmarks.fixtures.s3_server import S3Server, free_ports
from ptpipeline.errors import NotFound, PreconditionFailed, ServiceUnavailable, SettingsError
from ptpipeline.storage import FolderStore, ObjectStore, S3Store, check_key, open_store
from tests.http_server import Quiet, serve
from tests.storage import small_s3

WRITERS = 6


def test_a_created_object_reads_back(store: ObjectStore) -> None:
    store.create("a/b.json", b"\x00one")
    assert store.read("a/b.json").body == b"\x00one"
    assert store.exists("a/b.json")


def test_a_missing_object_is_not_found(store: ObjectStore) -> None:
    assert not store.exists("a/b")
    with pytest.raises(NotFound, match="a/b"):
        store.read("a/b")


def test_a_folder_is_no_object(store: ObjectStore) -> None:
    store.create("a/b", b"one")
    assert not store.exists("a")
    with pytest.raises(NotFound):
        store.read("a")


def test_creating_the_same_bytes_again_is_silent(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.create("a", b"one")
    assert store.read("a").body == b"one"


def test_creating_other_bytes_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    with pytest.raises(PreconditionFailed, match="a"):
        store.create("a", b"two")
    assert store.read("a").body == b"one"


def test_replace_moves_the_object_that_was_read(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.replace("a", b"two", store.read("a").etag)
    assert store.read("a").body == b"two"


def test_replace_with_an_old_tag_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    old = store.read("a").etag
    store.replace("a", b"two", old)
    with pytest.raises(PreconditionFailed):
        store.replace("a", b"three", old)
    assert store.read("a").body == b"two"


def test_replace_of_a_missing_object_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    with pytest.raises(PreconditionFailed, match="b changed"):
        store.replace("b", b"two", store.read("a").etag)
    assert not store.exists("b")


def test_replace_of_a_deleted_object_is_refused(store: ObjectStore) -> None:
    store.create("a", b"one")
    etag = store.read("a").etag
    store.delete("a")
    with pytest.raises(PreconditionFailed):
        store.replace("a", b"two", etag)
    assert not store.exists("a")


def test_one_of_many_creators_wins(store: ObjectStore) -> None:
    outcomes = _race(lambda number: store.create("a", b"body %d" % number))
    assert outcomes.count("won") == 1
    assert outcomes.count("lost") == WRITERS - 1


def test_one_of_many_replacers_wins(store: ObjectStore) -> None:
    store.create("a", b"one")
    etag = store.read("a").etag
    outcomes = _race(lambda number: store.replace("a", b"body %d" % number, etag))
    assert outcomes.count("won") == 1
    assert store.read("a").body == b"body %d" % outcomes.index("won")


def test_a_deleted_object_is_gone(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_keys_lists_a_folder_in_order(store: ObjectStore) -> None:
    for key in ("p/b/2", "p/a", "p/b/1", "pa/x", "q"):
        store.create(key, b"")
    assert list(store.keys("p")) == ["p/a", "p/b/1", "p/b/2"]
    assert list(store.keys("none")) == []


def test_files_beside_folders_of_like_names_are_listed_once(store: ObjectStore) -> None:
    names = ["p/a-b", "p/a.b", "p/a/b", "p/a0", "p/aB/c", "p/a_", "p/b"]
    for key in names:
        store.create(key, b"")
    assert (
        sorted(store.keys("p")) == names
    )  # where a folder stands among its neighbours differs: S3 compares the slash, SeaweedFS does not


def test_a_listing_tells_size_and_age(store: ObjectStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # servers tell whole seconds
    store.create("p/a", b"four")
    (item,) = store.list_objects("p")
    assert (item.key, item.bytes) == ("p/a", 4)
    assert before <= item.modified <= datetime.now(UTC) + timedelta(seconds=2)
    assert item.modified.utcoffset() == timedelta(0)


def test_a_listing_goes_on_while_its_objects_are_deleted(store: ObjectStore) -> None:
    for number in range(3):
        store.create(f"p/{number}", b"")
    for key in store.keys("p"):
        store.delete(key)
    assert list(store.keys("p")) == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "../a", "a/../b", ".hidden", "a//b", "a b", "a\n", "ä"])
def test_an_unsafe_key_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(SettingsError, match="object key"):
        store.create(key, b"")


@given(st.text(max_size=20))
def test_a_checked_key_stays_below_its_root(key: str) -> None:
    try:
        path = (Path("/root") / check_key(key)).resolve()
    except SettingsError:
        return
    assert path.is_relative_to("/root")


@pytest.mark.servers
def test_a_prefix_separates_two_stores(s3_store: S3Store) -> None:
    one, two = (S3Store(s3_store.bucket, prefix, s3_store.endpoint) for prefix in ("one", "two"))
    one.create("a", b"one")
    assert not two.exists("a")
    assert list(one.keys("a")) == []
    assert s3_store.read("one/a").body == b"one"


@pytest.mark.servers
def test_many_keys_are_listed_page_by_page(s3_store: S3Store) -> None:
    names = [f"p/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: s3_store.create(name, b""), names))
    assert list(s3_store.keys("p")) == names
    with FaultProxy(str(s3_store.endpoint)) as proxy:
        first = next(iter(S3Store(s3_store.bucket, endpoint=proxy.endpoint).keys("p")))
        assert (first, len(proxy.requests)) == (names[0], 1)


@pytest.mark.servers
def test_a_missing_bucket_is_named(s3_server: S3Server) -> None:
    with pytest.raises(SettingsError, match="no-such-bucket"):
        S3Store("no-such-bucket", endpoint=s3_server.endpoint).create("a", b"")


@pytest.mark.servers
def test_wrong_credentials_are_named(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of the first client
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY") as raised:
        S3Store(s3_store.bucket, endpoint=s3_store.endpoint).read("a")
    assert "wrong" not in str(raised.value)


def test_missing_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(tmp_path, monkeypatch)
    with pytest.raises(SettingsError, match="needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        S3Store("bucket", endpoint="http://127.0.0.1:1").read("a")


def test_an_unknown_profile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SettingsError, match=r"AWS_.*nobody"):
        S3Store("bucket", endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ["wJal\r", "wJal\n", " wJal", "wJal\u00e9"])
def test_a_credential_that_no_request_can_carry_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """As a file of variables with the line ends of Windows leaves it."""
    for each in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(each, value if each == name else "plain")
    with pytest.raises(SettingsError, match=f"^{name}: holds white space at its ends") as raised:
        S3Store("bucket", endpoint="http://127.0.0.1:1").read("a")
    assert "wJal" not in str(raised.value)


def test_a_region_that_is_none_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu west\n1")
    with pytest.raises(SettingsError, match=r"the AWS_.* settings are wrong: .*region_name"):
        S3Store("bucket", endpoint="http://127.0.0.1:1")


def test_an_endpoint_that_is_no_address_is_named() -> None:
    with pytest.raises(SettingsError, match=r"PTP_S3_ENDPOINT: .*localhost"):
        S3Store("bucket", endpoint="localhost:8333")


def test_a_bucket_that_is_no_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="PTP_STORE: s3://my bucket"):
        S3Store("my bucket", endpoint="http://127.0.0.1:1").read("a")


def test_a_body_that_breaks_off_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with breaking_server() as endpoint, pytest.raises(ServiceUnavailable, match="does not answer"):
        S3Store("bucket", endpoint=endpoint).read("a")


@pytest.mark.servers
def test_an_absent_server_is_unavailable(s3_server: S3Server) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServiceUnavailable, match=str(port)):
        S3Store("bucket", endpoint=f"http://127.0.0.1:{port}").read("a")


@pytest.mark.servers
def test_the_address_opens_the_right_store(s3_server: S3Server, tmp_path: Path) -> None:
    assert isinstance(open_store(f"file://{tmp_path}"), FolderStore)
    opened = open_store("s3://bucket/some/prefix", s3_server.endpoint)
    assert opened.url == "s3://bucket/some/prefix"


@pytest.mark.parametrize(
    "url", ["", "relative/folder", "http://host/bucket", "s3://", "file://", "file://relative/folder"]
)
def test_an_unknown_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="PTP_STORE"):
        open_store(url)


@pytest.mark.parametrize("name", ["plain", "with space", "50%25 off", "c#", "what?"])
def test_a_folders_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    open_store(f"file://{tmp_path}/{name}").create("a", b"one")
    assert (tmp_path / name / "a").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("manner", "refused"),
    [
        (small_s3.MISSING_IS_404, "changed since"),
        (small_s3.CONFLICTS, "another writer"),
        (small_s3.NOT_IMPLEMENTED, "lacks what the registry needs"),
    ],
)
def test_other_servers_refusals_mean_the_same(manner: str, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    expected = SettingsError if manner == small_s3.NOT_IMPLEMENTED else PreconditionFailed
    with small_s3.small_s3(manner) as server:
        store = S3Store("bucket", endpoint=server.endpoint)
        with pytest.raises(expected):
            store.replace("a", b"two", small_s3.etag(b"one"))
        assert not store.exists("a")
        if manner != small_s3.MISSING_IS_404:
            with pytest.raises(expected, match=refused):
                store.create("a", b"two")


LOGINS = ["http://me:pa55word@host:1", "http://me:pa55@wo/rd@host", "me:pa55word@host:8333", "http://me:pa55word@[bad"]


@pytest.mark.parametrize("endpoint", LOGINS)
def test_an_endpoint_with_a_password_is_refused_without_it(endpoint: str) -> None:
    with pytest.raises(SettingsError, match=r"PTP_S3_ENDPOINT: .*AWS_ACCESS_KEY_ID") as raised:
        open_store("s3://bucket", endpoint)
    assert "pa55" not in shown(raised)


def test_boto3s_own_endpoint_with_a_password_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", LOGINS[0])
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL_S3") as raised:
        open_store("s3://bucket")
    assert "pa55" not in shown(raised)


@pytest.mark.parametrize(
    "url", ["s3://me:pa55word@bucket/prefix", "s3://me:pa55/word@bucket", "http://me:pa55word@host/bucket"]
)
def test_a_store_with_a_password_is_refused_without_it(url: str) -> None:
    with pytest.raises(SettingsError, match=r"PTP_STORE: .*AWS_ACCESS_KEY_ID") as raised:
        open_store(url)
    assert "pa55" not in shown(raised)


def shown(raised: pytest.ExceptionInfo[BaseException]) -> str:
    """All that a log would show of the error, its causes included."""
    return "".join(
        line for line in traceback.format_exception(raised.value) if not line.lstrip().startswith("open_store(")
    )


def without_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of the first client
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@contextmanager
def breaking_server() -> Iterator[str]:
    """An HTTP server that promises a hundred bytes and closes after four."""

    class Breaking(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.send_header("ETag", '"tag"')
            self.end_headers()
            self.wfile.write(b"four")

    with serve(Breaking) as url:
        yield url


def _race(write: Callable[[int], None]) -> list[str]:
    """What became of each of WRITERS concurrent calls, by number."""

    def attempt(number: int) -> str:
        try:
            write(number)
        except PreconditionFailed:
            return "lost"
        return "won"

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(attempt, range(WRITERS)))


FORKS = """
import multiprocessing, sys
from ptpipeline.storage import S3Store

def look(store, index):
    assert all(store.read(f"k/{index}").body == bytes([index]) * 100 for _ in range(50))

store = S3Store(sys.argv[1], endpoint=sys.argv[2])
for index in range(4):
    store.create(f"k/{index}", bytes([index]) * 100)
    look(store, index)
children = [multiprocessing.get_context("fork").Process(target=look, args=(store, index)) for index in range(4)]
for child in children:
    child.start()
for child in children:
    child.join(60)
sys.exit(any(child.exitcode for child in children))
"""


@pytest.mark.servers
def test_forked_processes_read_their_own_answers(s3_store: S3Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, s3_store.bucket, str(s3_store.endpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
