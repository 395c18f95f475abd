"""What a server may answer that is no vLLM, or one that breaks: always a sentence, never a crash or an answer."""

import asyncio
import gzip
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from ptpipeline.errors import BaseModelError, Overloaded, PtpError, ServiceUnavailable, SettingsError, TimedOut
from ptpipeline.models.base import prepare_base
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.serving.answerer import Sampling
from ptpipeline.serving.gateway import Gateway, open_gateway
from ptpipeline.serving.live import Live
from ptpipeline.serving.vllm import MAX_ANSWER, Upstream
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from tests.evaluation.probed import artifact, copied, embeddings, tiny
from tests.http_server import Quiet, serve
from tests.server.serving import fill
from tests.serving.registered import Clock
from tests.serving.test_gateway import WRITING, ask, classified, made, pieces, refusal, vllm, vocabulary
from tests.serving.vllm_server import Vllm, running_vllm
from tests.tiny import tiny_project

__all__ = ["vllm"]  # a fixture

EVENT = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": %s}]}\n\n'


def told(
    body: bytes, use: Callable[[Upstream], Coroutine[Any, Any, Any]], status: int = 200, packed: str | None = None
) -> PtpError:
    """The error that comes of a server which answers everything with that body, packed as it says."""

    class Answers(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(status, body)

        def end_headers(self) -> None:
            if packed is not None:
                self.send_header("Content-Encoding", packed)
            super().end_headers()

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


@pytest.mark.parametrize("use", [lambda upstream: upstream.find_model(), read_all])
def test_an_answer_that_is_packed_unasked_is_not_unfolded(use: Callable[[Upstream], Coroutine[Any, Any, Any]]) -> None:
    """A piece of gzip within gzip unfolds a million times, before anybody can count what comes of it."""
    body = gzip.compress(gzip.compress(b'{"data": [{"id": "base"}]}\n' + EVENT % b'"stop"'))
    assert isinstance(told(body, use, packed="gzip, gzip"), SettingsError | ServiceUnavailable)


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


# ---------------------------------------------------------------- in front of a gateway


def test_a_base_with_other_embeddings_is_refused() -> None:
    other = copied(tiny())
    torch.manual_seed(0)
    other.model.get_input_embeddings().weight.add_(0.5 * torch.randn_like(other.model.get_input_embeddings().weight))
    with running_vllm(other) as server:
        error = refusal(server, made())
        assert isinstance(error, BaseModelError)
        assert "whose embeddings are not those of tiny" in str(error)


def test_a_prompt_of_another_base_is_refused(vllm: Vllm) -> None:
    foreign = made(base_model=tiny().ref.model_copy(update={"fingerprint": "f" * 64}))
    assert "trained on base model tiny" in str(refusal(vllm, foreign))


def test_a_prefix_is_refused(vllm: Vllm) -> None:
    prefix = artifact(tiny(), compute_activations(tiny(), embeddings(tiny())), method="prefix")
    assert "a prefix is keys and values, and vLLM takes embeddings only" in str(refusal(vllm, prefix))


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"prompt_embeds": False}, BaseModelError, "You must set `--enable-prompt-embeds`"),
        ({"token_ids": False}, BaseModelError, "run vLLM 0.26 or later"),
        ({"logits": True}, BaseModelError, "start it without --logprobs-mode"),
        ({"key": "k" * 20}, SettingsError, "set PTP_UPSTREAM_KEY"),
        ({"busy": True}, Overloaded, "vLLM takes no more requests now"),  # without its address: clients are told
        ({"dead": True}, TimedOut, "answered 500; its log says why"),
    ],
)
def test_a_server_that_cannot_answer_holds_no_prompt(
    options: dict[str, Any], kind: type[PtpError], sentence: str
) -> None:
    with running_vllm(tiny(), **options) as server:
        error = refusal(server, made())
        assert isinstance(error, kind)
        assert sentence in str(error)


def test_a_server_that_starts_before_vllm_does_answers_once_that_is_up(vllm: Vllm, tmp_path: Path) -> None:
    store, clock = FolderStore(tmp_path / "store"), Clock()
    fill(store)
    opened = Gateway(vocabulary(), vllm.url)
    live = Live(store, opened, tmp_path / "home", clock=clock)
    vllm.dead = True
    live.poll()
    assert {one.reason for one in live.observe().refused} == {f"vLLM at {vllm.url} answered 500; its log says why"}
    assert live.observe().trouble == ""  # the store is there
    vllm.dead = False
    clock.now += 10
    live.poll()
    assert (live.find("movies").name, live.observe().refused) == ("movies@2", [])


def test_the_key_of_the_environment_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTP_UPSTREAM_KEY", "k" * 20)
    prepared = prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path / "project")))
    with running_vllm(tiny(), key="k" * 20) as server:
        open_gateway(prepared, server.url).hold(made())
    assert {body["model"] for body in server.asked} == {"base"}


def test_adapters_and_further_names_are_the_same_base(vllm: Vllm) -> None:
    vllm.models = [("other-name", "/base", None), ("base", "/base", None), ("lora", "/lora", "base")]
    vllm.name = "other-name"
    assert [type(answer) for answer in classified(vllm, made(), ["a"])] == [dict]


def test_what_serves_several_bases_is_refused(vllm: Vllm) -> None:
    vllm.models = [("base", "/base", None), ("large", "/large", None)]
    error = refusal(vllm, made())
    assert isinstance(error, SettingsError)
    assert "serves ['/base', '/large']; name a vLLM server, which serves one base" in str(error)


@pytest.mark.parametrize(
    "url",
    ["gpu:8000", "ftp://gpu", "http://", "http://me:word@gpu:8000", "http://gpu:port", "http://[", "\0", "http://a\nb"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="--upstream: expected the address of a vLLM server without a password"):
        Gateway(vocabulary(), url)


def test_a_key_that_no_header_can_hold_is_refused_without_being_told() -> None:
    with pytest.raises(SettingsError, match="PTP_UPSTREAM_KEY: expected printable ASCII") as refused:
        Gateway(vocabulary(), "http://gpu:8000", "se\u00efcret\n")
    assert "cret" not in str(refused.value)


def test_a_server_that_is_gone_is_told_as_gone(vllm: Vllm) -> None:
    one = made()

    async def use(opened: Gateway) -> None:
        opened._upstream = type(opened._upstream)("http://127.0.0.1:1")
        await opened.classify(one.digest, [{"text": "a"}], 5.0)

    with pytest.raises(ServiceUnavailable, match=r"does not answer \(ConnectError\); is it up"):
        ask(vllm, use, one)


def test_no_request_has_a_penalty_whatever_the_base_states(vllm: Vllm) -> None:
    one, writing = made(), made(**WRITING)
    classified(vllm, one)
    pieces(vllm, writing, "a scene", Sampling())
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": 0, "min_p": 0.0}
    assert [{name: body.get(name) for name in neutral} for body in vllm.asked] == [neutral] * len(vllm.asked)
    assert not vllm.dead


def test_no_request_holds_the_text(vllm: Vllm) -> None:
    classified(vllm, made(), ["lovely secret"])
    assert not any("secret" in str(body) for body in vllm.asked)
