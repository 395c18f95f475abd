"""A template as a chat: messages that the base's own chat template writes, up to the assistant's answer."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from ptpipeline.task.document import Section
from ptpipeline.task.template import Template, check_template, join_templates, parse_message, parse_template


class Message(Section):
    """One message; its content may have fields. What a person writes in it never becomes a control token."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class Chat(Section):
    """Messages of which at least one has a field; the answer follows as the assistant's."""

    chat: Annotated[list[Message], Field(min_length=1, max_length=32)]

    @model_validator(mode="after")
    def _fields_of_the_messages(self) -> "Chat":
        join_templates(parse_message(message.content) for message in self.chat)
        return self

    @model_validator(mode="after")
    def _a_person_speaks_last(self) -> "Chat":
        if self.chat[-1].role != "user":
            raise ValueError("the last message is the user's: the answer follows as the assistant's")
        return self

    @property
    def messages(self) -> list[tuple[str, str]]:
        """The role and content of each message."""
        return [(message.role, message.content) for message in self.chat]


TextOrChat = Annotated[
    Annotated[str, AfterValidator(check_template), Tag("a text")] | Annotated[Chat, Tag("a chat")],
    Discriminator(lambda value: "a chat" if isinstance(value, dict | Chat) else "a text"),
]


def read_fields(template: str | Chat) -> Template:
    """Return the pieces that a person wrote: of a chat, without what the base's chat template writes."""
    if isinstance(template, str):
        return parse_template(template)
    return join_templates(parse_message(content) for _, content in template.messages)
