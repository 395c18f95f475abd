"""Rows in objects of a real S3 server."""

import gzip
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from benchmarks.fixtures.s3_server import S3Server
from ptpipeline.data import s3
from ptpipeline.data.snapshot import take_snapshot
from ptpipeline.data.sources import describe_key, read_rows, source_key
from ptpipeline.data.table import Wanted
from ptpipeline.errors import DataError, ServiceUnavailable, SettingsError
from ptpipeline.storage import FolderStore
from ptpipeline.storage.s3 import make_client
from ptpipeline.task.task import Task
from tests.data.declared import declared
from tests.http_server import Quiet, serve
from tests.tiny import sentences

pytestmark = pytest.mark.servers
HEAD = "text,label\n"


class Bucket:
    """A folder of its own in the shared bucket, and tasks over what is put there."""

    def __init__(self, server: S3Server, bucket: str, folder: Path) -> None:
        self.server, self.bucket, self.home = server, bucket, folder / "home"
        self.prefix = f"rows {uuid.uuid4().hex}"  # a key with a blank
        self.client: Any = boto3.client("s3", endpoint_url=server.endpoint)

    def put(self, name: str, body: str | bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=body)

    def task(self, name: str = "", **s3: Any) -> Task:
        url = f"s3://{self.bucket}/{self.prefix}/{name}"
        own = {"endpoint": self.server.endpoint, "credentials_env": ["ROWS_KEY_ID", "ROWS_SECRET"]}
        return declared(source={"path": None, "s3": {"url": url, **own, **s3}})

    def texts(self, name: str = "", **s3: Any) -> list[str | None]:
        return read_rows(self.task(name, **s3), self.home).fields["text"]


@pytest.fixture
def bucket(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("ROWS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("ROWS_SECRET", s3_server.secret_key)
    return Bucket(s3_server, s3_bucket, tmp_path)


def test_an_object_is_read(bucket: Bucket) -> None:
    bucket.put("a.csv", f"{HEAD}a,bad\n")
    assert bucket.texts("a.csv") == ["a"]
    assert list(bucket.home.iterdir()) == []


def test_the_objects_below_a_prefix_are_read_by_key(bucket: Bucket) -> None:
    for name in ("b.csv", "a/c.csv", "é.csv.gz", "_SUCCESS", "a/"):
        body = f"{HEAD}{name},bad\n".encode() if "." in name else b""
        bucket.put(name, gzip.compress(body) if name.endswith("gz") else body)
    assert bucket.texts() == ["a/c.csv", "b.csv", "é.csv.gz"]


def test_notes_beside_the_rows_are_no_rows(bucket: Bucket) -> None:
    """As Spark, Databricks, Parquet and macOS leave them."""
    for name in ("_committed_1", "_metadata", "._SUCCESS.crc", ".DS_Store", "a/.part.csv"):
        bucket.put(name, "a note")
    bucket.put("_own.csv", f"{HEAD}a,bad\n")
    assert bucket.texts() == ["a"]


def test_credentials_that_no_name_replaces_are_those_of_the_environment(bucket: Bucket) -> None:
    bucket.put("a.csv", f"{HEAD}a,bad\n")
    assert bucket.texts("a.csv", endpoint=None, credentials_env=None) == ["a"]


def test_named_credentials_replace_the_environments_whole(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-another-server")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-server")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "left-over")
    monkeypatch.setenv("AWS_PROFILE", "left-over")
    bucket.put("a.csv", f"{HEAD}a,bad\n")
    assert bucket.texts("a.csv") == ["a"]


def test_the_key_is_asked_without_reading(bucket: Bucket) -> None:
    bucket.put("a.csv", "no rows at all")
    key = source_key(bucket.task(), bucket.home)
    bucket.put("b.csv", "nor here")
    both = source_key(bucket.task(), bucket.home)
    bucket.put("a.csv", "no rows at All")
    assert len({key, both, source_key(bucket.task(), bucket.home)}) == 3
    bucket.put("a.csv", "no rows at all")
    assert source_key(bucket.task(), bucket.home) == both
    assert describe_key(bucket.task()) == "key, ETag and size of each object"
    assert not bucket.home.exists()


def test_a_snapshot_of_objects_holds_their_rows_and_no_credential(bucket: Bucket, tmp_path: Path) -> None:
    rows = [(text, {"positive": "good", "negative": "bad"}[label]) for text, label in sentences(90)]
    for part in range(3):
        bucket.put(f"{part}.csv", HEAD + "".join(f'"{text}",{label}\n' for text, label in rows[part::3]))
    snapshot = take_snapshot(bucket.task(), FolderStore(tmp_path / "store"), bucket.home)
    assert sum(info.rows for info in snapshot.splits().values()) > 60
    assert snapshot.source == ", ".join(f"s3://{bucket.bucket}/{bucket.prefix}/{part}.csv" for part in range(3))
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    assert bucket.server.secret_key.encode() not in stored


@pytest.mark.parametrize("name", ["none.csv", "none/"])
def test_what_is_not_there_is_a_data_error(bucket: Bucket, name: str) -> None:
    with pytest.raises(DataError, match=r"data\.source\.s3: s3://shared/rows .*: (there is no such object|no object)"):
        source_key(bucket.task(name), bucket.home)


@pytest.mark.parametrize("key", ["a.csv", "a/"])
def test_a_bucket_that_is_not_there_is_a_data_error(bucket: Bucket, key: str) -> None:
    with pytest.raises(DataError, match="there is no bucket no-such-bucket; correct the url"):
        source_key(bucket.task(url=f"s3://no-such-bucket/{key}"), bucket.home)


@pytest.mark.parametrize("name", ["a.csv", ""])
@pytest.mark.parametrize("variable", ["ROWS_KEY_ID", "ROWS_SECRET"])
def test_wrong_credentials_are_a_setting_and_not_shown(
    bucket: Bucket, name: str, variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("a.csv", f"{HEAD}a,bad\n")
    monkeypatch.setenv(variable, "wrong-one")
    with pytest.raises(
        SettingsError, match=r"the server refuses .*; check (the credentials in )?ROWS_KEY_ID, ROWS_SECRET"
    ) as raised:
        source_key(bucket.task(name), bucket.home)
    assert "wrong-one" not in str(raised.value) + caplog.text


def test_a_variable_that_is_not_set_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROWS_SECRET")
    with pytest.raises(SettingsError, match="the environment variable ROWS_SECRET is not set"):
        source_key(bucket.task(), bucket.home)


def test_a_server_that_does_not_answer_is_transient(bucket: Bucket) -> None:
    with pytest.raises(ServiceUnavailable, match=r"does not answer \(EndpointConnectionError\)"):
        source_key(bucket.task(endpoint="http://127.0.0.1:9"), bucket.home)


def test_what_is_no_server_of_objects_is_told(bucket: Bucket) -> None:
    class Plain(Quiet):
        def do_HEAD(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()

    with serve(Plain) as address, pytest.raises(SettingsError, match="the server does not answer as S3 does"):
        source_key(bucket.task("rows.csv", endpoint=address), bucket.home)


def test_a_page_in_the_place_of_a_list_is_told(bucket: Bucket) -> None:
    class Login(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(200, b"<html>Log in</html>")

    with serve(Login) as address, pytest.raises(SettingsError, match="the server does not answer as S3 does"):
        source_key(bucket.task(endpoint=address), bucket.home)


def test_a_key_that_the_server_refuses_is_told_with_the_url(bucket: Bucket) -> None:
    with pytest.raises(SettingsError, match=r"takes no such request \(400 400\); check the url, and the credentials"):
        source_key(bucket.task("../a.csv"), bucket.home)


def test_a_server_that_redirects_is_told(bucket: Bucket) -> None:
    class Redirecting(Quiet):
        def do_HEAD(self) -> None:  # noqa: N802
            self.send_response(301)
            self.send_header("Location", f"https://localhost{self.path}")
            self.end_headers()

    with serve(Redirecting) as address, pytest.raises(SettingsError):
        source_key(bucket.task("rows.csv", endpoint=address), bucket.home)


def test_given_credentials_never_go_to_the_environments_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "127.0.0.1" not in make_client(None, keys=("id", "secret")).meta.endpoint_url


@pytest.mark.parametrize("status", [503, 429])
def test_a_server_that_fails_is_transient(bucket: Bucket, status: int) -> None:
    class Failing(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(status, b"<Error><Code>SlowDown</Code></Error>", "application/xml")

    with serve(Failing) as address, pytest.raises(ServiceUnavailable, match=f"the server answered {status} SlowDown"):
        source_key(bucket.task(endpoint=address), bucket.home)


def test_a_prefix_has_a_bounded_number_of_objects(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_FILES", 2)
    for name in ("a.csv", "b.csv"):
        bucket.put(name, f"{HEAD}{name},bad\n")
    assert bucket.texts() == ["a.csv", "b.csv"]
    bucket.put("c.csv", f"{HEAD}c,bad\n")
    with pytest.raises(DataError, match="more than 2 objects below it; name a longer prefix"):
        bucket.texts()


def test_an_object_that_changes_while_it_is_read_is_transient(bucket: Bucket) -> None:
    for name in ("a.csv", "b.csv"):
        bucket.put(name, f"{HEAD}a,bad\n")
    reading = s3.read(bucket.task().data.sources[None], [Wanted("text", "text", True)], bucket.home)
    next(reading)
    bucket.put("b.csv", f"{HEAD}b,bad\n")
    with pytest.raises(ServiceUnavailable, match="changed while it was read; run again"):
        next(reading)


@pytest.mark.parametrize(
    ("body", "tag"),
    [(HEAD, '"always"'), (f"{HEAD}a,bad\nb,bad\n", '"always"'), (f"{HEAD}b,bad\n", '"another"')],
)
def test_an_object_of_another_size_or_tag_than_was_listed_is_transient(bucket: Bucket, body: str, tag: str) -> None:
    """A server that knows no condition, and whose tags need not follow the content."""

    class Careless(Quiet):
        def do_HEAD(self) -> None:  # noqa: N802
            self.tell(f"{HEAD}a,bad\n", '"always"')

        def do_GET(self) -> None:  # noqa: N802
            self.tell(body, tag)
            self.wfile.write(body.encode())

        def tell(self, text: str, stated: str) -> None:
            self.send_response(200)
            self.send_header("ETag", stated)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()

    with serve(Careless) as address, pytest.raises(ServiceUnavailable, match="changed while it was read; run again"):
        bucket.texts("rows.csv", endpoint=address)


def test_a_server_on_this_machine_is_asked_without_a_proxy(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("a.csv", f"{HEAD}a,bad\n")
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert bucket.texts("a.csv") == ["a"]


@pytest.mark.parametrize("key", ["..a.csv", "%2e%2e%2fb.csv", "$(x).csv", "a;b&c=d.csv", "n" * 200])
def test_a_key_never_becomes_a_path(bucket: Bucket, key: str) -> None:
    bucket.put("x", "")
    bucket.client.put_object(Bucket=bucket.bucket, Key=f"{bucket.prefix}/y{key}", Body=f"{HEAD}a,bad\n")
    assert bucket.texts() == ["a"]
    assert list(bucket.home.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": "s3://bucket"}, "s3.url"),
        ({"url": "s3://../x/a.csv"}, "s3.url"),
        ({"url": "https://host/bucket/a.csv"}, "s3.url"),
        ({"endpoint": "http://user:pass@host"}, "s3.endpoint"),
        ({"endpoint": "http://host/path"}, "s3.endpoint"),
        ({"credentials_env": None, "endpoint": "http://host"}, "an `endpoint` needs credentials of its own"),
        ({"credentials_env": ["A"]}, "s3.credentials_env"),
        ({"credentials_env": ["AWS_KEY", "B"]}, "begins with none of AWS_, PTP_, PREFECT_, MLFLOW_"),
        ({"credentials_env": ["HF_TOKEN", "B"]}, "begins with none of"),
    ],
)
def test_addresses_are_checked_before_they_are_used(settings: dict[str, Any], expected: str) -> None:
    given = {"url": "s3://bucket/a.csv", "endpoint": "http://host", "credentials_env": ["A", "B"], **settings}
    with pytest.raises(ValueError, match=expected):
        declared(source={"path": None, "s3": given})


def test_a_variable_with_a_line_end_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptpipeline.data.s3 import _read_keys
    from ptpipeline.task.source import S3Objects

    monkeypatch.setenv("PARTNER_ID", "id")
    monkeypatch.setenv("PARTNER_SECRET", "wJal\r")
    objects = S3Objects(url="s3://bucket/a.csv", credentials_env=["PARTNER_ID", "PARTNER_SECRET"])
    with pytest.raises(SettingsError, match=r"^PARTNER_SECRET: holds white space at its ends") as raised:
        _read_keys(objects)
    assert "wJal" not in str(raised.value)
