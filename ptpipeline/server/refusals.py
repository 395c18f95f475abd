"""Why a request is refused, in the form that OpenAI's clients read: a status, one sentence, and a code for programs."""

import logging
import math
from typing import Any

from fastapi import HTTPException

from ptpipeline.errors import (
    ArtifactError,
    ContextError,
    DataError,
    NotFound,
    Overloaded,
    PtpError,
    TimedOut,
    Transient,
)

log = logging.getLogger("ptpipeline.server")

_RETRY_SECONDS = 5.0  # what a client is told to wait for a store that does not answer

# The first kind that fits counts.
_KINDS: tuple[tuple[type[PtpError], int, str], ...] = (
    (Overloaded, 429, "overloaded"),
    (TimedOut, 504, "timeout"),
    (Transient, 503, "unavailable"),
    (NotFound, 404, "model_not_found"),
    (ContextError, 400, "context_length_exceeded"),
    (DataError, 400, "invalid_request"),
    (ArtifactError, 502, "artifact_refused"),
    (PtpError, 500, "server_error"),
)
_INTERNAL = ("timeout", "unavailable", "artifact_refused", "server_error")  # may name the store or another server
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(HTTPException):
    """A request that is not answered; the sentence says why and what to do."""

    def __init__(self, status: int, sentence: str, code: str, retry_after: float | None = None) -> None:
        """retry_after: in how many seconds another try is worth it."""
        headers = None if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, sentence, headers)
        self.code = code

    def to_json(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": None, "code": self.code}}


def refuse(error: PtpError, id: str) -> Refusal:
    """Return what the client of that request is told of an error of ptpipeline.

    What is wrong with the server or its store is for whoever runs it: it goes into the log, and the client is told so.
    """
    status, code = next((status, code) for kind, status, code in _KINDS if isinstance(error, kind))
    waits = error.retry_after if isinstance(error, Overloaded) else _RETRY_SECONDS if status == 503 else None
    if code not in _INTERNAL:
        return Refusal(status, str(error), code, waits)
    log.error("%s: %s", id, error)
    return Refusal(status, f"request {id} cannot be answered now; the server's log says why", code, waits)
