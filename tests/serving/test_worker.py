"""The computing thread: which prefix caches it computes, and when."""

import asyncio
import threading
from collections.abc import Sequence

import torch

from ptpipeline.errors import PtpError
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.caches import count_bytes
from ptpipeline.serving.engine import Engine
from tests.evaluation.probed import artifact, tiny

TASKS, TEXTS, KEPT = 48, 3, 24


def prompts() -> list[Artifact]:
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
        for _ in range(TEXTS)
        for one in made
    ]
    while len(batcher._worker._queries) < len(asked):
        await asyncio.sleep(0.01)
    gate.set()
    return [(await one)[0] for one in asked]


def test_no_cache_is_computed_twice_for_texts_that_wait_together() -> None:
    """Half of the caches are in memory. Each of the other half is computed once, and none is dropped that is needed."""
    made, engine = prompts(), Engine(tiny())
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
