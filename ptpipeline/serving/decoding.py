"""Texts that are generated together, step by step: rows join and leave between steps, each with its own prompt.

One thread drives a decoder. A step reads the texts of rows that joined, as far as there is room for them, and then
gives every row one more token.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ptpipeline.errors import PtpError
from ptpipeline.models.frozen import FrozenBase, PrefixCache
from ptpipeline.serving.service import Piece, Sampling

SLOTS = 16_384  # tokens, pads among them, whose keys and values the rows of a decoder hold together


class Emitted(NamedTuple):
    """What a step gave a row: the next piece of its text, or the error that ended this row alone.

    A row ends with a piece that has a `finish`, or with an error; then its handle is no longer known.
    """

    handle: int
    outcome: Piece | PtpError


class Decoder:
    """Generates the texts of many rows on one base; `slots` bounds the tokens that they hold in memory together."""

    def __init__(self, base: FrozenBase, slots: int = SLOTS) -> None:
        self.base = base
        self._slots = slots

    def __len__(self) -> int:
        """Return the number of rows that have not ended, those that wait for room among them."""
        raise NotImplementedError

    @property
    def waiting(self) -> int:
        """Number of rows that have joined and not begun: the bound on memory has no room for them yet."""
        raise NotImplementedError

    def join(
        self, cache: PrefixCache | None, ids: Sequence[int], sampling: Sampling, limit: int, prompt: int = 0
    ) -> int:
        """Add a row behind the prompt with that index of the cache, and return its handle; nothing is computed yet.

        ids: the text's tokens. limit: how many tokens to generate at most if `sampling` does not say.
        Raises ContextError if prompt, text and limit together are longer than the base's context or the memory bound.
        """
        raise NotImplementedError

    def step(self) -> list[Emitted]:
        """Compute one more token of every row; return what is new, in the order in which the rows joined.

        A row is left out if its new token gave no text yet: half of a character, or what may become a stop string.
        """
        raise NotImplementedError

    def leave(self, handle: int) -> None:
        """Drop a row before its end; a handle that is no longer known is none."""
        raise NotImplementedError
