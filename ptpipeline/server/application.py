"""The web application: every route, and how what goes wrong is told."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ptpipeline.server import classify, feedback, generation, observation, page
from ptpipeline.server.bodies import explain
from ptpipeline.server.callers import Tokens
from ptpipeline.server.door import Door, Ending
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.schema import ErrorBody
from ptpipeline.server.service import Service

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_SENTENCES = {
    404: ("there is no such address; `GET /openapi.json` lists them", "unknown_address"),
    405: ("this address takes {allow}; `GET /openapi.json` lists what each one takes", "wrong_method"),
}


def make_application(
    service: Service, tokens: Tokens | None, ending: Ending, lifespan: Lifespan | None = None
) -> FastAPI:
    """Return the application. tokens: of those who may ask; None lets in whoever reaches a loopback address."""
    refused: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
    application = FastAPI(
        title="ptpipeline",
        docs_url=None,
        redoc_url=None,
        # `/v1/classify/` would be sent to an address without TLS if something else ends TLS, and its text with it
        redirect_slashes=False,
        lifespan=lifespan,
        responses=refused,
    )
    for router in (
        classify.make_router(service),
        feedback.make_router(service),
        generation.make_router(service),
        observation.make_router(service, ending),
        page.make_router(),
    ):
        application.include_router(router)
    application.add_exception_handler(HTTPException, _tell_refusal)
    application.add_exception_handler(RequestValidationError, _tell_fault)
    application.add_middleware(Door, tokens=tokens, limits=service.limits, metrics=service.metrics, ending=ending)
    return application


async def _tell_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, Refusal):
        headers = error.headers  # 405 names the methods that are taken
        sentence, code = _SENTENCES.get(error.status_code, ("refused", "refused"))
        error = Refusal(error.status_code, sentence.format(allow=(headers or {}).get("Allow", "another method")), code)
        error.headers = headers
    return JSONResponse(error.to_json(), error.status_code, error.headers)


async def _tell_fault(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _tell_refusal(_, Refusal(400, explain(list(error.errors())), "invalid_request"))
