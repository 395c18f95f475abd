"""The batcher over a real engine: mixed batches, bounds, fairness, time-outs, cancellation, and errors of one row."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from ptpipeline.errors import ArtifactError, DataError, NotFound, Overloaded, PtpError, TimedOut
from ptpipeline.models.inputs import PrefixCache
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import Generation
from ptpipeline.serving.batcher import Batcher
from ptpipeline.serving.engine import Engine, Question, Rendered
from tests.evaluation.probed import LABELS, artifact, blind, embeddings, tiny

WORDS = (" yes", " no", " the film was", " bad")
TEXTS = ["the good film", "awful plot and story", "a scene", "very bad and dull", "film"]


def prompts() -> list[Artifact]:
    """Four prompts of tasks of their own."""
    return [artifact(tiny(), embeddings(tiny(), word), task=f"task-{word.split()[-1]}") for word in WORDS]


@contextmanager
def serving(*held: Artifact, waiting: int = 4096, engine: Engine | None = None) -> Iterator[Batcher]:
    """A batcher that holds these prompts."""
    batcher = Batcher(engine or Engine(tiny()), waiting)
    try:
        for one in held:
            batcher.hold(one)
        yield batcher
    finally:
        batcher.close()


@contextmanager
def busy(batcher: Batcher) -> Iterator[None]:
    """The computing thread waits while this is open: it cannot look at what comes."""
    with batcher._worker._change:
        yield


async def wait_for(batcher: Batcher, count: int) -> None:
    """Return once so many rows wait."""
    until = time.monotonic() + 60
    while len(batcher._worker._queries) != count:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


def ask(
    batcher: Batcher, made: Artifact, *texts: str, patience: float = 30
) -> "asyncio.Task[list[dict[str, float] | PtpError]]":
    """Start to classify texts."""
    return asyncio.create_task(batcher.classify(made.digest, [{"text": text} for text in texts], patience))


def test_mixed_requests_answer_as_one_by_one() -> None:
    made = prompts()
    engine = Engine(tiny())
    for one in made:
        engine.load(one)

    async def run(batcher: Batcher) -> list[list[dict[str, float] | PtpError]]:
        return await asyncio.gather(*(ask(batcher, one, *TEXTS) for one in made))

    with serving(*made) as batcher:
        answers = asyncio.run(run(batcher))
        load = batcher.observe()
    for one, own in zip(made, answers, strict=True):
        for text, shares in zip(TEXTS, own, strict=True):
            assert isinstance(shares, dict)
            expected = engine.score_labels([Question(one.digest, {"text": text})])[0].softmax(0)
            assert list(shares.values()) == sorted(shares.values(), reverse=True)
            found = torch.tensor([shares[name] for name in LABELS])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert load.texts == 20
    assert load.batches < 10
    assert load.waiting == 0


def test_a_long_request_becomes_tokens_beside_the_event_loop() -> None:
    threads, (made, *_) = set[str](), prompts()

    class Watched(Engine):
        def render(self, question: Question, number: int = 1) -> Rendered:
            threads.add(threading.current_thread().name)
            return super().render(question, number)

    with serving(made, engine=Watched(tiny())) as batcher:
        for count in (1, 600):
            threads.clear()
            asyncio.run(batcher.classify(made.digest, [{"text": "film"}] * count, 60))
            assert (threading.current_thread().name in threads) == (count == 1)


def test_a_bad_row_fails_alone_before_it_waits() -> None:
    (made, *_) = prompts()

    async def run(batcher: Batcher) -> list[dict[str, float] | PtpError]:
        return await batcher.classify(made.digest, [{"text": "good"}, {"wrong": "good"}, {"text": "word " * 500}], 30)

    with serving(made) as batcher:
        good, unnamed, long = asyncio.run(run(batcher))
    assert isinstance(good, dict)
    assert "text 2" in str(unnamed)
    assert "at most 100 fit" in str(long)


def test_a_row_that_cannot_be_computed_fails_alone() -> None:
    good, bad, *_ = prompts()
    engine = Engine(tiny())
    with serving(good, bad, engine=engine) as batcher:
        altered = engine.find(bad.digest)
        engine.caches.drop(bad.digest)
        engine._loaded[bad.digest] = altered._replace(artifact=bad._replace(tensors=b"altered"))

        async def run() -> list[list[dict[str, float] | PtpError]]:
            return await asyncio.gather(ask(batcher, good, *TEXTS), ask(batcher, bad, "a"), ask(batcher, good, *TEXTS))

        first, (failed,), last = asyncio.run(run())
    assert all(isinstance(one, dict) for one in first + last)
    assert isinstance(failed, ArtifactError)


def test_scores_that_are_no_numbers_fail_alone() -> None:
    (made, *_) = prompts()
    with serving(made, engine=Engine(blind(tiny(), " dull"))) as batcher:
        good, bad = asyncio.run(batcher.classify(made.digest, [{"text": "a film"}, {"text": "very dull"}], 30))
    assert isinstance(good, dict)
    assert isinstance(bad, ArtifactError)
    assert "no finite numbers" in str(bad)


def test_an_error_that_is_not_ours_tells_the_place_and_no_text() -> None:
    (made, *_) = prompts()

    class Broken(Engine):
        def score(self, texts: Sequence[Rendered]) -> list[torch.Tensor]:
            if any(len(text.ids) > 12 for text in texts):
                raise RuntimeError("secret text")
            return super().score(texts)

    with serving(made, engine=Broken(tiny())) as batcher:
        good, bad = asyncio.run(batcher.classify(made.digest, [{"text": "a"}, {"text": "good film " * 8}], 30))
    assert isinstance(good, dict)
    assert "RuntimeError" in str(bad)
    assert "secret" not in str(bad)


def test_caches_that_the_next_rows_lack_are_computed_in_the_same_pass() -> None:
    passes = list[int]()

    class Counting(Engine):
        def _compute_caches(self, digests: Sequence[str]) -> dict[str, PrefixCache]:
            passes.append(len(digests))
            return super()._compute_caches(digests)

    engine = Counting(tiny())
    made = [artifact(tiny(), embeddings(tiny(), " yes"), task=f"task-{number}") for number in range(40)]

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = [ask(batcher, one, "the good film and the awful plot " * 5) for one in made]
            await wait_for(batcher, len(made))
            for one in made[1:]:
                engine.caches.drop(one.digest)
        passes.clear()
        await asyncio.gather(*asked)

    with serving(*made, engine=engine) as batcher:
        asyncio.run(run(batcher))
    assert passes == [39]


def test_a_prompt_that_is_not_held_is_not_found() -> None:
    made, other, *_ = prompts()
    with serving(made) as batcher, pytest.raises(NotFound, match=other.digest[:12]):
        asyncio.run(batcher.classify(other.digest, [{"text": "a"}], 1))


def test_one_request_may_fill_the_whole_queue() -> None:
    hot, *_ = prompts()
    with serving(hot, waiting=3) as batcher:
        assert len(asyncio.run(batcher.classify(hot.digest, [{"text": "a"}] * 3, 60))) == 3


def test_one_task_alone_fills_half_of_the_queue() -> None:
    hot, cold, *_ = prompts()

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = [ask(batcher, hot, "a") for _ in range(20)]
            await wait_for(batcher, 5)
            refused = [one for one in asked if one.done()]
            assert len(asked) - len(refused) == 5
            for one in refused:
                with pytest.raises(Overloaded) as found:
                    one.result()
                assert 0 < found.value.retry_after <= 60
            others = [ask(batcher, cold, "a") for _ in range(2)]
            await wait_for(batcher, 7)
            assert not any(one.done() for one in others)
        await asyncio.gather(*others, *set(asked) - set(refused))

    with serving(hot, cold, waiting=10) as batcher:
        asyncio.run(run(batcher))


def test_more_texts_than_ever_fit_are_refused_for_good() -> None:
    (made, *_) = prompts()
    with serving(made, waiting=3) as batcher, pytest.raises(DataError, match="at most 3"):
        asyncio.run(batcher.classify(made.digest, [{"text": "a"}] * 4, 1))


def test_a_request_times_out_and_leaves_the_queue() -> None:
    (made, *_) = prompts()

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            with pytest.raises(TimedOut, match=r"within 0\.1 s"):
                await ask(batcher, made, "a", "b", patience=0.1)
            assert len(batcher._worker._queries) == 0
        assert isinstance((await ask(batcher, made, "a"))[0], dict)

    with serving(made) as batcher:
        asyncio.run(run(batcher))
        assert batcher.observe().texts == 1


def test_a_request_whose_client_left_is_not_computed() -> None:
    (made, *_) = prompts()

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = ask(batcher, made, "a", "b")
            await wait_for(batcher, 2)
            asked.cancel()
            await asyncio.wait([asked])
            assert len(batcher._worker._queries) == 0
        await ask(batcher, made, "a")

    with serving(made) as batcher:
        asyncio.run(run(batcher))
        assert batcher.observe().texts == 1
        assert batcher.observe().waiting == 0


def test_a_dropped_prompt_answers_what_it_began_and_then_goes() -> None:
    (made, *_) = prompts()
    engine = Engine(tiny())

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = ask(batcher, made, "a")
            await wait_for(batcher, 1)
            batcher.drop(made.digest)
            with pytest.raises(NotFound):
                await ask(batcher, made, "a")
        assert isinstance((await asked)[0], dict)

    with serving(made, engine=engine) as batcher:
        asyncio.run(run(batcher))
        until = time.monotonic() + 10
        while made.digest in engine._loaded and time.monotonic() < until:
            time.sleep(0.01)
        assert made.digest not in engine._loaded
        batcher.hold(made)
        assert isinstance(asyncio.run(batcher.classify(made.digest, [{"text": "a"}], 30))[0], dict)


def test_a_prompt_without_a_finite_answer_is_not_held() -> None:
    (made, *_) = prompts()
    with serving(engine=Engine(blind(tiny(), "a"))) as batcher:
        with pytest.raises(ArtifactError, match="no finite number"):
            batcher.hold(made)
        with pytest.raises(NotFound):
            asyncio.run(batcher.classify(made.digest, [{"text": "a"}], 1))


def test_a_prompt_whose_first_token_is_no_number_is_not_held_either() -> None:
    made = artifact(tiny(), embeddings(tiny()), labels={}, generate=Generation(max_new_tokens=4))
    with serving(engine=Engine(blind(tiny(), "a"))) as batcher, pytest.raises(ArtifactError, match="no finite number"):
        batcher.hold(made)


def test_a_prompt_that_cannot_be_held_leaves_nothing_in_memory() -> None:
    (made, *_) = prompts()
    engine = Engine(blind(tiny(), "a"))
    with serving(engine=engine) as batcher:
        with pytest.raises(ArtifactError):
            batcher.hold(made)
        batcher._worker.submit(lambda: None).result(10)  # behind what unloads it
        assert (list(engine._loaded), engine.caches.size) == ([], 0)


@pytest.mark.parametrize(("rate", "seconds"), [(1e-6, 60.0), (1e6, 0.5)])
def test_who_is_refused_is_told_to_wait_neither_forever_nor_no_time(rate: float, seconds: float) -> None:
    (made, *_) = prompts()

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = ask(batcher, made, "a")
            await wait_for(batcher, 1)
            with pytest.raises(Overloaded) as refused:
                await ask(batcher, made, "a")
        assert refused.value.retry_after == seconds
        await asked

    with serving(made, waiting=2) as batcher:
        batcher._worker.rate = rate
        asyncio.run(run(batcher))


def test_a_drain_answers_what_waits_and_takes_nothing_more() -> None:
    (made, *_) = prompts()

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = ask(batcher, made, *TEXTS)
            await wait_for(batcher, 5)
            with pytest.raises(TimedOut, match="5 texts still have no answer"):
                await batcher.drain(0.1)
        await batcher.drain(30)
        assert len(asked.result()) == 5
        with pytest.raises(Overloaded, match="about to end"):
            await ask(batcher, made, "a")

    with serving(made) as batcher:
        asyncio.run(run(batcher))


def test_a_batcher_that_is_closed_refuses_what_waits() -> None:
    (made, *_) = prompts()

    async def run(batcher: Batcher) -> None:
        with busy(batcher):
            asked = ask(batcher, made, "a")
            await wait_for(batcher, 1)
            batcher._worker._closed = True
        assert isinstance((await asked)[0], Overloaded)

    with serving(made) as batcher:
        asyncio.run(run(batcher))
    assert not batcher.observe().alive
