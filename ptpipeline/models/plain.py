"""Text as text: what a person or a file writes is never read as one of the tokens that steer a model.

A tokenizer turns the words `</s>` or `<|im_end|>` into its control tokens wherever they stand, so that a row of data
could end its own text or begin a turn of a chat. Training, baselines, probes and serving all encode by this module.
"""

import copy
from typing import Any

from tokenizers import AddedToken


class PlainEncoder:
    """A tokenizer that encodes the names of its control tokens as the characters that they are written with."""

    def __init__(self, tokenizer: Any) -> None:
        self._controls = find_controls(tokenizer)
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)  # the tokenizer itself goes on to decode
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.add_special_tokens([AddedToken(name, special=True) for name in self._controls.values()])
        self._backend.encode_special_tokens = True
        self._unknown = tokenizer.unk_token_id

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the token ids of a text; with `special` those that the tokenizer adds around an input (BOS) too."""
        encoding = self._backend.encode(text, add_special_tokens=special)
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
    return len(name) > 2 and name[0] == "<" and name[-1] == ">"
