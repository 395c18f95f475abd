"""What this server serves and how it is: for OpenAI's clients, for probes, for Prometheus and for the page."""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ptpipeline.errors import PtpError
from ptpipeline.records.versions import PRODUCTION, Promotion
from ptpipeline.server.door import Ending
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.schema import ServedModel, ServedModels, Status, describe
from ptpipeline.server.service import Service, caller_of
from ptpipeline.serving.served import Served
from ptpipeline.task.template import read_template


def make_router(service: Service, ending: Ending) -> APIRouter:
    """Return the routes that only look."""
    router = APIRouter()

    @router.get("/healthz", response_class=PlainTextResponse)
    async def tell_health() -> Response:
        """Answer 200 as long as this process can answer anything."""
        return PlainTextResponse("OK") if service.answerer.observe().alive else _tell_death()

    @router.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "Not now"}})
    async def tell_readiness() -> Response:
        """Answer 200 while requests may be sent here, 503 before the first version is loaded and before the end."""
        if ending.begun:
            return PlainTextResponse("this server is about to end", 503)
        if not service.answerer.observe().alive:
            return _tell_death()
        if not service.live.ready:
            return PlainTextResponse("the versions are not loaded yet", 503)
        return PlainTextResponse("OK")

    @router.get("/v1/models", responses=describe(ServedModels))
    async def list_models(request: Request) -> Response:
        """List the tasks and aliases that the caller may use; `task` alone is its production version."""
        found = await asyncio.to_thread(_find_all, service, request)
        return JSONResponse({"object": "list", "data": [_model(promotion, served) for promotion, served in found]})

    @router.get("/v1/models/{model}", responses=describe(ServedModel))
    async def show_model(request: Request, model: str) -> Response:
        """Show which version a name stands for now."""
        served = await service.find(request, model, None)
        return JSONResponse({"id": model, "created": int(time.time()), **_describe(served)})

    @router.get("/v1/status", responses=describe(Status))
    async def tell_status(request: Request) -> Response:
        """Tell what the page shows: versions, their figures since the start, the queue, and the store."""
        found = await asyncio.to_thread(_find_all, service, request)
        state, caller = service.live.observe(), caller_of(request)
        refused = {  # the reason may say where the store is
            (one.task, one.alias): "the server's log says why" if caller.tasks else one.reason for one in state.refused
        }
        answer = {
            "store_age_seconds": state.away,
            "trouble": bool(state.trouble),
            "held": state.held,
            "waiting": service.answerer.observe().waiting,
            "aliases": [_observe(service, promotion, served, refused) for promotion, served in found],
        }
        return JSONResponse(answer)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def tell_metrics(request: Request) -> Response:
        """Tell what Prometheus wants to know. They name every task, so the caller has to be one who may use all."""
        if caller_of(request).tasks:
            raise Refusal(403, "the metrics name every task: ask with a token that may use all", "forbidden_task")
        told = service.metrics.render(request.headers.get("accept", ""))
        return Response(told.body, media_type=told.media_type)

    return router


def _tell_death() -> Response:
    return PlainTextResponse("nothing computes any more; the log says why", 503)


def _find_all(service: Service, request: Request) -> list[tuple[Promotion, Served]]:
    """Return each alias that the caller may use, with the version that it answers by."""
    caller, found = caller_of(request), list[tuple[Promotion, Served]]()
    for promotion in service.live.observe().promotions:
        if caller.may_use(promotion.task):
            try:
                found.append((promotion, service.live.find(f"{promotion.task}@{promotion.version}")))
            except PtpError:  # it went since it was listed
                continue
    return found


def _observe(
    service: Service, promotion: Promotion, served: Served, refused: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """Return what an alias answers by, what that did, and how the version beside it compares."""
    place = (promotion.task, promotion.alias)
    return {
        **_model(promotion, served),
        "since": promotion.at,
        "beside": promotion.beside and promotion.beside.to_json(),
        "trial": service.live.trials.describe((*place, promotion.seq)) if promotion.beside else None,
        "refused": refused.get(place),
        **service.metrics.figures(served.digest)._asdict(),
    }


def _model(promotion: Promotion, served: Served) -> dict[str, Any]:
    name = promotion.task if promotion.alias == PRODUCTION else f"{promotion.task}@{promotion.alias}"
    return {
        "id": name,
        "created": int(datetime.fromisoformat(promotion.at).timestamp()),
        "alias": promotion.alias,
        **_describe(served),
    }


def _describe(served: Served) -> dict[str, Any]:
    manifest = served.manifest
    return {
        "object": "model",
        "owned_by": "ptpipeline",
        "task": served.task,
        "version": served.name,
        "digest": served.digest,
        "base": manifest.base_model.name,
        "fields": read_template(manifest).names,
        "labels": list(manifest.labels),
        "generates": manifest.generate is not None,
    }
