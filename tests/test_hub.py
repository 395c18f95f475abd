"""What the errors of the hub's client mean: ours keep their kind, a login is a setting, a fault of the hub passes."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from ptpipeline.errors import BaseModelError, DataError, PtpError, ServiceUnavailable, SettingsError
from ptpipeline.hub import asking_hub, open_hub


def answered(kind: type[Exception], status: int) -> Exception:
    """The client's error about an answer of that status."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("no", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (answered(errors.HfHubHTTPError, 401), SettingsError, r"lab/x: the hub refuses the login \(401\)"),
        (answered(errors.HfHubHTTPError, 403), SettingsError, r"lab/x: the hub refuses the login \(403\)"),
        (answered(errors.HfHubHTTPError, 429), ServiceUnavailable, "lab/x: the hub answered 429; run again later"),
        (answered(errors.HfHubHTTPError, 500), ServiceUnavailable, "lab/x: the hub answered 500; run again later"),
        (answered(errors.GatedRepoError, 403), SettingsError, "lab/x: it is gated"),
        (answered(errors.RepositoryNotFoundError, 404), DataError, "lab/x: the hub has no such repository"),
        (answered(errors.RevisionNotFoundError, 404), DataError, "lab/x: the repository has no such commit"),
        (answered(errors.RemoteEntryNotFoundError, 404), DataError, "lab/x: the repository lacks a file"),
        (errors.HFValidationError("no"), DataError, "lab/x: no repository of the hub can be called so"),
        (TimeoutError("no"), ServiceUnavailable, r"lab/x: the hub does not answer \(TimeoutError\)"),
        (BaseModelError("ours"), BaseModelError, "^ours$"),
    ],
)
def test_an_error_of_the_client_is_ours(raised: Exception, kind: type[PtpError], told: str) -> None:
    with pytest.raises(kind, match=told) as caught, asking_hub("lab/x", DataError):
        raise raised
    assert type(caught.value) is kind


@pytest.mark.parametrize(("endpoint", "asked"), [("http://hub.intern", "http://hub.intern"), ("", None), (None, None)])
def test_the_hub_is_the_one_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, asked: str | None
) -> None:
    if endpoint is None:
        monkeypatch.delenv("HF_ENDPOINT", raising=False)
    else:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert open_hub().endpoint == (asked or "https://huggingface.co")
