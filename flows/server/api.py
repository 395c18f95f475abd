"""Calls to Prefect's REST API by plain httpx: imports no Prefect, raises errors of ptpipeline."""

import functools
import os
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import stamina

from ptpipeline.errors import NotFound, ServiceUnavailable, SettingsError
from ptpipeline.foreign import parse_json
from ptpipeline.settings import explain_environment, is_loopback

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")  # the types of state in which a flow run has ended


SECONDS = 30.0  # that an answer may take
REPEATABLE = ("PATCH", "DELETE")  # what they change is the same if they arrive twice; who reads waits no longer


class _Busy(ServiceUnavailable):
    """503, or no answer: a writer held Prefect's SQLite file for too long. Prefect's own client repeats both too."""


@stamina.retry(on=_Busy, attempts=6, timeout=2.5 * SECONDS, wait_initial=0.3)
def call(verb: str, url: str, body: Any = None, credential: str | None = None) -> Any:
    """Send a request and return the answer's JSON, None if the answer is empty.

    Raises ServiceUnavailable if the server does not answer or answers 5xx, NotFound for 404, SettingsError if it
    refuses the request. `credential` is `user:password`, by default that of PREFECT_API_AUTH_STRING, as for Prefect's
    own client.
    """
    user, _, password = (credential or os.environ.get("PREFECT_API_AUTH_STRING", "")).partition(":")
    try:
        answer = _client(is_loopback(url)).request(verb, url, json=body, auth=(user, password) if user else None)
    except httpx.HTTPError as error:
        late = isinstance(error, httpx.ReadTimeout) and verb in REPEATABLE
        raise (_Busy if late else ServiceUnavailable)(
            f"Prefect at {url.partition('/api')[0]} does not answer ({type(error).__name__}); is it up? `ptp status`"
        ) from None
    if answer.status_code == 503:
        raise _Busy(f"Prefect at {url.partition('/api')[0]} is busy: it answered 503 to {verb} {url}")
    if answer.status_code >= 500:
        raise ServiceUnavailable(f"Prefect answered {answer.status_code} to {verb} {url}; its log says why")
    if answer.status_code in (401, 403):
        raise SettingsError(
            f"Prefect at {url.partition('/api')[0]} refuses the credentials ({answer.status_code}): set "
            "PREFECT_API_AUTH_STRING to its `user:password`; the local stack's own are in stack.env of PTP_HOME"
        )
    if answer.status_code == 404:
        raise NotFound(f"Prefect at {url.partition('/api/')[0]} has no {url.partition('/api/')[2]}")
    if answer.is_error:
        raise SettingsError(f"Prefect refuses {verb} {url.partition('/api/')[2]}: {_detail(answer)}")
    return _parse(answer, url) if answer.content else None


def read_date(api: str) -> datetime | None:
    """Return the time by the server's clock, to the second; None if its answer does not tell it.

    Raises ServiceUnavailable if the server does not answer.
    """
    try:
        answer = _client(is_loopback(api)).get(f"{api}/health")  # whoever refuses this tells the time all the same
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"Prefect at {api.partition('/api')[0]} does not answer ({type(error).__name__})"
        ) from None
    try:
        return parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return None


def _parse(answer: httpx.Response, url: str) -> Any:
    return parse_json(
        answer.content,
        f"PTP_PREFECT: {url} answers something other than JSON",
        "set it to the API's address, such as http://127.0.0.1:4200/api",
        SettingsError,
    )


@functools.cache
def _client(loopback: bool) -> httpx.Client:
    """Return the one client of this process: making one takes 30 ms of processor time, and training needs it.

    This machine itself is reached directly, whatever proxies the environment names. Raises SettingsError if it names
    one, or certificates, that httpx cannot use.
    """
    try:
        return httpx.Client(timeout=SECONDS, trust_env=not loopback)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise explain_environment(error, "Prefect") from None


def _detail(answer: httpx.Response) -> str:
    try:
        return str(_parse(answer, "it")["detail"])
    except (SettingsError, KeyError, TypeError):
        return f"{answer.status_code} {answer.text[:200]}"
