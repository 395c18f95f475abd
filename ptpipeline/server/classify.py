"""Labels of texts with their probabilities, and the right ones if somebody tells them later."""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ptpipeline.errors import PtpError
from ptpipeline.server.bodies import Classify, JsonRoute
from ptpipeline.server.feedback import follow_labels
from ptpipeline.server.refusals import Refusal, refuse
from ptpipeline.server.schema import Classification, describe
from ptpipeline.server.service import Service, id_of, name_version
from ptpipeline.serving.served import Served
from ptpipeline.task.template import Fields, read_template

Outcome = dict[str, float] | PtpError


def make_router(service: Service) -> APIRouter:
    """Return the routes of classification."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/classify", responses=describe(Classification))
    async def classify(request: Request, body: Classify) -> Response:
        """Classify one text or several. A text of several that cannot be answered gets an error of its own."""
        began = time.perf_counter()
        texts = body.input if isinstance(body.input, list) else [body.input]
        if len(texts) > service.limits.texts:
            raise Refusal(400, f"input: {len(texts)} texts, at most {service.limits.texts} are allowed", "too_many")
        served = await service.find(request, body.model, body.user, len(texts))
        outcomes = await _ask(service, request, served, texts)
        failed = [outcome for outcome in outcomes if isinstance(outcome, PtpError)]
        seconds = time.perf_counter() - began
        service.metrics.count_answers(served, len(outcomes) - len(failed), len(failed), seconds)
        follow_labels(service, request, served, texts, outcomes)
        if failed and not isinstance(body.input, list):
            raise failed[0]
        answer = {
            "id": id_of(request),
            "object": "classification",
            "created": int(time.time()),
            "model": served.name,
            "version": served.name,
            "digest": served.digest,
            "data": [{"index": index, **_show(outcome, id_of(request))} for index, outcome in enumerate(outcomes)],
        }
        return JSONResponse(answer, headers=name_version(served))

    return router


async def _ask(service: Service, request: Request, served: Served, texts: Sequence[str | Fields]) -> list[Outcome]:
    """Return the outcome of each text; a text that does not fit the template is none for the engine."""
    template, named = read_template(served.manifest), list[Fields | PtpError]()
    for number, text in enumerate(texts, 1):
        try:
            named.append(template.name_fields(text, f"text {number} for {served.name}"))
        except PtpError as error:
            named.append(error)
    asked = [fields for fields in named if not isinstance(fields, PtpError)]
    service.note_texts(request, served, asked)

    def count(tokens: int) -> None:
        service.metrics.count_tokens(served, tokens, 0)

    patience = service.limits.patience
    answers = iter(await service.answerer.classify(served.digest, asked, patience, count) if asked else [])
    outcomes: list[Outcome] = [fields if isinstance(fields, PtpError) else next(answers) for fields in named]
    return outcomes


def _show(outcome: Outcome, id: str) -> dict[str, Any]:
    if isinstance(outcome, PtpError):
        return refuse(outcome, id).to_json()
    return {"label": next(iter(outcome)), "probabilities": outcome}
