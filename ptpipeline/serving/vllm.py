"""A vLLM server as its documents describe it: embeddings go to `/v1/completions`, texts and log-probabilities come.

vLLM (features/prompt_embeds) takes `prompt_embeds`: base64 of what `torch.save` writes of a tensor [tokens, H]. That
format is written here and never read. With embeddings it refuses `echo` and `prompt_logprobs`; what it gives is the
log-probability of any token id in place of the next one (`logprob_token_ids`, since vLLM 0.26).

Letters: T tokens, H width.
"""

import asyncio
import base64
import io
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx
import torch
from pydantic import BaseModel
from torch import Tensor

from ptpipeline.errors import BaseModelError, Overloaded, PtpError, ServiceUnavailable, SettingsError
from ptpipeline.foreign import UNPACKED, parse_json, parsing, shorten
from ptpipeline.settings import explain_environment, is_loopback

MOST_TOKEN_IDS = 128  # of one request (vLLM's MAX_LOGPROB_TOKEN_IDS)
MAX_ANSWER = 2**20  # bytes of an answer, and of one event of a stream
CONNECT_SECONDS = 10.0
CONNECTIONS = 256  # at once to one server; further requests wait for one of them
NEUTRAL = {  # else the base's generation_config.json decides, and a penalty beside embeddings may end vLLM's engine
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": 0,
    "min_p": 0.0,
}


Answer = TypeVar("Answer", bound=BaseModel)


class UpstreamModel(NamedTuple):
    """What the server serves: the name of its model, and how many tokens a request may have."""

    name: str
    context: int | None


class Delta(NamedTuple):
    """What a stream brings: more text, how many tokens of text came up to here, and why it ended, if it did."""

    text: str
    tokens: int
    finish: Literal["stop", "length"] | None


class _LogProbs(BaseModel):
    top_logprobs: list[dict[str, float]]


class _Choice(BaseModel):
    text: str
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Model]


class _Error(BaseModel):
    message: str


class _Refusal(BaseModel):
    error: _Error


class _Event(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


def write_tensor(tensor: Tensor) -> bytes:
    """Return embeddings [T, H] as vLLM reads them: what `torch.save` writes, in base64."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu().contiguous().clone(), buffer)  # of a view, it would write the whole storage
    return base64.b64encode(buffer.getvalue())


class Upstream:
    """One vLLM server; `key` is what it was started with as `--api-key`.

    All methods raise ServiceUnavailable if it does not answer, Overloaded if it takes no more, SettingsError if it is
    no vLLM server or refuses the key, BaseModelError if it refuses the request. They run in one event loop.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = _read_address(url).removesuffix("/v1")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise SettingsError("PTP_UPSTREAM_KEY: expected printable ASCII, as vLLM's --api-key is")
        try:
            self._client = httpx.AsyncClient(
                base_url=self.url,
                headers=UNPACKED | ({"Authorization": f"Bearer {key}"} if key else {}),
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the caller's patience bounds the rest
                limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
                trust_env=not is_loopback(self.url),
            )
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise explain_environment(error, "vLLM") from None

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    async def find_model(self) -> UpstreamModel:
        """Return the base that the server serves; adapters and further names of it do not count."""
        models = (await self._ask("GET", "/v1/models", None, _Models)).data
        bases = {model.root or model.id: model for model in reversed(models) if model.parent is None}
        if len(bases) != 1:
            raise SettingsError(
                f"--upstream: {self.url} serves {shorten(sorted(bases))}; name a vLLM server, which serves one base"
            )
        (base,) = bases.values()
        return UpstreamModel(base.id, base.max_model_len)

    async def score_next(self, model: str, prompt: Tensor | list[int], tokens: Sequence[int]) -> dict[int, float]:
        """Return the log-probability of each of these tokens behind a prompt [T, H], or behind token ids."""
        parts = [tokens[start : start + MOST_TOKEN_IDS] for start in range(0, len(tokens), MOST_TOKEN_IDS)]
        scores = await asyncio.gather(*(self._score_part(model, prompt, part) for part in parts))
        return {token: score for part in scores for token, score in part.items()}

    async def _score_part(self, model: str, prompt: Tensor | list[int], tokens: Sequence[int]) -> dict[int, float]:
        body = self._begin(model, prompt) | {
            "max_tokens": 1,
            "temperature": 1.0,  # so that no mode of vLLM's log-probabilities scales them
            "top_p": 1.0,
            "logprobs": len(tokens),
            "logprob_token_ids": list(tokens),
            "return_tokens_as_token_ids": True,
        }
        answer = await self._ask("POST", "/v1/completions", body, _Completion)
        length = len(prompt)
        if answer.usage is None or answer.usage.prompt_tokens != length:
            raise self._strange(f"it read another number of tokens than the {length} it was sent")
        if len(answer.choices) != 1 or answer.choices[0].logprobs is None:
            raise self._strange("it sent no log-probabilities")
        rows = answer.choices[0].logprobs.top_logprobs
        scores = {f"token_id:{token}": token for token in tokens}
        if len(rows) != 1 or not scores.keys() <= rows[0].keys():
            raise BaseModelError(
                f"vLLM at {self.url} sends no log-probabilities of named tokens (logprob_token_ids); run vLLM 0.26 or "
                "later"
            )
        if sum(math.exp(min(value, 9.0)) for value in rows[0].values()) > 1.01:
            raise BaseModelError(
                f"vLLM at {self.url} sends logits in place of log-probabilities; start it without --logprobs-mode"
            )
        return {token: rows[0][name] for name, token in scores.items()}

    async def stream(self, model: str, prompt: Tensor, options: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """Generate behind a prompt [T, H] until an end is told; to close the iterator ends the request there too."""
        body = self._begin(model, prompt) | options
        body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        tokens = 0
        async with self._open("POST", "/v1/completions", body) as answer:
            async for event in self._read_events(answer):
                part = self._parse(event, _Event)
                if part.error is not None:
                    raise ServiceUnavailable(f"vLLM at {self.url} broke a text off: {shorten(part.error.message, 240)}")
                tokens = part.usage.completion_tokens if part.usage else tokens
                if not part.choices:
                    continue
                choice = part.choices[0]
                if choice.finish_reason not in (None, "stop", "length"):
                    raise ServiceUnavailable(
                        f"vLLM at {self.url} ended a text by {shorten(choice.finish_reason)}; its log says why"
                    )
                if choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str):
                    tokens -= 1  # the token that ended the text, and is none of its tokens
                yield Delta(choice.text, tokens, choice.finish_reason)  # type: ignore[arg-type]  # checked above
                if choice.finish_reason is not None:
                    return
        raise ServiceUnavailable(f"vLLM at {self.url} broke a text off; its log says why")

    def _begin(self, model: str, prompt: Tensor | list[int]) -> dict[str, Any]:
        if isinstance(prompt, Tensor):
            return {"model": model, "prompt_embeds": write_tensor(prompt).decode(), **NEUTRAL}
        return {"model": model, "prompt": prompt, **NEUTRAL}

    async def _ask(self, verb: str, path: str, body: Any, kind: type[Answer]) -> Answer:
        async with self._open(verb, path, body) as answer:
            return self._parse(await self._read_all(answer), kind)

    @asynccontextmanager
    async def _open(self, verb: str, path: str, body: Any) -> AsyncIterator[httpx.Response]:
        """Yield the server's answer before its body is read."""
        try:
            async with self._client.stream(verb, path, json=body) as answer:
                if answer.status_code != 200:
                    raise self._refuse(answer, await self._read_all(answer))
                yield answer
        except httpx.HTTPError as error:
            raise ServiceUnavailable(
                f"vLLM at {self.url} does not answer ({type(error).__name__}); is it up?"
            ) from None

    async def _read_all(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > MAX_ANSWER:
                raise self._strange(f"its answer is longer than {MAX_ANSWER} bytes")
        return bytes(body)

    async def _read_events(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the data of each event (WHATWG HTML, 9.2.5) up to `[DONE]`."""
        rest = b""
        async for piece in answer.aiter_raw():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.strip().removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    yield data
            if len(rest) > MAX_ANSWER:
                raise self._strange(f"an event of its stream is longer than {MAX_ANSWER} bytes")

    def _refuse(self, answer: httpx.Response, body: bytes) -> PtpError:
        """Return what the status says as an error of ours."""
        status = answer.status_code
        if status == 429:
            after = answer.headers.get("Retry-After", "")
            seconds = float(after) if after.isdigit() and len(after) < 6 else 1.0
            return Overloaded("vLLM takes no more requests now; try again", seconds)  # clients are told: no address
        if status >= 500:
            return ServiceUnavailable(f"vLLM at {self.url} answered {status}; its log says why")
        if status in (401, 403):
            return SettingsError(
                f"vLLM at {self.url} refuses the key ({status}): set PTP_UPSTREAM_KEY to what its --api-key is"
            )
        try:
            reason = shorten(self._parse(body, _Refusal).error.message, 240)
        except SettingsError:
            reason = str(status)
        return BaseModelError(f"vLLM at {self.url} refuses the request: {reason}")

    def _parse(self, body: bytes, kind: type[Answer]) -> Answer:
        what, fix = f"--upstream: {self.url} does not answer as vLLM does", "name the address of a vLLM server"
        value = parse_json(body, what, fix, SettingsError)
        with parsing(what, fix, SettingsError):
            return kind.model_validate(value)

    def _strange(self, what: str) -> SettingsError:
        return SettingsError(f"--upstream: {self.url} does not answer as vLLM does: {what}")


def _read_address(url: str) -> str:
    """Return a server's address without a slash at its end; raise SettingsError if it is none, or has a password."""
    try:
        address, _ = httpx.URL(url), urlsplit(url)  # each takes what the other refuses
        sound = address.scheme in ("http", "https") and address.host and not address.userinfo
    except (httpx.InvalidURL, ValueError):
        sound = False
    if not sound:
        raise SettingsError(
            "--upstream: expected the address of a vLLM server without a password, such as http://gpu:8000; its key "
            "comes from PTP_UPSTREAM_KEY"
        )
    return str(address).rstrip("/")
