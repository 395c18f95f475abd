"""Each option of OpenAI's API that would change the answer is refused with its reason; asked by the official client."""

import typing
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chats

from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import tiny
from tests.server.serving import prompts, running

SHARED = {"model", "max_tokens", "temperature", "top_p", "stop", "seed", "stream_options", "user"}
TAKEN = {
    "completions": SHARED | {"prompt"},
    "chats": SHARED
    | {"messages", "max_completion_tokens", "metadata", "safety_identifier", "prompt_cache_key"},
}  # fmt: skip
TYPES = {
    "completions": of_completions.CompletionCreateParamsBase,
    "chats": of_chats.CompletionCreateParamsBase,
}
OTHER: dict[str, Any] = {  # a value that would change the answer; True of what is not named
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "n": 2,
    "best_of": 2,
    "logprobs": 2,
    "top_logprobs": 2,
    "suffix": "the end",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "parallel_tool_calls": "yes",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {"format": "wav", "voice": "alloy"},
    "service_tier": "flex",
    "prompt_cache_retention": "24h",
}
OPTIONS = [
    (kind, name) for kind, asked in TYPES.items() for name in sorted(set(typing.get_type_hints(asked)) - TAKEN[kind])
]
VLLM = ["repetition_penalty", "min_p", "top_k", "min_tokens", "ignore_eos", "prompt_embeds", "logprob_token_ids"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with (
        running(tmp_path_factory.mktemp("served")) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made,
    ):
        yield made


def ask(client: openai.OpenAI, kind: str, **options: Any) -> str:
    """The text that follows."""
    if kind == "completions":
        return client.completions.create(model="writer", prompt="a good film", **options).choices[0].text
    messages: Any = [{"role": "user", "content": "a good film"}]
    answer = client.chat.completions.create(model="writer", messages=messages, **options)
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
def test_what_would_change_the_answer_is_refused_with_its_reason(client: openai.OpenAI, kind: str, name: str) -> None:
    value = True if kind == "chats" and name == "logprobs" else OTHER.get(name, True)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, kind, **{name: value})
    body: Any = refused.value.body
    assert body["code"] == "invalid_request"
    assert body["message"].startswith(f"{name}: not supported here, since ")
    assert body["message"].endswith("; leave it out")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", VLLM)
def test_what_vllm_takes_beside_is_refused_by_name(client: openai.OpenAI, name: str, stream: bool) -> None:
    for kind in TYPES:
        with pytest.raises(openai.BadRequestError, match=f"{name}: not supported here.*; leave it out"):
            ask(client, kind, stream=stream, extra_body={name: 1})


def test_what_is_taken_is_done_or_changes_nothing(client: openai.OpenAI) -> None:
    made = prompts()["writer"]
    engine = Engine(tiny())
    engine.load(made)
    [whole] = engine.generate([Question(made.digest, {"text": "a good film"})])
    nothing: dict[str, dict[str, Any]] = {
        "completions": {"user": "ada", "temperature": 0, "top_p": 1, "seed": 3, "stop": ["never"], "max_tokens": 4},
        "chats": {
            "user": "ada", "temperature": 0, "top_p": 1, "seed": 3, "stop": "never", "max_completion_tokens": 4,
            "metadata": {"job": "7"}, "safety_identifier": "ada", "prompt_cache_key": "k",
        },
    }  # fmt: skip
    for kind, options in nothing.items():
        assert ask(client, kind, **options) == whole
        assert len(ask(client, kind, max_tokens=1)) < len(whole)
        assert ask(client, kind, stop=whole[3:6]) == whole[: whole.index(whole[3:6])].strip()
