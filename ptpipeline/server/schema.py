"""How answers look, for the OpenAPI schema that clients and their generators read."""

from typing import Any, Literal

from pydantic import BaseModel


class Fault(BaseModel):
    """Why a request, or one text of it, was not answered: one sentence, and a code for programs."""

    message: str
    type: str
    param: None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is a refusal."""

    error: Fault


class Versioned(BaseModel):
    """What every answer of a prompt says. `model` and `version` are the version that answered, `digest` its content."""

    id: str
    created: int
    model: str
    version: str
    digest: str


class ClassifiedText(BaseModel):
    """One text of a request: its likeliest label and the probability of each, or why there is none."""

    index: int
    label: str | None = None
    probabilities: dict[str, float] | None = None
    error: Fault | None = None


class Classification(Versioned):
    """The texts of a request, in its order."""

    object: Literal["classification"]
    data: list[ClassifiedText]


class Usage(BaseModel):
    """Tokens that were read, with those of the prompt, and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """One generated text. `length` says that it would have gone on."""

    index: int
    finish_reason: Literal["stop", "length"]
    text: str


class Completed(Versioned):
    """The texts that follow those of the request, in its order."""

    object: Literal["text_completion"]
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class ChatMessage(BaseModel):
    """What the prompt answers."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One generated message."""

    index: int
    finish_reason: Literal["stop", "length"]
    message: ChatMessage


class Chatted(Versioned):
    """The message that answers the request's."""

    object: Literal["chat.completion"]
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ServedModel(BaseModel):
    """What a name stands for now: a version, its base, the fields that it takes, and what it answers with."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: str
    alias: str | None = None
    version: str
    digest: str
    base: str
    fields: list[str]
    labels: list[str]
    generates: bool


class ServedModels(BaseModel):
    """Every task and alias that the caller may use."""

    object: Literal["list"]
    data: list[ServedModel]


class ObservedModel(ServedModel):
    """The same with what it did since this server started; milliseconds of its last requests.

    beside: the canary or shadow, and trial: one sentence on how it compares here.
    """

    since: str
    beside: dict[str, Any] | None
    trial: str | None
    refused: str | None
    answers: int
    errors: int
    median_ms: float
    slowest_ms: float


class Status(BaseModel):
    """How this server is."""

    store_age_seconds: float | None
    trouble: bool
    held: int
    waiting: int
    aliases: list[ObservedModel]


def describe(answer: type[BaseModel], *media: str) -> dict[int | str, dict[str, Any]]:
    """Return how a route declares its answer, which may also come in other media."""
    return {200: {"model": answer, "content": {kind: {} for kind in media}}}
