"""What a server of prompts asks of that which answers: the engine on this machine, or a gateway to another one.

A version is always named by its digest here. So an alias that moves while a request runs changes nothing in its answer.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from ptpipeline.errors import PtpError
from ptpipeline.task.template import Fields


class Sampling(NamedTuple):
    """How a text is generated.

    max_tokens: at most that many; None is the limit that the prompt was trained with. temperature: 0 takes the
    likeliest token. top_p: only the likeliest tokens that have this probability together. stop: the text ends before
    the first of these strings. seed: the same seed gives the same text; None is another one each time.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Piece(NamedTuple):
    """A part of a generated text, in the order of generation; the last one says why the text ended.

    tokens: how many were generated up to here. read: how many tokens the model was given, with those of the prompt.
    """

    text: str
    tokens: int
    read: int
    finish: Literal["stop", "length"] | None = None


class Load(NamedTuple):
    """What an answerer does and has done: texts that have no answer yet, those of them that are being generated,
    batches and their texts so far, bytes of prefix caches, how often one was in memory and how often not, and whether
    it still computes.
    """

    waiting: int
    generating: int
    batches: int
    texts: int
    cache_bytes: int
    cache_hits: int
    cache_misses: int
    alive: bool


def ignore(tokens: int) -> None:
    """Count nothing."""


class Answerer(Protocol):
    """Answers texts with the prompts that it holds, by digest. `classify` and `generate` run in one event loop.

    Both raise NotFound for a digest that it does not hold, Overloaded, and TimedOut if `patience` seconds pass
    without an answer. A caller that is cancelled takes its request out of the queue, or ends it at the next token.
    """

    async def classify(
        self, digest: str, texts: Sequence[Fields], patience: float, count: Callable[[int], object] = ignore
    ) -> list[dict[str, float] | PtpError]:
        """Return for each text the probability of each label, most likely first, or the error of this text alone.

        count: is told how many tokens the model reads, those of the prompt among them. Raises DataError if the prompt
        has no labels.
        """

    def generate(self, digest: str, fields: Fields, sampling: Sampling, patience: float) -> AsyncIterator[Piece]:
        """Generate the text that follows, piece by piece.

        Raises DataError if the prompt answers with labels or lacks a field, ContextError if the text does not fit.
        """

    def observe(self) -> Load:
        """Return what it does and has done."""
