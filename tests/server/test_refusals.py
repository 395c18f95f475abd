"""What a client is told of an error: its status, when another try is worth it, and what is for the log alone."""

import logging

import pytest

from ptpipeline.errors import (
    ArtifactError,
    BaseModelError,
    ContextError,
    DataError,
    NotFound,
    Overloaded,
    PtpError,
    ServiceUnavailable,
    SettingsError,
    TimedOut,
)
from ptpipeline.server.refusals import Refusal, refuse


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
    ],
)
def test_the_kind_of_a_refusal_is_that_of_openais_api(status: int, kind: str) -> None:
    assert Refusal(status, "why", "code").to_json()["error"]["type"] == kind


@pytest.mark.parametrize(
    ("error", "status", "code", "wait"),
    [
        (Overloaded("why", 7.2), 429, "overloaded", "8"),
        (NotFound("why"), 404, "model_not_found", None),
        (ContextError("why"), 400, "context_length_exceeded", None),
        (DataError("why"), 400, "invalid_request", None),
    ],
)
def test_an_error_of_the_request_is_told(error: PtpError, status: int, code: str, wait: str | None) -> None:
    refusal = refuse(error, "req-1")
    assert (refusal.status_code, refusal.code, refusal.detail) == (status, code, "why")
    assert (refusal.headers or {}).get("Retry-After") == wait


@pytest.mark.parametrize(
    ("error", "status", "code", "wait"),
    [
        (ServiceUnavailable("the store at s3://x"), 503, "unavailable", "5"),
        (TimedOut("vLLM at s3://x"), 504, "timeout", None),
        (BaseModelError("vLLM at s3://x refuses"), 500, "server_error", None),
        (ArtifactError("s3://x is altered"), 502, "artifact_refused", None),
        (SettingsError("the key of s3://x"), 500, "server_error", None),
    ],
)
def test_an_error_of_the_server_is_for_its_log_alone(
    error: PtpError, status: int, code: str, wait: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        refusal = refuse(error, "req-1")
    assert (refusal.status_code, refusal.code) == (status, code)
    assert (refusal.headers or {}).get("Retry-After") == wait
    assert "s3://x" not in str(refusal.to_json())
    assert f"req-1: {error}" in caplog.text


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.1, "1"), (1.0, "1"), (1.2, "2")])
def test_nobody_is_told_to_try_again_too_early(seconds: float, header: str) -> None:
    assert (Refusal(429, "full", "overloaded", seconds).headers or {})["Retry-After"] == header
