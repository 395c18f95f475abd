"""What a request asks: the bodies of OpenAI's API and of ours.

What would change the answer and is not done here, is refused. Defaults are those by which a prompt was gated: a text is
generated greedily.
"""

import codecs
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import ConfigDict, Field, model_validator
from starlette.responses import Response

from ptpipeline.errors import DataError
from ptpipeline.foreign import parse_json
from ptpipeline.records.base import Record
from ptpipeline.server.limits import Limits
from ptpipeline.server.refusals import Refusal
from ptpipeline.serving.answerer import Sampling

_MAX_NAME = 200  # characters of a model's name, a user or an id
_MAX_STOPS, _MAX_STOP = 8, 200
_MAX_MEMBERS = 4096  # of all lists and objects of a body: a fault in each is an error of its own, which takes 10 us
_MAX_SEED = 2**63  # as in OpenAI's API
_EXPECTED = {  # of what has several forms; pydantic tells a fault of each form
    "prompt": "expected a text, or a list of texts",
    "input": "expected a text, or a list of texts; a text may be an object with the text of each field",
    "stop": f"expected a string, or a list of at most {_MAX_STOPS} strings, each of 1 to {_MAX_STOP} characters",
    "content": "expected a text, or a list of parts of the type text",
}
_TEXT_FORMAT = {"type": "text"}
_TOKENS = "no weight of a token can be changed here, and vLLM's engine ends by that beside a prompt"
_ONE = "one text is generated for each prompt"
_LOGPROBS = "no log-probabilities of tokens are told; /v1/classify tells those of labels"
_TOOLS = "the prompt was trained to answer with a text, and calls no tool"
_TRAINED = "how the text is written was trained"
_MEDIA = "only texts are read and written"
_REASONS = {  # of what OpenAI's API and vLLM's take, and would change the answer
    "presence_penalty": _TOKENS,
    "frequency_penalty": _TOKENS,
    "repetition_penalty": _TOKENS,
    "logit_bias": _TOKENS,
    "n": _ONE,
    "best_of": _ONE,
    "logprobs": _LOGPROBS,
    "top_logprobs": _LOGPROBS,
    "echo": "only what follows the text is sent",
    "suffix": "the prompt was trained to continue a text, not to fill a gap",
    "tools": _TOOLS,
    "tool_choice": _TOOLS,
    "parallel_tool_calls": _TOOLS,
    "functions": _TOOLS,
    "function_call": _TOOLS,
    "response_format": "nothing keeps the text to a format",
    "reasoning_effort": _TRAINED,
    "verbosity": _TRAINED,
    "modalities": _MEDIA,
    "audio": _MEDIA,
    "store": "no answer is kept",
    "moderation": "no text is judged",
    "web_search_options": "nothing is looked up",
    "prediction": "no draft is compared",
    "service_tier": "all requests are served alike",
    "prompt_cache_retention": "prompts stay in memory as long as there is room",
    "prompt_cache_options": "prompts stay in memory as long as there is room",
}

Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
Model = Annotated[
    str, Field(min_length=1, max_length=_MAX_NAME, description="`task`, `task@alias`, `task@3` or `task@sha256:DIGEST`")
]
FieldTexts = Annotated[
    dict[str, str], Field(description="The text of each field of the template, if it has more than one")
]
_Nothing = Annotated[list[Any], Field(max_length=0)]
Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP)]


class JsonRequest(Request):
    """A request whose body is parsed as foreign bytes are."""

    async def json(self) -> Any:
        """Return the value that the body states; raise Refusal if it states none."""
        try:
            body = (await self.body()).removeprefix(codecs.BOM_UTF8)
            value = parse_json(body, "the body", "expected JSON", DataError, largest=_MAX_SEED)
        except DataError as error:
            raise Refusal(400, str(error), "not_json") from None
        if not _has_few_members(value):
            raise Refusal(
                400,
                f"the body has more than {_MAX_MEMBERS} members in its lists and objects: send fewer texts at once",
                "too_many",
            )
        return value


def _has_few_members(value: Any) -> bool:
    """Return whether all lists and objects of a JSON value together have no more members than a request may."""
    members, values = 0, [value]
    while values:
        one = values.pop()
        inner = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else ()
        members += len(inner)
        if members > _MAX_MEMBERS:
            return False
        values += inner
    return True


class JsonRoute(APIRoute):
    """A route that takes a JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


class Asked(Record):
    """What a client asks; no value is taken for another one: `"4"` is no number, and 1 no truth. A field that is null
    was left out: programs hand every option of OpenAI's API through, with or without a value.
    """

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: member for name, member in value.items() if member is not None}
        return value


class Classify(Asked):
    """Texts to be classified: one, several, or one or several texts by field."""

    model: Model
    input: str | FieldTexts | Annotated[list[str | FieldTexts], Field(min_length=1)]
    user: Name | None = None


class Feedback(Asked):
    """The right answer to a text, in `label`: a label of the task, or the text that should have been generated. `id` is
    that of the answer, with `-0` for its first text. With the `model` that was asked, any server takes it, whichever of
    them answered.
    """

    id: Name
    label: Annotated[str, Field(min_length=1)]
    model: Model | None = None


class StreamOptions(Asked):
    """include_usage: the last event counts the tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Generate(Asked):
    """What both kinds of generation take."""

    model: Model
    fields: FieldTexts | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-_MAX_SEED, le=_MAX_SEED - 1)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Name | None = None
    n: Literal[1] | None = None
    service_tier: Literal["auto", "default"] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="after")
    def _check_supported(self) -> "Generate":
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(_refuse_field(name))
        return self

    def read_sampling(self, limits: Limits) -> Sampling:
        """Return how the text is generated; raise Refusal if more tokens are asked for than a text may have."""
        if self.max_tokens is not None and self.max_tokens > limits.max_tokens:
            raise Refusal(400, f"max_tokens: {self.max_tokens}, at most {limits.max_tokens} are allowed", "too_many")
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=0.0 if self.top_p == 0 else self.temperature or 0.0,  # the likeliest token is always left
            top_p=self.top_p or 1.0,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed,
        )


class Completion(Generate):
    """A text to be continued, or several."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | None = None
    logprobs: None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


class TextPart(Asked):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Asked):
    """A message of a chat."""

    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[TextPart]
    name: Name | None = None


class Chat(Generate):
    """A message to be answered. The prompt was trained with its own instructions, so there is no other message."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: dict[str, Any] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    tools: _Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None  # there is no tool, so neither calls one
    parallel_tool_calls: bool | None = None
    functions: _Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: Name | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> "Chat":
        if self.response_format not in (None, _TEXT_FORMAT):
            raise ValueError(_refuse_field("response_format"))
        return self

    def read_text(self) -> str:
        """Return the one message of the user; raise Refusal if there are others: the prompt never saw any."""
        if [message.role for message in self.messages] != ["user"]:
            raise Refusal(
                400,
                "messages: expected one message, of the role user: the prompt was trained with its own instructions, "
                "and for single texts",
                "invalid_messages",
            )
        content = self.messages[0].content
        return content if isinstance(content, str) else "".join(part.text for part in content)

    def read_sampling(self, limits: Limits) -> Sampling:
        """The same; the limit may have its newer name."""
        renamed = self.model_copy(update={"max_tokens": self.max_completion_tokens or self.max_tokens})
        return Generate.read_sampling(renamed, limits)


def _refuse_field(name: str) -> str:
    return f"{name}: not supported here, since {_REASONS[name]}; leave it out"


def explain(errors: list[dict[str, Any]]) -> str:
    """Return the first fault that pydantic found, as one sentence that quotes nothing of the request."""
    first = min(errors, key=lambda error: len(error["loc"]))
    parts = [str(part) for part in first["loc"][1:]]
    if parts and parts[0] in _REASONS:
        return _refuse_field(parts[0])
    if not parts and first["type"] != "value_error":
        return "the body: expected a JSON object"
    several = next((place for place, part in enumerate(parts[:-1]) if part in _EXPECTED), None)
    if several is not None:
        return f"{'.'.join(parts[: several + 1])}: {_EXPECTED[parts[several]]}"
    place = ".".join(part for part in parts if re.fullmatch(r"\w+", part))[:100]
    words = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        words = "not supported here; leave it out"
    return f"{place}: {words}" if place else words
