"""What a server may answer that is no vLLM, or one that breaks: always a sentence, never a crash or an answer."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch

from ptpipeline.errors import PtpError, ServiceUnavailable, SettingsError
from ptpipeline.serving.vllm import MAX_ANSWER, Upstream
from tests.http_server import Quiet, serve

EVENT = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": %s}]}\n\n'


def told(body: bytes, use: Callable[[Upstream], Coroutine[Any, Any, Any]], status: int = 200) -> PtpError:
    """The error that comes of a server which answers everything with that body."""

    class Answers(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(status, body)

        do_GET = do_POST  # noqa: N815

    async def run(url: str) -> None:
        upstream = Upstream(url)
        try:
            await use(upstream)
        finally:
            await upstream.close()

    with serve(Answers) as url, pytest.raises(PtpError) as caught:
        asyncio.run(run(url))
    assert len(str(caught.value)) < 600
    return caught.value


async def read_all(upstream: Upstream) -> None:
    async for _ in upstream.stream("base", torch.zeros(2, 4), {}):
        pass


BODIES = {
    "a page": b"<html>sign in</html>",
    "nothing": b"",
    "half of it": b'{"data": [{"id": "ba',
    "another shape": b'{"data": {"id": "base"}}',
    "a number as a name": b'{"data": [{"id": 1}]}',
    "no models": b'{"data": []}',
    "nested deep": b"[" * 100_000,
    "not a number": b'{"data": [{"id": "base", "max_model_len": NaN}]}',
    "too much": b" " * (MAX_ANSWER + 1),
}


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_no_list_of_models_is_no_vllm(kind: str) -> None:
    assert isinstance(told(BODIES[kind], lambda upstream: upstream.find_model()), SettingsError)


SCORES = {
    "no numbers of tokens": b'{"choices": []}',
    "another number of tokens": b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}',
    "no choice": b'{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}',
    "no log-probabilities": b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}',
    "infinity": b'{"choices": [{"text": "a", "logprobs": {"top_logprobs": [{"token_id:5": -Infinity}]}}], '
    b'"usage": {"prompt_tokens": 2, "completion_tokens": 1}}',
}


@pytest.mark.parametrize("kind", SCORES)
def test_what_are_no_scores_is_no_vllm(kind: str) -> None:
    error = told(SCORES[kind], lambda upstream: upstream.score_next("base", torch.zeros(2, 4), [5]))
    assert isinstance(error, SettingsError)


STREAMS = {
    "nothing": (b"", ServiceUnavailable),
    "an end without a reason": (EVENT % b"null" + b"data: [DONE]\n\n", ServiceUnavailable),
    "an engine that died": (EVENT % b'"abort"', ServiceUnavailable),
    "no event": (b"data: {\n\n", SettingsError),
    "an event without an end": (b"data: " + b"x" * (MAX_ANSWER + 1), SettingsError),
    "an error": (b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n', ServiceUnavailable),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_what_is_no_stream_of_text_ends_in_a_sentence(kind: str) -> None:
    body, expected = STREAMS[kind]
    assert isinstance(told(body, read_all), expected)


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (400, b'{"error": {"message": "too \\u001b[2J long"}}', "refuses the request: 'too \\x1b[2J long'"),
        (400, b"<html>", "refuses the request: 400"),
        (503, b"", "answered 503; its log says why"),
        (302, b"", "refuses the request: 302"),
    ],
)
def test_a_refusal_is_told_without_what_a_terminal_acts_upon(status: int, body: bytes, sentence: str) -> None:
    assert sentence in str(told(body, lambda upstream: upstream.find_model(), status))
