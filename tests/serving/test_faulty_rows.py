"""What fails while texts are generated together ends as few of them as it must; the others have the texts of alone."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from ptpipeline.errors import PtpError
from ptpipeline.models.causal import CausalBase, Extended
from ptpipeline.models.inputs import Input, PrefixCache
from ptpipeline.models.slots import Slots
from ptpipeline.serving import decoding
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.decoding import Decoder
from ptpipeline.serving.engine import Engine
from ptpipeline.serving.worker import Worker
from tests.evaluation.probed import copied, tiny
from tests.serving.test_batcher import serving
from tests.serving.test_decoding import GREEDY, decode_alone, join_text, prompts, random_base, run, text_of
from tests.serving.test_worker import read, writer

POISON = 77  # a token
SECRET = RuntimeError("a secret text")


class Faulty(CausalBase):
    """A base that reads no text with the poison, and steps no group of so many rows."""

    groups: set[int]

    def extend(self, cache: PrefixCache | None, inputs: Sequence[Input]) -> Extended:
        if any(POISON in row.text for row in inputs):
            raise SECRET
        return super().extend(cache, inputs)

    def step(self, slots: Sequence[Slots], tokens: Tensor) -> Tensor:
        if len(tokens) in self.groups:
            raise SECRET
        return super().step(slots, tokens)


def faulty(base: Any, groups: Sequence[int] = ()) -> Any:
    """The same base with these faults."""
    object.__setattr__(base, "__class__", Faulty)
    object.__setattr__(base, "groups", set(groups))
    return base


@pytest.mark.parametrize("length", [4, 60], ids=["whole", "in parts"])
def test_a_text_that_cannot_be_read_ends_alone(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "READ_TOKENS", 16)
    base, sound = faulty(random_base("llama")), random_base("llama")
    decoder, cache = Decoder(base), base.compute_prefix(prompts())
    decoder.join(cache, text_of(3), GREEDY, 9)
    begun = run(decoder, steps=2)
    bad = decoder.join(cache, [POISON] * length, GREEDY, 9)
    rows = [decoder.join(cache, text_of(2 + index), GREEDY, 6) for index in range(4)]
    given = run(decoder)
    assert given[bad] == [SECRET]
    assert join_text(begun[0] + given[0]) == decode_alone(sound, prompts()[0], (3, 9))
    for index, handle in enumerate(rows):
        assert join_text(given[handle]) == decode_alone(sound, prompts()[0], (2 + index, 6))


def test_a_step_that_fails_ends_its_group_alone() -> None:
    base, sound = faulty(random_base("llama"), groups=[2]), random_base("llama")
    decoder, cache = Decoder(base, slots=100), base.compute_prefix(prompts())
    long = decoder.join(cache, text_of(30), GREEDY, 20)
    short = [decoder.join(cache, text_of(3), GREEDY, 6) for _ in range(2)]
    given = run(decoder)
    assert join_text(given[long]) == decode_alone(sound, prompts()[0], (30, 20))
    assert [given[handle][-1] for handle in short] == [SECRET, SECRET]
    later = decoder.join(cache, text_of(3), GREEDY, 6)
    assert join_text(run(decoder)[later]) == decode_alone(sound, prompts()[0], (3, 6))


def fail(*given: object, **options: object) -> Any:
    raise SECRET


def test_tokens_that_become_no_text_end_their_row_alone() -> None:
    base = random_base("llama")
    decoder, cache = Decoder(base), base.compute_prefix(prompts())
    rows = [decoder.join(cache, text_of(2 + index), GREEDY, 6) for index in range(3)]
    decoder._waiting[1].stream._tokenizer = SimpleNamespace(decode=fail)
    given = run(decoder)
    assert given[rows[1]] == [SECRET]
    for index in (0, 2):
        assert join_text(given[rows[index]]) == decode_alone(base, prompts()[0], (2 + index, 6))


@pytest.mark.parametrize("name", ["add", "remove"])
def test_rows_whose_keys_and_values_cannot_be_kept_end_with_their_group_and_no_later_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_base("llama")
    decoder, cache = Decoder(base), base.compute_prefix(prompts())
    rows = [decoder.join(cache, text_of(3), GREEDY, limit) for limit in (2, 9)]
    begun = run(decoder, steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(Slots, name, fail)
        rows.append(decoder.join(cache, text_of(4), GREEDY, 9))
        given = run(decoder, steps=1)
    assert len(begun) == 2
    ends = {handle: given[handle][-1] for handle in rows}
    assert ends[1] == SECRET
    assert ends[0].finish == "length"
    assert (ends[2] == SECRET) == (name == "add")
    later = decoder.join(cache, text_of(3), GREEDY, 6)
    assert join_text(run(decoder)[later]) == decode_alone(base, prompts()[0], (3, 6))
    assert len(decoder) == 0


def test_each_stream_is_told_its_own_error_without_a_text_and_the_others_end_as_alone() -> None:
    made, base = writer(limit=20), faulty(copied(tiny()))

    async def ask_all(batcher: Any) -> list[Any]:
        texts = ["the film", "poison", "a good story", "awful"]
        return await asyncio.gather(*(read(batcher, made, text) for text in texts), return_exceptions=True)

    with serving(made, engine=Engine(tiny())) as batcher:
        expected = asyncio.run(ask_all(batcher))
    with serving(made, engine=Poisoned(base)) as batcher:
        given = asyncio.run(ask_all(batcher))
        assert batcher.observe().generating == 0
        again = asyncio.run(ask_all(batcher))
    assert given[0::2] + given[3:] == expected[0::2] + expected[3:] == again[0::2] + again[3:]
    assert isinstance(given[1], PtpError)
    assert "RuntimeError" in str(given[1])
    assert "secret" not in str(given[1])


class Poisoned(Engine):
    """An engine whose texts of the word poison have the token."""

    def render(self, question: Any, number: int = 1) -> Any:
        rendered = super().render(question, number)
        return rendered._replace(ids=[POISON]) if question.fields["text"] == "poison" else rendered


def test_a_row_that_cannot_leave_ends_the_texts_beside_it_and_not_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    made = writer(limit=200)

    async def leave(batcher: Any) -> PtpError:
        streams = [
            batcher.generate(made.digest, {"text": text}, Sampling(temperature=2.0, seed=1), 30) for text in "ab"
        ]
        for stream in streams:
            assert isinstance(await anext(stream), Piece)
        monkeypatch.setattr(Decoder, "leave", fail)
        await streams[0].aclose()
        with pytest.raises(PtpError, match="RuntimeError") as ended:
            _ = [piece async for piece in streams[1]]
        monkeypatch.undo()
        return ended.value

    with serving(made) as batcher:
        asyncio.run(leave(batcher))
        assert asyncio.run(read(batcher, made, "the film"))[-1].finish
        assert isinstance(batcher._worker, Worker)
        assert batcher.observe().alive
