"""The computing thread: the prefix caches that it computes, and texts that are generated between two batches."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ptpipeline.errors import ContextError, DataError, PtpError
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import Generation
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.caches import count_bytes
from ptpipeline.serving.decoding import Decoder
from ptpipeline.serving.engine import Engine, Question, Rendered
from tests.evaluation.probed import artifact, copied, embeddings, tiny
from tests.serving.test_batcher import TEXTS, ask, busy, prompts, serving

TASKS, EACH, KEPT = 48, 3, 24


def many_prompts() -> list[Artifact]:
    """A prompt of 8 virtual tokens for each of many tasks."""
    torch.manual_seed(6)
    width = tiny().ref.hidden_size
    return [artifact(tiny(), torch.randn(8, width), task=f"task-{number}") for number in range(TASKS)]


async def answer_all(batcher: Batcher, made: Sequence[Artifact]) -> list[dict[str, float] | PtpError]:
    """Ask each prompt its texts, in turn over the prompts; the thread begins when all wait."""
    gate = threading.Event()
    batcher._worker.submit(lambda: gate.wait(60) and None)
    asked = [
        asyncio.create_task(batcher.classify(one.digest, [{"text": "the good film " * 15}], 60))
        for _ in range(EACH)
        for one in made
    ]
    while len(batcher._worker._queries) < len(asked):
        await asyncio.sleep(0.01)
    gate.set()
    return [(await one)[0] for one in asked]


def test_no_cache_is_computed_twice_for_texts_that_wait_together() -> None:
    """Half of the caches are in memory. Each of the other half is computed once, and none is dropped that is needed."""
    made, engine = many_prompts(), Engine(tiny())
    batcher = Batcher(engine)
    try:
        for one in made:
            batcher.hold(one)
        engine.caches.bound = KEPT * count_bytes(engine.find_cache(made[0].digest))
        engine.find_cache(made[-1].digest)
        for one in made[:-KEPT]:
            engine.caches.drop(one.digest)
        before = engine.caches.misses
        answers = asyncio.run(answer_all(batcher, made))
        assert not [one for one in answers if isinstance(one, PtpError)]
        assert engine.caches.misses - before == TASKS - KEPT
        assert engine.caches.size <= engine.caches.bound
    finally:
        batcher.close()


def test_the_cache_of_a_version_is_wanted_while_its_texts_wait_and_are_computed() -> None:
    """Others are dropped before it."""
    made, labelled, computed = writer(), prompts()[0], list[bool]()

    class Watched(Engine):
        def score(self, texts: Sequence[Rendered]) -> list[torch.Tensor]:
            computed.extend(self.caches.is_wanted(text.digest) for text in texts)
            return super().score(texts)

    async def run(batcher: Batcher) -> list[bool]:
        with busy(batcher):
            asked = [asyncio.create_task(read(batcher, made, "a")), ask(batcher, labelled, "a")]
            while not (batcher._worker._openings and batcher._worker._queries):
                await asyncio.sleep(0.001)
            wanted = [batcher._engine.caches.is_wanted(one.digest) for one in (made, labelled, prompts()[1])]
        await asyncio.gather(*asked)
        return wanted

    with serving(made, labelled, engine=Watched(tiny())) as batcher:
        computed.clear()
        assert asyncio.run(run(batcher)) == [True, True, False]
    assert computed == [True]


def writer(word: str = " yes", limit: int = 12) -> Artifact:
    """A prompt that generates text."""
    made = embeddings(tiny(), word)
    return artifact(tiny(), made, task="writes", labels={}, generate=Generation(max_new_tokens=limit))


async def read(batcher: Batcher, made: Artifact, text: str, **sampling: Any) -> list[Piece]:
    """All pieces of a generated text."""
    return [piece async for piece in batcher.generate(made.digest, {"text": text}, Sampling(**sampling), 30)]


def test_texts_are_generated_beside_labels_as_one_by_one() -> None:
    made, labelled = [writer(" yes"), writer(" the film was")], prompts()[0]
    engine = Engine(tiny())
    for one in made:
        engine.load(one)

    async def run(batcher: Batcher) -> tuple[list[list[Piece]], list[dict[str, float] | PtpError]]:
        labels = ask(batcher, labelled, *TEXTS)
        streams = await asyncio.gather(*(read(batcher, one, text) for one in made for text in TEXTS))
        return streams, await labels

    with serving(*made, labelled) as batcher:
        streams, labels = asyncio.run(run(batcher))
        assert batcher.observe().generating == 0
    questions = [Question(one.digest, {"text": text}) for one in made for text in TEXTS]
    assert ["".join(piece.text for piece in own).strip() for own in streams] == engine.generate(questions)
    assert all(own[-1].finish and not any(piece.finish for piece in own[:-1]) for own in streams)
    assert all(isinstance(one, dict) for one in labels)


def test_a_prompt_of_labels_generates_nothing_and_the_other_way_round() -> None:
    labelled, writes = prompts()[0], writer()
    with serving(labelled, writes) as batcher:
        with pytest.raises(DataError, match="ask for a label"):
            asyncio.run(read(batcher, labelled, "a"))
        with pytest.raises(DataError, match="ask for a text"):
            asyncio.run(batcher.classify(writes.digest, [{"text": "a"}], 1))


def test_a_text_that_does_not_fit_fails_alone() -> None:
    made = writer()

    async def run(batcher: Batcher) -> None:
        good = asyncio.create_task(read(batcher, made, "the film"))
        with pytest.raises(ContextError):
            await read(batcher, made, "word " * 500)
        with pytest.raises(ContextError):
            await read(batcher, made, "the film", max_tokens=10**6)
        assert (await good)[-1].finish

    with serving(made) as batcher:
        asyncio.run(run(batcher))


def test_a_client_that_leaves_ends_its_text() -> None:
    made, base, steps = writer(limit=240), copied(tiny()), list[int]()

    async def run(batcher: Batcher) -> None:
        stream = batcher.generate(made.digest, {"text": "the film"}, Sampling(temperature=2.0, seed=1), 30)
        await anext(stream)
        await stream.aclose()
        until = time.monotonic() + 30
        while batcher.observe().generating and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert batcher.observe().generating == 0
        assert batcher.observe().waiting == 0

    with serving(made, engine=Engine(base)) as batcher:
        base.model.lm_head.register_forward_hook(lambda *given: steps.append(1))
        asyncio.run(run(batcher))
    assert len(steps) < 200


def test_a_task_with_many_texts_to_write_does_not_hold_up_the_others() -> None:
    """Those of the hot task are a hundred, and there is room for eight at once."""
    hot = writer()
    cold = [artifact(tiny(), embeddings(tiny(), " no"), task=f"cold-{number}", labels={}, generate=Generation(
        max_new_tokens=12)) for number in range(3)]  # fmt: skip
    ended = list[str]()

    async def ask_one(batcher: Batcher, made: Artifact) -> None:
        await read(batcher, made, "the film", max_tokens=20, temperature=2.0, seed=1)
        ended.append(made.manifest.task)

    async def run(batcher: Batcher) -> None:
        asked = [asyncio.create_task(ask_one(batcher, hot)) for _ in range(100)]
        while not ended:
            await asyncio.sleep(0.001)
        with busy(batcher):
            waiting = [asyncio.create_task(ask_one(batcher, one)) for one in cold]
            while sum(batcher._worker._openings.holds(one.digest) for one in cold) < len(cold):
                await asyncio.sleep(0.001)
            before = len(ended)
        await asyncio.gather(*waiting)
        assert len(ended) - before <= 24  # those under way, and as many beside the three
        await asyncio.gather(*asked)

    with serving(hot, *cold) as batcher:
        batcher._worker._decoder = Decoder(tiny(), slots=8 * 30 + 15)  # what is over is not enough for a ninth
        asyncio.run(run(batcher))
    assert len(ended) == 103


def test_while_a_text_is_written_labels_are_ranked_in_smaller_batches() -> None:
    """So that its next token waits for no whole pass."""
    made, labelled = writer(limit=240), prompts()[0]

    async def run(batcher: Batcher) -> int:
        stream = batcher.generate(made.digest, {"text": "the film"}, Sampling(temperature=2.0, seed=1), 30)
        await anext(stream)
        before = batcher.observe().batches
        await batcher.classify(labelled.digest, [{"text": "the good film"}] * 32, 30)
        assert batcher.observe().generating == 1
        await stream.aclose()
        return batcher.observe().batches - before

    with serving(made, labelled) as batcher:
        length = len(batcher._engine.render(Question(labelled.digest, {"text": "the good film"})).ids)
        batcher._worker._tokens = 32 * length
        assert asyncio.run(run(batcher)) == 4


def test_a_step_that_fails_ends_its_texts_and_no_later_one() -> None:
    made, base = writer(limit=240), copied(tiny())

    async def fail(batcher: Batcher) -> None:
        stream = batcher.generate(made.digest, {"text": "the film"}, Sampling(temperature=2.0, seed=1), 30)
        await anext(stream)
        base.model.lm_head = broken
        with pytest.raises(PtpError, match="RuntimeError"):
            _ = [piece async for piece in stream]

    with serving(made, engine=Engine(base)) as batcher:
        expected = asyncio.run(read(batcher, made, "the film"))
        head, broken = base.model.lm_head, torch.nn.Identity()
        broken.register_forward_hook(_break)
        asyncio.run(fail(batcher))
        base.model.lm_head = head
        assert asyncio.run(read(batcher, made, "the film")) == expected


def _break(*given: object) -> None:
    raise RuntimeError("secret text")
