"""What the routes share: the versions, what answers, the limits, and the record of what was answered."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request
from starlette.requests import HTTPConnection

from ptpipeline.errors import BaseModelError, NotFound
from ptpipeline.server.callers import Caller
from ptpipeline.server.limits import Limits
from ptpipeline.server.metrics import Metrics
from ptpipeline.server.refusals import Refusal
from ptpipeline.serving.answerer import Answerer
from ptpipeline.serving.live import Live
from ptpipeline.serving.served import Served
from ptpipeline.task.template import Fields

KEY_HEADER = "x-ptp-key"

log = logging.getLogger("ptpipeline.server")


class Service(NamedTuple):
    """What the routes work with. log_texts: whether the log shows what was asked."""

    live: Live
    answerer: Answerer
    limits: Limits
    metrics: Metrics
    log_texts: bool = False

    async def find(self, request: Request, reference: str, key: str | None, texts: int = 1) -> Served:
        """Return the version that answers a request, whose texts are taken from the caller's rate: a name that is not
        held is looked up in the store, and costs as much as one that is.

        key: whose request it is; the same key gets the same version of an alias that is split. Raises Refusal if the
        caller may not use the task, has spent their rate, or nothing has that name here, and what else `Live.find`
        raises.
        """
        caller = caller_of(request)
        caller.check_task(reference.partition("@")[0])
        caller.spend(texts)
        key = request.headers.get(KEY_HEADER) or key or ""
        try:
            if (held := self.live.peek(reference, key)) is not None:
                return held
            return await asyncio.to_thread(self.live.find, reference, key)  # it reads the store
        except (NotFound, BaseModelError):  # which says where the store is
            raise Refusal(
                404,
                f"this server has no model {reference[:200]!r}; `GET /v1/models` lists what it has",
                "model_not_found",
            ) from None

    def note_texts(self, request: Request, served: Served, texts: Sequence[Fields]) -> None:
        """Write the texts into the log if that was asked for."""
        if self.log_texts:
            log.info("%s asks %s: %s", id_of(request), served.name, json.dumps(list(texts)))


def caller_of(request: HTTPConnection) -> Caller:
    """Return who asks."""
    caller: Caller = request.state.caller
    return caller


def id_of(request: HTTPConnection) -> str:
    """Return the id of the request, which its answer bears."""
    found: str = request.state.id
    return found


def name_version(served: Served) -> dict[str, str]:
    """Return the headers that name the version of an answer."""
    return {"X-Ptp-Version": served.name, "X-Ptp-Digest": served.digest}
