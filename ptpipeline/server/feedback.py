"""Shadows that are asked what was classified, and the right labels that somebody tells later."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ptpipeline.errors import PtpError
from ptpipeline.server.bodies import Feedback, JsonRoute, name_fields
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.service import Service, id_of
from ptpipeline.serving.served import Served
from ptpipeline.task.template import Fields


def make_router(service: Service) -> APIRouter:
    """Return the route of feedback."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/feedback")
    async def judge(body: Feedback) -> Response:
        """Tell the right label of a text that was classified while a shadow was asked too."""
        name, _, number = body.id.rpartition("-")
        if not (number.isascii() and number.isdigit() and len(number) < 9 and name):
            raise Refusal(400, "id: expected the id of an answer, `-`, and the index of the text", "invalid_id")
        if not service.live.trials.judge(name, int(number), body.label):
            raise Refusal(
                404,
                "id: no shadow was asked that text, its label was told already, or it was answered too long ago",
                "unknown_id",
            )
        return JSONResponse({"object": "feedback", "id": body.id})

    return router


def ask_shadow(
    service: Service,
    request: Request,
    served: Served,
    texts: Sequence[str | Fields],
    outcomes: Sequence[dict[str, float] | PtpError],
) -> None:
    """Let the shadow classify the texts that were answered, and compare; the request does not wait for that."""
    if served.shadow is None:
        return
    manifest = served.shadow.manifest
    own = {place: next(iter(found)) for place, found in enumerate(outcomes) if not isinstance(found, PtpError)}

    async def ask(digest: str) -> list[str]:
        fields = [name_fields(manifest, texts[place]) for place in own]
        labels = []
        for found in await service.answerer.classify(digest, fields, service.limits.patience):
            if isinstance(found, PtpError):
                raise found
            labels.append(next(iter(found)))
        return labels

    service.live.trials.mirror(served, id_of(request), own, ask)
