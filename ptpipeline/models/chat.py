"""A base's chat template, which is foreign code in Jinja, run once per task to see what it writes around the messages.

It runs in transformers' sandbox, in a process of its own with bounds on time, memory and output, which is given no
credentials. What it wrote is kept with the prompt, so nothing runs it again to serve.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ptpipeline.errors import BaseModelError
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import ChatForm

MAX_TEMPLATE, MAX_CHAT = 256 * 2**10, 2**20  # characters of a chat template, bytes of what it writes
_SECONDS, _MEMORY = 10, 2**30  # of the child, beyond what it has when it starts to run the template
_NO_CLOCK = b"'clock' is undefined"  # what a template fails by that asks chat_process.py for the date
_GIVEN = ("PATH", "HOME", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT")  # to the child: no credential

# What stands in the place of a message: no template takes these characters for its own, or writes others for them
# unless it would change the messages too, as `tojson` does.
_CHANGED = "\"'<&\\"
_MARK = re.compile("\ue000(\\d+)" + re.escape(_CHANGED) + "\ue001")


class ChatTemplate(NamedTuple):
    """A base's chat template, and the names of the special tokens that it may write, by role: `bos_token`."""

    text: str
    tokens: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Identity of all that decides what is written."""
        return digest_of({"template": self.text, "tokens": dict(self.tokens)})


def digest_chat(template: ChatTemplate | None) -> str | None:
    """Return the identity of a base's chat template; None if it has none."""
    return template.digest if template else None


def write_chat(base: str, template: ChatTemplate | None, messages: Sequence[tuple[str, str]]) -> ChatForm:
    """Return what the chat template of a base writes around messages of (role, content), up to the assistant's answer.

    Raises BaseModelError if the base has no chat template, or it fails, or leaves out, repeats or changes a message.
    """
    chat = require_chat(base, template)
    written = _run(base, chat, tuple(role for role, _ in messages))
    pieces = _MARK.split(written)  # what is written, the number of a message, what is written, ...
    if pieces[1::2] != [str(number) for number in range(len(messages))]:
        raise BaseModelError(
            f"base model {base}: its chat template does not write each message once, in order and whole; write the "
            "task's template as a text, or other messages"
        )
    parts = [pieces[0]]
    for (_, content), own in zip(messages, pieces[2::2], strict=True):
        parts += [content, own]
    return ChatForm(template=chat.digest, parts=parts)


def require_chat(base: str, template: ChatTemplate | None) -> ChatTemplate:
    """Return the chat template of a base. Raises BaseModelError if it has none."""
    if template is None:
        raise BaseModelError(
            f"base model {base} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): "
            "write the task's template as a text, or choose a base that was trained to chat"
        )
    return template


@lru_cache(maxsize=64)
def _run(base: str, template: ChatTemplate, roles: tuple[str, ...]) -> str:
    """What the template writes, with a mark in the place of each message."""
    messages = [{"role": role, "content": f"\ue000{number}{_CHANGED}\ue001"} for number, role in enumerate(roles)]
    asked = json.dumps({"template": template.text, "messages": messages, "tokens": dict(template.tokens)})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ptpipeline.models.chat_process", *map(str, (_SECONDS, _MEMORY, MAX_CHAT))],
            env={name: os.environ[name] for name in _GIVEN if name in os.environ},
            input=asked.encode(),
            capture_output=True,
            timeout=6 * _SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BaseModelError(f"base model {base}: its chat template did not end within {6 * _SECONDS} s") from None
    if done.returncode == 1 and _NO_CLOCK in done.stdout:
        raise BaseModelError(
            f"base model {base}: its chat template writes the date of today (strftime_now), so a prompt would meet "
            "another text each day; write a fixed date into a copy of the model's chat template, or the task's "
            "template as a text"
        )
    if done.returncode == 1:
        raise BaseModelError(
            f"base model {base}: its chat template refuses these messages: {_shorten(done.stdout)}; write other "
            "messages, such as without `system`, or the task's template as a text"
        )
    if done.returncode != 0:
        raise BaseModelError(
            f"base model {base}: its chat template takes more than {_SECONDS} s, {_MEMORY} bytes of memory or "
            f"{MAX_CHAT} bytes of text, or cannot run; write the task's template as a text"
        )
    return done.stdout.decode()


def _shorten(body: bytes) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return text if len(text) <= 200 else text[:200] + "..."
