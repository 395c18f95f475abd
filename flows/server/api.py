"""Calls to Prefect's REST API by plain httpx: imports no Prefect, raises errors of ptpipeline."""

import functools
import os
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import stamina

from ptpipeline.errors import NotFound, ServiceUnavailable, SettingsError
from ptpipeline.foreign import UNPACKED, escape_controls, parse_json, shorten
from ptpipeline.settings import explain_environment, is_loopback

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")  # the types of state in which a flow run has ended


SECONDS = 30.0  # that an answer may take
MAX_ANSWER = 64 * 2**20  # bytes; 200 runs or deployments of a thousand tasks have some
_FIX = "set it to the API's address, such as http://127.0.0.1:4200/api"
_PLAIN = ("/health", "/count")  # they are answered by a truth or a number
MAX_DETAIL = 500  # characters of the server's words that a sentence quotes
REPEATABLE = ("PATCH", "DELETE")  # what they change is the same if they arrive twice; who reads waits no longer


class _Busy(ServiceUnavailable):
    """503, or no answer: a writer held Prefect's SQLite file for too long. Prefect's own client repeats both too."""


class _Object(dict[str, Any]):
    """An object of an answer; to ask for a field that it lacks raises SettingsError: the server is not Prefect's."""

    def __init__(self, fields: dict[str, Any], url: str) -> None:
        super().__init__(fields)
        self._url = url

    def __missing__(self, field: str) -> Any:
        raise _strange(self._url, f"an answer without `{field}`")


@stamina.retry(on=_Busy, attempts=6, timeout=2.5 * SECONDS, wait_initial=0.3)
def call(verb: str, url: str, body: Any = None, credential: str | None = None) -> Any:
    """Send a request and return the answer's JSON: a list of objects for a search, else an object. What changes
    something may be answered by nothing, or null: None.

    Raises ServiceUnavailable if the server does not answer or answers 5xx, NotFound for 404, SettingsError if it
    refuses the request or is not Prefect's. `credential` is `user:password`, by default that of
    PREFECT_API_AUTH_STRING, as for Prefect's own client; it follows no redirect.
    """
    user, _, password = (credential or os.environ.get("PREFECT_API_AUTH_STRING", "")).partition(":")
    client = _client(is_loopback(url))
    try:
        with client.stream(verb, url, json=body, auth=(user, password) if user else None) as answer:
            content = _read(answer, url)
    except httpx.HTTPError as error:
        late = isinstance(error, httpx.ReadTimeout) and verb in REPEATABLE
        raise (_Busy if late else ServiceUnavailable)(
            f"Prefect at {url.partition('/api')[0]} does not answer ({type(error).__name__}); is it up? `ptp status`"
        ) from None
    _refuse_status(answer.status_code, verb, url, content)
    value = _parse(content, url) if content else None
    searched = _is_search(url)
    if (value is None and verb != "GET" and not searched) or url.endswith(_PLAIN):
        return value
    if not (_is_list(value) if searched else isinstance(value, dict)):
        raise _strange(url, "an answer of another form")
    return _wrap(value, url)


def expect(answer: Any, **kinds: Any) -> None:
    """Raise SettingsError, as of a server that is not Prefect's, unless each of these fields of an answer is of its
    kind: in JSON, null or anything else may stand in the place of a value. kinds: as `isinstance` takes them.
    """
    for field, kind in kinds.items():
        value = answer.get(field) if isinstance(answer, dict) else answer
        if not (isinstance(answer, dict) and isinstance(value, kind)):
            raise SettingsError(
                f"PTP_PREFECT: it does not answer as Prefect does, but with {shorten(value, 40)} as `{field}`; {_FIX}"
            )


def _read(answer: httpx.Response, url: str) -> bytes:
    """Return the answer's body, of at most MAX_ANSWER bytes that come within SECONDS; it was asked for unpacked."""
    content, ends = bytearray(), time.monotonic() + SECONDS
    for piece in answer.iter_raw():
        content += piece
        if len(content) > MAX_ANSWER:
            raise _strange(url, f"more than {MAX_ANSWER} bytes")
        if time.monotonic() > ends:
            raise httpx.ReadTimeout(f"an answer takes longer than {SECONDS:.0f} s")
    return bytes(content)


def _refuse_status(status: int, verb: str, url: str, content: bytes) -> None:
    """Raise what a status says that is no success."""
    if status == 503:
        raise _Busy(f"Prefect at {url.partition('/api')[0]} is busy: it answered 503 to {verb} {url}")
    if status >= 500:
        raise ServiceUnavailable(f"Prefect answered {status} to {verb} {url}; its log says why")
    if status in (401, 403):
        raise SettingsError(
            f"Prefect at {url.partition('/api')[0]} refuses the credentials ({status}): set "
            "PREFECT_API_AUTH_STRING to its `user:password`; the local stack's own are in stack.env of PTP_HOME"
        )
    if status == 404:
        raise NotFound(f"Prefect at {url.partition('/api/')[0]} has no {url.partition('/api/')[2]}")
    if status >= 400:
        raise SettingsError(f"Prefect refuses {verb} {url.partition('/api/')[2]}: {_detail(status, content)}")
    if not 200 <= status < 300:
        raise SettingsError(
            f"PTP_PREFECT: {url.partition('/api')[0]} answers {status}, and redirects are not followed; set it to the "
            "address that answers, with https:// if it redirects there"
        )


def _is_search(url: str) -> bool:
    return url.endswith("/filter") or "/flow_run_states/?" in url


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _wrap(value: Any, url: str) -> Any:
    if isinstance(value, dict):
        return _Object({name: _wrap(field, url) for name, field in value.items()}, url)
    return [_wrap(item, url) for item in value] if isinstance(value, list) else value


def read_date(api: str) -> datetime | None:
    """Return the time by the server's clock, to the second; None if its answer does not tell it.

    Raises ServiceUnavailable if the server does not answer.
    """
    try:
        with _client(is_loopback(api)).stream("GET", f"{api}/health") as answer:
            told = answer.headers.get("date", "")  # whoever refuses this tells the time all the same
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"Prefect at {api.partition('/api')[0]} does not answer ({type(error).__name__})"
        ) from None
    try:
        return parsedate_to_datetime(told)
    except (ValueError, OverflowError):
        return None


def _parse(content: bytes, url: str) -> Any:
    return parse_json(content, f"PTP_PREFECT: {url} answers something other than JSON", _FIX, SettingsError)


def _strange(url: str, what: str) -> SettingsError:
    return SettingsError(f"PTP_PREFECT: {url} does not answer as Prefect does, but with {what}; {_FIX}")


@functools.cache
def _client(loopback: bool) -> httpx.Client:
    """Return the one client of this process: making one takes 30 ms of processor time, and training needs it.

    This machine itself is reached directly, whatever proxies the environment names. Raises SettingsError if it names
    one, or certificates, that httpx cannot use.
    """
    try:
        return httpx.Client(timeout=SECONDS, trust_env=not loopback, headers=UNPACKED)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise explain_environment(error, "Prefect") from None


def _detail(status: int, content: bytes) -> str:
    try:
        told = str(_parse(content, "it")["detail"])
    except (SettingsError, KeyError, TypeError):
        told = f"{status} {content[:200].decode(errors='replace')}"
    return escape_controls(told if len(told) <= MAX_DETAIL else f"{told[:MAX_DETAIL]}...")
