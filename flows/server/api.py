"""Prefect's REST API through plain httpx: no Prefect import, and errors of ptpipeline."""

import functools
import os
from typing import Any

import httpx
import stamina

from ptpipeline.errors import NotFound, ServiceUnavailable, SettingsError


class _Busy(ServiceUnavailable):
    """503: a writer held Prefect's SQLite file for too long; Prefect's own client repeats such a request, too."""


@stamina.retry(on=_Busy, attempts=6, timeout=30, wait_initial=0.3)
def call(verb: str, url: str, body: Any = None) -> Any:
    """The answer's JSON, None where it is empty.

    Raises ServiceUnavailable where the server does not answer or answers 5xx, NotFound for 404, SettingsError where it
    refuses the request. Credentials come from PREFECT_API_AUTH_STRING (`user:password`), as for Prefect's own client.
    """
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    try:
        answer = _client().request(verb, url, json=body, auth=(user, password) if user else None)
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"Prefect at {url.partition('/api')[0]} does not answer ({type(error).__name__}); is it up? `ptp status`"
        ) from None
    if answer.status_code == 503:
        raise _Busy(f"Prefect at {url.partition('/api')[0]} is busy: it answered 503 to {verb} {url}")
    if answer.status_code >= 500:
        raise ServiceUnavailable(f"Prefect answered {answer.status_code} to {verb} {url}; its log says why")
    if answer.status_code == 404:
        raise NotFound(f"Prefect knows no {url.partition('/api/')[2]}")
    if answer.is_error:
        raise SettingsError(f"Prefect refuses {verb} {url.partition('/api/')[2]}: {_detail(answer)}")
    try:
        return answer.json() if answer.content else None
    except ValueError:
        raise SettingsError(
            f"PTP_PREFECT: {url} answers no JSON; expected the API's address, such as http://127.0.0.1:4200/api"
        ) from None


@functools.cache
def _client() -> httpx.Client:
    """One client for the process: making one costs 30 ms of processor time, which a poll beside a training
    would take.
    """
    return httpx.Client(timeout=30)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.text[:200]}"
