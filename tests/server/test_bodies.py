"""What a request asks becomes what is done, as it stands there, or is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from ptpipeline.server import bodies
from ptpipeline.server.bodies import Chat, Completion, explain
from ptpipeline.server.limits import Limits
from ptpipeline.server.refusals import Refusal
from ptpipeline.serving.answerer import Sampling

USER = {"role": "user", "content": "a film"}


def completion(**given: Any) -> Completion:
    return Completion.model_validate({"model": "writer", "prompt": "a film"} | given)


def chat(*messages: dict[str, Any], **given: Any) -> Chat:
    return Chat.model_validate({"model": "writer", "messages": list(messages or [USER])} | given)


def test_a_text_is_generated_as_it_is_asked_for() -> None:
    asked = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ["a", "b"], "seed": 3}
    assert completion(**asked).read_sampling(Limits()) == Sampling(9, 0.5, 0.9, ("a", "b"), 3)
    assert completion(stop="the end").read_sampling(Limits()) == Sampling(stop=("the end",))


def test_a_chat_may_name_its_limit_in_the_newer_way() -> None:
    assert chat(max_completion_tokens=9).read_sampling(Limits()).max_tokens == 9
    assert chat(max_completion_tokens=9, max_tokens=5).read_sampling(Limits()).max_tokens == 9
    with pytest.raises(Refusal, match="max_tokens: 9, at most 8"):
        chat(max_completion_tokens=9).read_sampling(Limits(max_tokens=8))


def test_the_parts_of_a_message_are_one_text_with_nothing_between_them() -> None:
    parts = [{"type": "text", "text": text} for text in ("a fi", "lm")]
    assert chat({"role": "user", "content": parts}).read_text() == "a film"


def test_as_many_tokens_as_are_allowed_may_be_asked_for() -> None:
    assert completion(max_tokens=8).read_sampling(Limits(max_tokens=8)).max_tokens == 8


BOUNDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 1}, {"max_tokens": 0}),
    ({"temperature": 2}, {"temperature": 2.01}),
    ({"temperature": 0}, {"temperature": -0.01}),
    ({"top_p": 1}, {"top_p": 1.01}),
    ({"stop": ["x"] * 8}, {"stop": ["x"] * 9}),
    ({"stop": "x" * 200}, {"stop": "x" * 201}),
    ({"stop": "x"}, {"stop": ""}),
    ({"user": "x" * 200}, {"user": "x" * 201}),
    ({"model": "x" * 200}, {"model": "x" * 201}),
    ({"prompt": ["x"]}, {"prompt": []}),
    ({"best_of": 1}, {"best_of": 2}),
]


@pytest.mark.parametrize(("least", "beyond"), BOUNDS)
def test_what_is_just_within_a_bound_is_taken_and_what_is_beyond_it_refused(
    least: dict[str, Any], beyond: dict[str, Any]
) -> None:
    completion(**least)
    with pytest.raises(ValidationError):
        completion(**beyond)


@pytest.mark.parametrize("given", [{"presence_penalty": 1.0}, {"frequency_penalty": -1.0}, {"logit_bias": {"7": 1.0}}])
def test_each_setting_that_is_not_done_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=f"{next(iter(given))}: not supported here, since no weight of a token can be changed"
    ):
        completion(**given)


def test_settings_that_change_nothing_are_taken() -> None:
    completion(presence_penalty=0.0, frequency_penalty=0.0, logit_bias={}, n=1)
    assert chat(response_format={"type": "text"}).read_text() == "a film"


# OpenAI's fields that its client and the frameworks over it fill in by themselves, with a value that changes the answer
DEFAULTS: dict[str, tuple[list[Any], Any]] = {
    "service_tier": (["auto", "default"], "flex"),
    "tools": ([[]], [{"type": "function", "function": {"name": "f"}}]),
    "tool_choice": (["none", "auto"], "required"),
    "parallel_tool_calls": ([True, False], "yes"),
    "functions": ([[]], [{"name": "f"}]),
    "function_call": (["none", "auto"], {"name": "f"}),
    "n": ([1], 2),
    "logprobs": ([False], True),
    "top_logprobs": ([0], 5),
    "modalities": ([["text"]], ["text", "audio"]),
    "reasoning_effort": (["none"], "high"),
    "verbosity": (["medium"], "low"),
    "store": ([False], True),
    "metadata": ([{}, {"job": "7"}], {"job": 7}),
    "user": (["ada"], 7),
    "safety_identifier": (["ada"], 7),
    "prompt_cache_key": (["ada"], 7),
    "prompt_cache_retention": (["in_memory"], "24h"),
    "stream_options": ([{}, {"include_usage": True}], {"every": 7}),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_option_of_a_chat_is_taken_at_its_default_and_else_refused_by_name(name: str) -> None:
    defaults, other = DEFAULTS[name]
    for value in [*defaults, None]:
        chat(**{name: value})
    with pytest.raises(ValidationError) as refused:
        chat(**{name: other})
    assert explain([{**error, "loc": ("body", *error["loc"])} for error in refused.value.errors()]).startswith(name)


def test_of_several_faults_the_outermost_is_told() -> None:
    with pytest.raises(ValidationError) as refused:
        chat({"role": "nobody", "content": "x"}, model=7)
    told = explain([{**error, "loc": ("body", *error["loc"])} for error in refused.value.errors()])
    assert told.startswith("model: ")


@pytest.mark.parametrize(
    "messages",
    [[USER, USER], [USER, {"role": "assistant", "content": "x"}, USER], [{"role": "system", "content": "x"}]],
)
def test_a_chat_of_other_messages_than_one_of_the_user_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(Refusal, match="expected one message, of the role user"):
        chat(*messages).read_text()


@pytest.mark.parametrize(("more", "few"), [(0, True), (1, False)])
def test_members_are_counted_over_all_lists_and_objects(monkeypatch: pytest.MonkeyPatch, more: int, few: bool) -> None:
    monkeypatch.setattr(bodies, "_MAX_MEMBERS", 6)
    assert bodies._has_few_members({"a": [1, 2], "b": {"c": [3] * (1 + more)}}) == few
