"""Versions that stand beside each other: shadows are asked what was answered, and right answers are told later."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ptpipeline.errors import PtpError
from ptpipeline.foreign import shorten
from ptpipeline.server.bodies import Feedback, JsonRoute
from ptpipeline.server.door import is_id
from ptpipeline.server.refusals import Refusal
from ptpipeline.server.service import Service, caller_of, id_of
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.served import Served
from ptpipeline.serving.trials import hash_feedback
from ptpipeline.task.template import Fields, read_template

_SHOWN = 500  # characters of the labels that a refusal names


def make_router(service: Service) -> APIRouter:
    """Return the route of feedback."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/feedback")
    async def judge(request: Request, body: Feedback) -> Response:
        """Tell the right label, or the right text, of what was answered while two versions stood beside each other."""
        name, _, number = body.id.rpartition("-")
        if not (number.isascii() and number.isdigit() and len(number) < 9 and name):
            raise Refusal(400, "id: expected the id of an answer, `-`, and the index of the text", "invalid_id")
        trials, place = service.live.trials, (name, int(number))
        given = trials.find(*place)
        if given is None or not caller_of(request).may_use(given.task):  # who may not use it is told as if it was none
            return await pass_on(request, body, place)
        _check_label(body.label, given.labels, given.task)
        if not trials.judge(*place, body.label):
            raise _unknown()
        return JSONResponse({"object": "feedback", "id": body.id})

    async def pass_on(request: Request, body: Feedback, place: tuple[str, int]) -> Response:
        """Let the server that answered hear of it; this one cannot know whether there is one."""
        possible = is_id(place[0]) and place[1] < service.limits.texts
        if body.model is None or not service.live.server or not possible:
            raise _unknown()
        served = await service.find(request, body.model, None)
        if served.split is None and served.shadow is None:
            raise _unknown()
        _check_label(body.label, served.labels, served.task)
        if not service.live.relay.pass_on(hash_feedback(*place, served.task, body.label), caller_of(request).name):
            raise _unknown()
        return JSONResponse({"object": "feedback", "id": body.id, "passed_on": True}, 202)

    return router


def _unknown() -> Refusal:
    return Refusal(
        404,
        "id: no second version stood beside the one that answered, its answer was told already, it was answered too "
        "long ago, or another server gave it: name the `model` that was asked too, and any server takes it",
        "unknown_id",
    )


def _check_label(label: str, known: frozenset[str], task: str) -> None:
    """Raise Refusal for a label that neither version has: counted, a slip of the pen would be both versions' error."""
    if known and label not in known:
        names = shorten(", ".join(sorted(known)), _SHOWN)[1:-1]
        raise Refusal(400, f"label: {task} has no such label; expected one of {names}", "invalid_label")


def follow_labels(
    service: Service,
    request: Request,
    served: Served,
    texts: Sequence[str | Fields],
    outcomes: Sequence[dict[str, float] | PtpError],
) -> None:
    """Note what was answered beside a canary; let a shadow classify the same texts, for which the request does not
    wait, and compare.
    """
    own = {place: next(iter(found)) for place, found in enumerate(outcomes) if not isinstance(found, PtpError)}
    service.live.trials.note(served, id_of(request), own)
    if served.shadow is None:
        return
    name, template = served.shadow.name, read_template(served.shadow.manifest)

    async def ask(digest: str) -> list[str]:
        fields = [template.name_fields(texts[place], f"text {place + 1} for {name}") for place in own]
        labels = []
        for found in await service.answerer.classify(digest, fields, service.limits.patience):
            if isinstance(found, PtpError):
                raise found
            labels.append(next(iter(found)))
        return labels

    service.live.trials.mirror(served, id_of(request), own, ask)


def watch_texts(
    service: Service,
    request: Request,
    served: Served,
    texts: Sequence[str | Fields],
    sampling: Sampling,
    generating: list[AsyncIterator[Piece]],
) -> list[AsyncIterator[Piece]]:
    """Return the same pieces; when all texts are whole, they are noted beside a canary, and a shadow generates them.

    Texts that were drawn by chance differ anyway: only greedy ones are compared.
    """
    if (served.shadow is None and served.split is None) or sampling.temperature > 0:
        return generating
    asked, own = served.shadow or served, dict[int, str]()
    template = read_template(asked.manifest)

    async def ask(digest: str) -> list[str]:
        named = [template.name_fields(text, f"text {number} for {asked.name}") for number, text in enumerate(texts, 1)]
        return [await generate(digest, fields) for fields in named]  # in turn: a shadow has time

    async def generate(digest: str, fields: Fields) -> str:
        pieces = service.answerer.generate(digest, fields, sampling, service.limits.patience)
        return "".join([piece.text async for piece in pieces])

    async def watch(place: int, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        parts = list[str]()
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                parts.append(piece.text)
                if piece.finish:
                    own[place] = "".join(parts)
                    if len(own) == len(texts):
                        whole = dict(sorted(own.items()))
                        service.live.trials.note(served, id_of(request), whole)
                        service.live.trials.mirror(served, id_of(request), whole, ask)
                yield piece

    return [watch(place, pieces) for place, pieces in enumerate(generating)]
