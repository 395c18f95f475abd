"""What an S3 server refuses is told by the same cause wherever it is met: in the store, in a source, at a bucket."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.server.buckets import Bucket, make_bucket
from ptpipeline.data.sources import source_key
from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError
from ptpipeline.storage import s3_answers
from ptpipeline.storage.s3 import RequestLimits, S3Store, make_client
from tests.data.declared import declared
from tests.http_server import Quiet, serve

KEYS = ["ROWS_KEY_ID", "ROWS_SECRET"]
LIMITS = RequestLimits(seconds=5.0, attempts=1)
CAUSES = [
    (403, "AccessDenied", SettingsError, "AccessDenied"),
    (
        403,
        "InvalidAccessKeyId",
        SettingsError,
        r"\(403 InvalidAccessKeyId\); check (AWS_ACCESS|ROWS)_KEY_ID",
    ),
    (400, "ExpiredToken", SettingsError, r"\(400 ExpiredToken\); check (AWS_ACCESS|ROWS)_KEY_ID"),
    (403, "RequestTimeTooSkewed", SettingsError, r"the server's \(RequestTimeTooSkewed\); correct the clock"),
    (301, "PermanentRedirect", SettingsError, "AWS_DEFAULT_REGION|answer as S3 does"),
    (400, "AuthorizationHeaderMalformed", SettingsError, "is in another region .*; set AWS_DEFAULT_REGION to it"),
    (503, "SlowDown", ServiceUnavailable, "answered 503 SlowDown to .*; try again later"),
    (429, "SlowDown", ServiceUnavailable, "answered 429 SlowDown to .*; try again later"),
    (501, "NotImplemented", SettingsError, r"cannot .* \(501 NotImplemented\)|cannot .* \(NotImplemented\)"),
]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", *KEYS):
        monkeypatch.setenv(name, "any")


def refusing(status: int, code: str) -> type[Quiet]:
    """A server that answers everything so."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    def refuse(self: Quiet) -> None:
        self.answer(status, b"" if self.command == "HEAD" else body, "application/xml")

    return type("Refusing", (Quiet,), {f"do_{verb}": refuse for verb in ("GET", "PUT", "HEAD")})


def read_store(address: str, _folder: Path) -> None:
    list(S3Store("bucket", endpoint=address, limits=LIMITS).keys("a"))


def read_source(address: str, folder: Path) -> None:
    rows = {"url": "s3://bucket/rows/", "endpoint": address, "credentials_env": KEYS}  # listed: a HEAD says no cause
    source_key(declared(source={"s3": rows, "path": None}), folder)


def ask_for_bucket(address: str, _folder: Path) -> None:
    make_bucket(make_client(address, LIMITS), Bucket("bucket", address))


@pytest.mark.parametrize(("status", "code", "error", "sentence"), CAUSES)
@pytest.mark.parametrize("ask", [read_store, read_source, ask_for_bucket])
def test_a_refusal_is_told_by_its_cause(
    status: int, code: str, error: type[PtpError], sentence: str, ask: Callable[[str, Path], None], tmp_path: Path
) -> None:
    with serve(refusing(status, code)) as address, pytest.raises(error, match=sentence):
        ask(address, tmp_path)


@pytest.mark.parametrize("ask", [read_store, read_source, ask_for_bucket])
def test_a_defect_of_our_own_is_not_told_as_the_server_s(
    ask: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_answers, "MAX_ANSWER", "no number")
    with serve(refusing(200, "any")) as address, pytest.raises(TypeError):
        ask(address, tmp_path)


@pytest.mark.parametrize("ask", [read_store, read_source, ask_for_bucket])
def test_an_answer_that_is_none_of_s3_is_told_as_the_server_s(
    ask: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_answers, "MAX_ANSWER", 10)
    with serve(refusing(200, "any")) as address, pytest.raises(SettingsError, match="does not answer as S3 does"):
        ask(address, tmp_path)
