"""A small server that takes requests as vLLM 0.26 does, over a real base that runs through transformers alone.

What it accepts, refuses and answers is written after vLLM's documents (features/prompt_embeds) and sources
(entrypoints/openai/completion, renderers/embed_utils, sampling_params). Its generation_config.json states a penalty,
and as in vLLM (issue 57719) a penalty beside embeddings ends the engine.
"""

import base64
import io
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ptpipeline.models.frozen import FrozenBase
from tests.http_server import Quiet, serve

DEFAULTS = {"repetition_penalty": 1.3, "temperature": 0.6, "top_k": 20, "max_tokens": 16}
NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class Refused(Exception):
    """A request that vLLM answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Vllm:
    """The server's state: what it was started with, what tests make it do, and what it was asked."""

    base: FrozenBase
    name: str = "base"
    context: int = 256
    key: str | None = None
    prompt_embeds: bool = True  # --enable-prompt-embeds
    token_ids: bool = True  # vLLM 0.26 and later
    logits: bool = False  # --logprobs-mode raw_logits
    busy: bool = False
    delay: float = 0.0
    models: list[tuple[str, str, str | None]] = field(default_factory=list)  # name, root, parent; else the base alone
    url: str = ""
    dead: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    aborted: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    # ------------------------------------------------------------ a request

    def check(self, body: dict[str, Any]) -> list[Tensor]:
        """The prompts [T, H] of a request, or Refused as vLLM refuses."""
        if self.dead:
            raise Refused(500, "EngineDeadError")
        embeds = body.get("prompt_embeds")
        if body.get("model") != self.name:
            raise Refused(404, f"The model `{body.get('model')}` does not exist.")
        if embeds is not None and body.get("echo"):
            raise Refused(400, "Echo is unsupported with prompt embeds.")
        if embeds is not None and body.get("prompt_logprobs") is not None:
            raise Refused(400, "prompt_logprobs is not compatible with prompt embeds.")
        wanted = body.get("logprob_token_ids")
        if wanted is not None and body.get("logprobs") is None:
            raise Refused(400, "when using `logprob_token_ids`, `logprobs` must be set.")
        if wanted is not None and not 1 <= len(wanted) <= 128:
            raise Refused(400, "logprob_token_ids is too long")
        if embeds is not None:
            prompts = [self.decode(one) for one in (embeds if isinstance(embeds, list) else [embeds])]
        else:
            prompts = [self.base.model.get_input_embeddings()(torch.tensor(body["prompt"]))]
        for prompt in prompts:
            if len(prompt) + body.get("max_tokens", DEFAULTS["max_tokens"]) > self.context:
                raise Refused(400, f"This model's maximum context length is {self.context} tokens.")
        penalties = {name: body.get(name, DEFAULTS.get(name, neutral)) for name, neutral in NEUTRAL.items()}
        if embeds is not None and penalties != NEUTRAL:
            self.dead = True
            raise Refused(500, "scatter gather kernel index out of bounds")
        return prompts

    def decode(self, embed: str) -> Tensor:
        """`safe_load_prompt_embeds`."""
        if not self.prompt_embeds:
            raise Refused(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        tensor = torch.load(io.BytesIO(base64.b64decode(embed, validate=True)), weights_only=True)
        hidden = self.base.model.config.hidden_size
        if tensor.dim() != 2 or tensor.shape[1] != hidden or not tensor.is_floating_point():
            raise Refused(400, f"`prompt_embeds` must be a 2D tensor of shape (num_tokens, {hidden})")
        if len(embed) > 4 * math.ceil((tensor.numel() * tensor.element_size() + 4096) / 3):
            raise Refused(400, "more bytes than the tensor has: a view's whole storage")
        return tensor.to(self.base.dtype)

    def sample(self, logits: Tensor, body: dict[str, Any], dice: torch.Generator) -> int:
        """The next token's id."""
        temperature = body.get("temperature", DEFAULTS["temperature"])
        if temperature < 1e-5:
            return int(logits.argmax())
        shares = (logits / max(temperature, 0.01)).softmax(-1)
        ordered, places = shares.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= body.get("top_p", 1.0)] = 0.0
        top_k = body.get("top_k", DEFAULTS["top_k"])
        if top_k:
            ordered[int(top_k) :] = 0.0
        return int(places[torch.multinomial(ordered / ordered.sum(), 1, generator=dice)])

    def tell(self, logits: Tensor, token: int, body: dict[str, Any]) -> dict[str, float]:
        """`top_logprobs` of one position: the sampled token, and those that were named, else the likeliest."""
        told = logits if self.logits else logits.log_softmax(-1)
        named = body.get("logprob_token_ids") if self.token_ids else None
        ids = [token, *(named or told.topk(min(body["logprobs"], 20)).indices.tolist())]
        names = {one: f"token_id:{one}" for one in ids}
        if not body.get("return_tokens_as_token_ids"):
            names = {one: self.base.tokenizer.decode([one]) for one in ids}
        return {names[one]: max(float(told[one]), -9999.0) for one in ids}

    def run(self, prompt: Tensor, body: dict[str, Any]) -> Iterator[tuple[str, int, str | None, Any, dict[str, float]]]:
        """Each step's new text, the number of tokens so far, why it ended and by which string, and `top_logprobs`."""
        dice = torch.Generator()
        dice.manual_seed(body["seed"]) if body.get("seed") is not None else dice.seed()
        states, ids, sent = prompt, list[int](), ""
        ends = {*self.base.end_tokens, *body.get("stop_token_ids", [])}
        limit = body.get("max_tokens", DEFAULTS["max_tokens"])
        held_back = max((len(stop) - 1 for stop in body.get("stop", [])), default=0)
        while True:
            time.sleep(self.delay)
            with self.lock, torch.inference_mode():
                logits = self.base.model(inputs_embeds=states[None]).logits[0, -1].float()
            token = self.sample(logits, body, dice)
            told = self.tell(logits, token, body) if body.get("logprobs") is not None else {}
            ids.append(token)
            finish = "stop" if token in ends else "length" if len(ids) == limit else None
            text = self.base.tokenizer.decode(ids[: -1 if token in ends else None], skip_special_tokens=True)
            places = [text.find(stop) for stop in body.get("stop", []) if stop in text]
            stop = None
            if places:
                text, finish = text[: min(places)], "stop"
                stop = next(one for one in body["stop"] if one in self.base.tokenizer.decode(ids))
            shown = text if finish else text[: max(len(text) - held_back, len(sent))]
            yield shown[len(sent) :], len(ids), finish, stop, told
            sent = shown
            if finish:
                return
            states = torch.cat([states, self.base.model.get_input_embeddings()(torch.tensor([token]))])


class Handler(Quiet):
    """One request."""

    vllm: Vllm

    def do_GET(self) -> None:  # noqa: N802
        models = self.vllm.models or [(self.vllm.name, self.vllm.name, None)]
        listed = [
            {"id": name, "object": "model", "root": root, "parent": parent, "max_model_len": self.vllm.context}
            for name, root, parent in models
        ]
        self.answer(200, json.dumps({"object": "list", "data": listed}).encode())

    def do_POST(self) -> None:  # noqa: N802
        vllm = self.vllm
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vllm.asked.append(body)
        if vllm.key is not None and self.headers.get("Authorization") != f"Bearer {vllm.key}":
            return self.answer(401, b'{"error":"Unauthorized"}')
        if vllm.busy:
            return self.refuse(429, "busy")
        try:
            prompts = vllm.check(body)
        except Refused as refused:
            return self.refuse(refused.status, str(refused))
        if body.get("stream"):
            return self.stream(prompts[0], body)
        choices, generated = [], 0
        for index, prompt in enumerate(prompts):
            steps = list(vllm.run(prompt, body))
            generated += steps[-1][1]
            choice: dict[str, Any] = {
                "index": index, "text": "".join(step[0] for step in steps), "finish_reason": steps[-1][2],
                "logprobs": None, "stop_reason": steps[-1][3],
            }  # fmt: skip
            if body.get("logprobs") is not None:
                choice["logprobs"] = {"top_logprobs": [step[4] for step in steps], "tokens": [], "text_offset": []}
            choices.append(choice)
        usage = self.usage(sum(map(len, prompts)), generated)
        return self.answer(200, json.dumps({"id": "cmpl-1", "choices": choices, "usage": usage}).encode())

    def stream(self, prompt: Tensor, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        options = body.get("stream_options") or {}
        try:
            for text, count, finish, stop, _ in self.vllm.run(prompt, body):
                choice = {"index": 0, "text": text, "finish_reason": finish, "stop_reason": stop}
                chunk: dict[str, Any] = {"choices": [choice]}
                if options.get("continuous_usage_stats"):
                    chunk["usage"] = self.usage(len(prompt), count)
                self.event(json.dumps(chunk))
            if options.get("include_usage"):
                self.event(json.dumps({"choices": [], "usage": self.usage(len(prompt), count)}))
            self.event("[DONE]")
        except (BrokenPipeError, ConnectionResetError):
            self.vllm.aborted.set()

    def event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def usage(self, read: int, generated: int) -> dict[str, int]:
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}

    def refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
        self.answer(status, json.dumps({"error": error}).encode())


@contextmanager
def running_vllm(base: FrozenBase, **options: Any) -> Iterator[Vllm]:
    """The server on loopback until the block ends."""
    vllm = Vllm(base, **options)
    with serve(type("Bound", (Handler,), {"vllm": vllm})) as vllm.url:
        yield vllm
