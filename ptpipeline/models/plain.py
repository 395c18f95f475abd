"""Text as text: what a person or a file writes is never read as one of the tokens that steer a model.

A tokenizer turns the words `</s>` or `<|im_end|>` into its control tokens wherever they stand, so that a row of data
could end its own text or begin a turn of a chat. Training, baselines, probes and serving all encode by this module.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken

from ptpipeline.errors import BaseModelError, is_panic

LONG = 2000  # characters that become tokens in about a millisecond


class PlainEncoder:
    """A tokenizer that encodes the names of its control tokens as the characters that they are written with."""

    def __init__(self, tokenizer: Any) -> None:
        self._controls, self._added = find_controls(tokenizer), tokenizer.added_tokens_decoder
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)  # the tokenizer itself goes on to decode
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.add_special_tokens([AddedToken(name, special=True) for name in self._controls.values()])
        self._backend.encode_special_tokens = True
        self._unknown = tokenizer.unk_token_id

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the token ids of a text; with `special` those that the tokenizer adds around an input (BOS) too.

        A rendered chat has all its control tokens itself: where its `controls` name them, and nowhere else.
        """
        if controls := getattr(text, "controls", ()):  # of a ChatText, whose module needs more than the passes have
            return self._encode_chat(text, controls)
        return self._encode_plain(text, special)

    def _encode_chat(self, chat: str, controls: Sequence[slice]) -> list[int]:
        ids, start = list[int](), 0
        for token, place in self._find_written(chat, controls):
            ids += [*self._encode_behind(chat[start : place.start], bool(ids)), token]
            start = place.stop
        return ids + self._encode_behind(chat[start:], bool(ids))

    def _find_written(self, chat: str, controls: Sequence[slice]) -> Iterator[tuple[int, slice]]:
        """The control tokens that the chat template wrote, with the places that they take: white space beside them may
        be part of them.
        """
        by_name = {name: token for token, name in self._controls.items()}
        names = re.compile("|".join(re.escape(name) for name in sorted(by_name, key=len, reverse=True)) or "(?!)")
        for span in controls:
            for match in names.finditer(chat, span.start, span.stop):
                start, stop, token = *match.span(), by_name[match[0]]
                if self._added[token].lstrip:
                    start = len(chat[:start].rstrip())
                if self._added[token].rstrip:
                    stop = len(chat) - len(chat[stop:].lstrip())
                yield token, slice(start, stop)

    def _encode_behind(self, text: str, behind: bool) -> list[int]:
        """The tokens of a text; `behind` others, it gets no blank that the tokenizer puts before the first word."""
        if not behind or not text or not self._puts_a_blank:
            return self._encode_plain(text, False)
        line, ids = self._encode_plain("\n", False), self._encode_plain("\n" + text, False)
        return ids[len(line) :] if ids[: len(line)] == line else self._encode_plain(text, False)

    @cached_property
    def _puts_a_blank(self) -> bool:
        return self._encode_plain("\na", False) != self._encode_plain("\n", False) + self._encode_plain("a", False)

    def _encode_plain(self, text: str, special: bool) -> list[int]:
        try:
            if len(text) <= LONG:
                encoding = self._backend.encode(text, add_special_tokens=special)
            else:  # `encode` keeps every other thread of the process from running
                (encoding,) = self._backend.encode_batch([text], add_special_tokens=special)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise BaseModelError(  # what it says may quote the text
                f"the base model's tokenizer panics on a text of {len(text)} characters; leave the text out, or take "
                "another base model"
            ) from None
        ids: list[int] = encoding.ids
        if self._controls.keys().isdisjoint(ids):
            return ids
        added, spans = encoding.special_tokens_mask, encoding.offsets
        return [
            plain
            for token, given, (start, end) in zip(ids, added, spans, strict=True)
            for plain in (self._spell(token) if self._is_named(token, given, text[start:end]) else [token])
        ]

    def _is_named(self, token: int, added: int, text: str) -> bool:
        """Whether the text names a control token that the model's own vocabulary holds, as that of T5 does. The token
        for what is unknown stands for any character that the vocabulary lacks.
        """
        if added or token not in self._controls:
            return False
        return token != self._unknown or self._controls[token] in text

    def _spell(self, token: int) -> list[int]:
        """The tokens of the characters of a control token's name."""
        model = self._backend.model
        return [piece.id for character in model.id_to_token(token) for piece in model.tokenize(character)]


def find_controls(tokenizer: Any) -> dict[int, str]:
    """Return the names of the tokens that steer the model, by id: those that the tokenizer calls special, and those
    that are markup, such as `<tool_call>`, beside the vocabulary of words.

    Runs of white space, and words that somebody added to the vocabulary, are text.
    """
    model, special = tokenizer.backend_tokenizer.model, set(tokenizer.all_special_ids)
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if not added.content.isspace()
        and (
            added.special
            or token in special
            or (_is_markup(added.content) and model.token_to_id(added.content) is None)
        )
    }


def _is_markup(name: str) -> bool:
    return len(name) > 2 and name[0] + name[-1] in ("<>", "[]", "{}", "||")
