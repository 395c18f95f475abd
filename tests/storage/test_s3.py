"""What only a store on an S3 server does: credentials, pages, prefixes, other servers' answers, forked processes."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import pytest

from benchmarks.faults import FaultProxy
from benchmarks.fixtures.s3_server import S3Server, free_ports
from ptpipeline.errors import ArtifactError, PreconditionFailed, ServiceUnavailable, SettingsError
from ptpipeline.storage import S3Store, Stored
from ptpipeline.storage.s3 import KeyPair, make_client
from ptpipeline.storage.signed_get import SignedGet
from tests.http_server import Quiet, serve
from tests.storage import small_s3


@pytest.mark.servers
def test_the_bytes_of_an_unchanged_object_are_not_sent(s3_store: S3Store) -> None:
    s3_store.create("a", b"one")
    etag = s3_store.read("a").etag
    signed = SignedGet(f"{s3_store.endpoint}/{s3_store.bucket}", "us-east-1", 5.0)
    assert signed.read("a", 100, etag) == Stored(b"", etag)
    assert signed.read("a", 100, '"another"') == Stored(b"one", etag)


@pytest.mark.servers
@pytest.mark.parametrize("client", ["ours", "boto3's"])
def test_both_clients_tell_whether_an_object_changed(
    s3_store: S3Store, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client == "boto3's":  # as over TLS
        monkeypatch.setattr(SignedGet, "fits", staticmethod(lambda endpoint: False))
    with FaultProxy(str(s3_store.endpoint)) as proxy:
        store = S3Store(s3_store.bucket, endpoint=proxy.endpoint)
        store.create("a", b"one")
        etag = store.read("a").etag
        proxy.requests.clear()
        assert [store.read_changed("a", etag), store.read_changed("a", '"x"')] == [None, Stored(b"one", etag)]
        assert len(proxy.requests) == 2


def test_a_server_that_sends_an_unchanged_object_anyway_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with small_s3.small_s3(small_s3.IGNORES_IF_NONE_MATCH) as server:  # this one ignores it of a GET too
        store = S3Store("bucket", endpoint=server.endpoint)
        store.create("a", b"one")
        assert store.read_changed("a", store.read("a").etag) is None


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


@pytest.mark.parametrize(("host", "proxies"), [("127.0.0.1", {}), ("s3.example", None)])
def test_a_proxy_stands_before_other_machines_alone(
    monkeypatch: pytest.MonkeyPatch, host: str, proxies: dict[str, str] | None
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    config = make_client(f"http://{host}:8333", keys=KeyPair("id", "secret")).meta.config
    assert config.proxies == proxies  # None: botocore asks the environment


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


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "InvalidRequest"), (400, "InvalidArgument"), (403, "InvalidObjectState")],  # AWS, SeaweedFS; an archive
)
def test_an_object_that_the_server_withholds_is_none_of_ours(
    status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    with small_s3.small_s3() as server:
        server.objects["/bucket/below/a"] = b"one"
        server.withheld["/bucket/below/a"] = (status, code)
        store = S3Store("bucket", "below", endpoint=server.endpoint)
        told = rf"s3://bucket/below/a: the store does not give it out \({status} {code}\): .* or remove it"
        asked = [store.read, lambda key: store.read_changed(key, '"tag"'), lambda key: store.create(key, b"two")]
        for ask in asked if status == 403 else [*asked, store.exists]:  # an archive answers a HEAD
            with pytest.raises(ArtifactError, match=told):
                ask("a")


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


def test_a_listing_goes_over_all_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    keys = [f"prompts/{task}/{name}.json" for task in "abcde" for name in "xy"]
    with small_s3.small_s3() as server:
        store = S3Store("bucket", endpoint=server.endpoint)
        for key in keys:
            store.create(key, b"{}")
        assert list(store.keys("prompts")) == keys
        assert list(store.folders("prompts")) == [f"prompts/{task}" for task in "abcde"]
