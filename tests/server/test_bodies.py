"""What a request asks becomes what is done, as it stands there, or is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from ptpipeline.server import bodies
from ptpipeline.server.bodies import Chat, Completion
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
    assert completion(stop="a").read_sampling(Limits()) == Sampling(stop=("a",))


def test_a_chat_may_name_its_limit_in_the_newer_way() -> None:
    assert chat(max_completion_tokens=9).read_sampling(Limits()).max_tokens == 9
    with pytest.raises(Refusal, match="max_tokens: 9, at most 8"):
        chat(max_completion_tokens=9).read_sampling(Limits(max_tokens=8))


def test_as_many_tokens_as_are_allowed_may_be_asked_for() -> None:
    assert completion(max_tokens=8).read_sampling(Limits(max_tokens=8)).max_tokens == 8


@pytest.mark.parametrize("given", [{"presence_penalty": 1.0}, {"frequency_penalty": -1.0}, {"logit_bias": {"7": 1.0}}])
def test_each_setting_that_is_not_done_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(given))} is not supported"):
        completion(**given)


def test_settings_that_change_nothing_are_taken() -> None:
    completion(presence_penalty=0.0, frequency_penalty=0.0, logit_bias={}, n=1)
    assert chat(response_format={"type": "text"}).read_text() == "a film"


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
