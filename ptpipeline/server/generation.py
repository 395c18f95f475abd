"""Texts that follow, whole or piece by piece, in the forms of OpenAI's completions and chat completions."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ptpipeline.errors import DataError, PtpError, place_of
from ptpipeline.server.bodies import Chat, Completion, Generate, JsonRoute
from ptpipeline.server.feedback import watch_texts
from ptpipeline.server.refusals import Refusal, refuse
from ptpipeline.server.schema import Chatted, Completed, describe
from ptpipeline.server.service import Service, id_of, log, name_version
from ptpipeline.serving.answerer import Piece
from ptpipeline.serving.served import Served
from ptpipeline.task.template import Fields, read_template


class Text(NamedTuple):
    """A whole generated text; tokens and read as a Piece counts them."""

    text: str
    tokens: int
    read: int
    finish: str | None


class Form(NamedTuple):
    """How an answer looks: that of a completion, or that of a chat."""

    kind: Literal["text_completion", "chat.completion"]

    def frame(self, id: str, served: Served, created: int, chunk: bool = False) -> dict[str, Any]:
        """Return what is around the choices."""
        return {
            "id": id,
            "object": f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind,
            "created": created,
            "model": served.name,
            "system_fingerprint": served.digest,
            "version": served.name,
            "digest": served.digest,
        }

    def choose(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """Return a whole text as a choice."""
        own = {"text": text} if self.kind == "text_completion" else {"message": {"role": "assistant", "content": text}}
        return {"index": index, **own, "logprobs": None, "finish_reason": finish}

    def part(self, text: str, finish: str | None, first: bool) -> dict[str, Any]:
        """Return a piece of a text as a choice."""
        if self.kind == "text_completion":
            return self.choose(0, text, finish)
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        return {"index": 0, "delta": delta | {"content": text}, "logprobs": None, "finish_reason": finish}


COMPLETION, CHAT = Form("text_completion"), Form("chat.completion")


class EventStream(Response):
    """Server-sent events; what makes them is ended as soon as the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(headers=headers | {"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event as soon as it is there."""
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                body = f"data: {event}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_router(service: Service) -> APIRouter:
    """Return the routes of generation."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", responses=describe(Completed, EventStream.media_type))
    async def complete(request: Request, body: Completion) -> Response:
        """Continue one text or several."""
        given: Sequence[str | Fields | None] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if body.fields is not None:
            if body.prompt is not None:
                raise DataError("send either prompt or fields: fields takes the place of prompt")
            given = [body.fields]
        if None in given:
            raise DataError("prompt: expected a text, or send fields with the text of each field")
        return await _generate(service, request, body, COMPLETION, [text for text in given if text is not None])

    @router.post("/v1/chat/completions", responses=describe(Chatted, EventStream.media_type))
    async def chat(request: Request, body: Chat) -> Response:
        """Answer one message; with `fields`, these are the text, and the message is only a form."""
        text = body.read_text()
        return await _generate(service, request, body, CHAT, [text if body.fields is None else body.fields])

    return router


async def _generate(
    service: Service, request: Request, body: Generate, form: Form, given: Sequence[str | Fields]
) -> Response:
    if len(given) > service.limits.texts:
        raise Refusal(400, f"prompt: {len(given)} texts, at most {service.limits.texts} are allowed", "too_many")
    if body.stream and len(given) > 1:
        raise Refusal(400, "prompt: a stream takes one text; send a request for each", "too_many")
    sampling = body.read_sampling(service.limits)
    served = await service.find(request, body.model, body.user, len(given))
    template = read_template(served.manifest)
    texts = [template.name_fields(text, f"text {number} for {served.name}") for number, text in enumerate(given, 1)]
    service.note_texts(request, served, texts)
    started = _Started(service, id_of(request), served, form)
    generating = [service.answerer.generate(served.digest, text, sampling, service.limits.patience) for text in texts]
    generating = watch_texts(service, request, served, given, sampling, generating)
    if not body.stream:
        return await started.answer(generating)
    usage = body.stream_options is not None and body.stream_options.include_usage
    return await started.stream(generating[0], usage)


class _Started:
    """A generation that has begun: whose it is, and in which form it is answered."""

    def __init__(self, service: Service, id: str, served: Served, form: Form) -> None:
        self._service, self._id, self._served, self._form = service, id, served, form
        self._began, self._created = time.perf_counter(), int(time.time())

    async def answer(self, generating: Sequence[AsyncIterator[Piece]]) -> Response:
        """Return all texts whole; if one fails, the others end."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_read_whole(pieces)) for pieces in generating]
        except BaseExceptionGroup as errors:  # what went wrong first is told as if there were no group
            self._count(0, len(generating))
            raise errors.exceptions[0] from None
        texts = [task.result() for task in tasks]
        self._count(len(texts), 0)
        read, tokens = sum(text.read for text in texts), sum(text.tokens for text in texts)
        self._service.metrics.count_tokens(self._served, read, tokens)
        answer = self._form.frame(self._id, self._served, self._created) | {
            "choices": [self._form.choose(index, text.text, text.finish) for index, text in enumerate(texts)],
            "usage": _usage(read, tokens),
        }
        return JSONResponse(answer, headers=name_version(self._served))

    async def stream(self, pieces: AsyncIterator[Piece], usage: bool) -> Response:
        """Return the text as events; what fails before its first piece is an error of the request."""
        try:
            first = await anext(pieces)
        except Exception:
            self._count(0, 1)
            raise
        return EventStream(self._tell(first, pieces, usage), name_version(self._served))

    async def _tell(self, first: Piece, pieces: AsyncIterator[Piece], usage: bool) -> AsyncIterator[str]:
        frame, last, failed = self._form.frame(self._id, self._served, self._created, chunk=True), first, True
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                yield json.dumps(frame | {"choices": [self._form.part(first.text, first.finish, True)]})
                async for last in pieces:
                    yield json.dumps(frame | {"choices": [self._form.part(last.text, last.finish, False)]})
            if usage:
                yield json.dumps(frame | {"choices": [], "usage": _usage(last.read, last.tokens)})
            yield "[DONE]"
            failed = False
        except PtpError as error:  # the answer has begun: only an event can tell it
            yield json.dumps(refuse(error, self._id).to_json())
        except Exception as error:  # noqa: BLE001 - its message may hold a text
            log.error("%s: %s", self._id, place_of(error))
            yield json.dumps(
                Refusal(500, f"request {self._id} failed; the server's log says where", "failed").to_json()
            )
        finally:
            self._count(0 if failed else 1, 1 if failed else 0)
            self._service.metrics.count_tokens(self._served, last.read, last.tokens)

    def _count(self, answers: int, errors: int) -> None:
        self._service.metrics.count_answers(self._served, answers, errors, time.perf_counter() - self._began)


async def _read_whole(pieces: AsyncIterator[Piece]) -> Text:
    parts, tokens, read, finish = list[str](), 0, 0, None
    async with aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            parts.append(piece.text)
            tokens, read, finish = piece.tokens, piece.read, piece.finish
    return Text("".join(parts), tokens, read, finish)


def _usage(read: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
