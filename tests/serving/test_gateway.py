"""A gateway to a server that speaks vLLM's format: it answers as the engine does, or says in one sentence why not."""

import asyncio
import functools
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptpipeline.errors import (
    ContextError,
    DataError,
    NotFound,
    Overloaded,
    PtpError,
    TimedOut,
)
from ptpipeline.models.base import prepare_base
from ptpipeline.models.load import load_vocabulary
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.prompts import Generation, Scoring
from ptpipeline.serving import gateway as module
from ptpipeline.serving.answerer import Piece, Sampling
from ptpipeline.serving.decoding import Decoder
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.gateway import Gateway
from ptpipeline.settings import Settings
from tests.evaluation.probed import artifact, copied, embeddings, fields, tiny
from tests.serving.vllm_server import Vllm, running_vllm
from tests.tiny import tiny_project

TEXTS = ["the good film", "awful plot and story", "a scene", ""]
LONG = {"negative": " bad and awful", "positive": " good and lovely", "mixed": " good or bad"}
WRITING: dict[str, Any] = {"labels": {}, "generate": Generation(max_new_tokens=12)}


@functools.cache
def vocabulary() -> Vocabulary:
    """What a gateway loads of the tiny base."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = tiny_project(Path(folder) / "project")
        return load_vocabulary(prepare_base("tiny", Settings(home=Path(folder) / "home", tasks=tasks)))


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    with running_vllm(tiny()) as server:
        yield server


def made(word: str = " yes", **changed: Any) -> Artifact:
    return artifact(tiny(), embeddings(tiny(), word), **changed)


def ask(
    vllm: Vllm,
    use: Callable[[Gateway], Coroutine[Any, Any, Any]],
    *held: Artifact,
    members: Sequence[Artifact] = (),
    key: str | None = None,
) -> Any:
    """What `use` returns of a gateway that holds these prompts."""
    opened = Gateway(vocabulary(), vllm.url, key)
    for one in held:
        opened.hold(one, members)

    async def run() -> Any:
        try:
            return await use(opened)
        finally:
            await opened.drain(5.0)

    return asyncio.run(run())


def classified(vllm: Vllm, one: Artifact, texts: Sequence[str] = TEXTS, members: Sequence[Artifact] = ()) -> Any:
    asked = [{"text": text} for text in texts]
    return ask(vllm, lambda opened: opened.classify(one.digest, asked, 30.0), one, members=members)


def by_engine(one: Artifact, texts: Sequence[str] = TEXTS, members: Sequence[Artifact] = ()) -> list[dict[str, float]]:
    engine = Engine(tiny())
    engine.load(one, members)
    scores = engine.score_labels([Question(one.digest, {"text": text}) for text in texts])
    return [dict(zip(one.manifest.labels, score.softmax(0).tolist(), strict=True)) for score in scores]


def pieces(vllm: Vllm, one: Artifact, text: str, sampling: Sampling, patience: float = 30.0) -> list[Piece]:
    async def collect(opened: Gateway) -> list[Piece]:
        return [piece async for piece in opened.generate(one.digest, {"text": text}, sampling, patience)]

    found: list[Piece] = ask(vllm, collect, one)
    return found


def written(found: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in found)


def refusal(vllm: Vllm, one: Artifact, key: str | None = None) -> PtpError:
    """Why a prompt cannot be held."""
    with pytest.raises(PtpError) as caught:
        Gateway(vocabulary(), vllm.url, key).hold(one)
    return caught.value


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"labels": LONG},
        {"labels": LONG, "scoring": Scoring(length_normalised=True)},
        {"labels": LONG, "scoring": Scoring(calibrated=True)},
        {"scoring": Scoring(calibrated=True, length_normalised=True)},
    ],
    ids=["one token", "several tokens", "normalised", "calibrated", "both"],
)
def test_labels_have_the_probabilities_that_the_engine_gives(vllm: Vllm, changed: dict[str, Any]) -> None:
    one = made(**changed)
    for found, expected in zip(classified(vllm, one), by_engine(one), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
        assert list(found) == sorted(found, key=lambda label: -found[label])


@pytest.mark.parametrize("combine", ["average", "vote"])
def test_an_ensemble_answers_as_in_the_engine(vllm: Vllm, combine: Any) -> None:
    members = [made(word, labels=LONG) for word in (" yes", " bad", " the film")]
    whole = pack_ensemble(members, combine, fields(tiny()) | {"method": "ensemble", "labels": LONG})
    for found, expected in zip(classified(vllm, whole, TEXTS, members), by_engine(whole, TEXTS, members), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_tokens_that_were_read_are_counted_as_in_the_engine(vllm: Vllm) -> None:
    one, counted = made(), list[int]()
    asked = [*({"text": text} for text in TEXTS), {"text": "plot " * 500}]
    ask(vllm, lambda opened: opened.classify(one.digest, asked, 30.0, counted.append), one)
    engine = Engine(tiny())
    engine.load(one)
    assert sum(counted) == sum(
        engine.count_tokens(engine.render(Question(one.digest, {"text": text}))) for text in TEXTS
    )


def test_more_tokens_than_a_request_may_name_are_asked_in_parts(vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptpipeline.serving.vllm.MOST_TOKEN_IDS", 1)
    one = made()
    assert classified(vllm, one, TEXTS[:1])[0] == pytest.approx(by_engine(one, TEXTS[:1])[0], abs=1e-4)
    assert all(len(body["logprob_token_ids"]) == 1 for body in vllm.asked)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_the_one_that_the_engine_writes(vllm: Vllm, text: str) -> None:
    one = made(**WRITING)
    engine = Engine(tiny())
    engine.load(one)
    found = pieces(vllm, one, text, Sampling())
    assert written(found) == engine.generate([Question(one.digest, {"text": text})])[0]
    assert [piece.finish is None for piece in found] == [True] * (len(found) - 1) + [False]
    assert [piece.tokens for piece in found] == sorted(piece.tokens for piece in found)
    prompt, rendered = embeddings(tiny()), tiny().encode(f"{text}\nSentiment:", True)
    assert {piece.read for piece in found} == {len(prompt) + len(rendered)}


def test_a_text_ends_at_its_limit_or_before_a_stop_string(vllm: Vllm) -> None:
    one = made(" the film", **WRITING)
    whole = pieces(vllm, one, "a scene", Sampling(max_tokens=8))
    assert (whole[-1].tokens, whole[-1].finish) == (8, "length")
    stop = written(whole)[2:5]
    cut = pieces(vllm, one, "a scene", Sampling(max_tokens=8, stop=(stop,)))
    assert (written(cut), cut[-1].finish) == (written(whole).partition(stop)[0].rstrip(), "stop")


def by_decoder(one: Artifact, text: str) -> list[Piece]:
    decoder, engine = Decoder(tiny()), Engine(tiny())
    engine.load(one)
    ids = engine.render(Question(one.digest, {"text": text})).ids
    decoder.join(engine.find_cache(one.digest), ids, Sampling(), WRITING["generate"].max_new_tokens)
    found = list[Piece]()
    while len(decoder):
        found += [told.outcome for told in decoder.step() if isinstance(told.outcome, Piece)]
    return found


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_the_pieces_are_those_of_the_decoder_on_this_machine(
    vllm: Vllm, monkeypatch: pytest.MonkeyPatch, finish: str
) -> None:
    one = made(" the film", **WRITING)
    if finish == "stop":  # the last token of the text ends it from now on
        whole = tiny().encode(written(by_decoder(one, "a scene")), False)
        monkeypatch.setattr(Vocabulary, "end_tokens", frozenset(whole[-1:]))
    found, expected = pieces(vllm, one, "a scene", Sampling()), by_decoder(one, "a scene")
    assert written(found) == written(expected)
    assert found[-1]._replace(text="") == expected[-1]._replace(text="")
    assert found[-1].finish == finish


def test_a_seed_gives_the_same_text_again(vllm: Vllm) -> None:
    one = made(**WRITING)
    texts = [
        written(pieces(vllm, one, "a scene", Sampling(temperature=1.5, top_p=0.9, seed=seed))) for seed in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_prompt_behind_bos_is_sent_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base = copied(tiny())
    given, encode = vocabulary(), type(tiny()).encode
    behind = lambda self, text, special: [1] * special + encode(self, text, special)  # noqa: E731
    monkeypatch.setattr(Vocabulary, "encode", behind)
    for one in (base, given):
        one.__dict__.pop("bos", None)
    prompt = artifact(base, embeddings(tiny()), placement="after_bos", labels=LONG)
    assert given.bos == 1
    engine = Engine(base)
    engine.load(prompt)
    expected = engine.score_labels([Question(prompt.digest, {"text": "a scene"})])[0].softmax(0).tolist()
    with running_vllm(base) as server:
        found = classified(server, prompt, ["a scene"])[0]
        assert found == pytest.approx(dict(zip(LONG, expected, strict=True)), abs=1e-4)
    given.__dict__.pop("bos", None)


def test_what_is_sent_is_a_tensor_in_the_smallest_type_that_is_exact(vllm: Vllm) -> None:
    ids = tiny().encode("a scene\nSentiment:", True)
    halved = replace(vocabulary(), model=copied(tiny()).model.half())
    assert Gateway(halved, vllm.url)._join(torch.zeros(2, 64, dtype=torch.float16), ids).dtype == torch.float16
    assert Gateway(halved, vllm.url)._join(torch.zeros(2, 64, dtype=torch.bfloat16), ids).dtype == torch.float32


# ---------------------------------------------------------------- one text alone


def test_one_bad_row_fails_alone(vllm: Vllm) -> None:
    one = made(max_input_tokens=12)
    asked: list[dict[str, str]] = [{"text": "good"}, {"txt": "bad"}, {"text": "the film " * 30}, {"text": "bad"}]
    found = ask(vllm, lambda opened: opened.classify(one.digest, asked, 30.0), one)
    assert [type(answer) for answer in found] == [dict, DataError, ContextError, dict]
    assert "text 2 for movies: the field 'text' is missing" in str(found[1])


def test_a_text_that_fits_the_base_but_not_vllm_is_refused_here() -> None:
    one = made(max_input_tokens=200)
    with running_vllm(tiny(), context=40) as server:
        found = classified(server, one, ["good", "the film " * 30])
        assert isinstance(found[1], ContextError)
        assert "may have 40 tokens, as vLLM was started" in str(found[1])
        assert all(len(body.get("prompt_embeds", "")) < 40 * 64 * 8 for body in server.asked)  # characters of base64


@pytest.mark.parametrize(("spare", "kind"), [(0, dict), (-1, ContextError)])
def test_a_text_may_fill_vllm_to_its_last_token(spare: int, kind: type) -> None:
    one, text = made(), "the good film " * 20  # longer than the first questions
    needed = len(embeddings(tiny())) + len(tiny().encode(f"{text}\nSentiment:", True)) + 1  # and the label
    with running_vllm(tiny(), context=needed + spare) as server:
        [found] = classified(server, one, [text])
    assert isinstance(found, kind)


def test_a_text_longer_than_the_context_is_not_generated(vllm: Vllm) -> None:
    with pytest.raises(ContextError, match="ask for fewer tokens"):
        pieces(vllm, made(**WRITING), "a scene", Sampling(max_tokens=500))


def test_a_prompt_answers_only_what_it_was_trained_for(vllm: Vllm) -> None:
    labels, writing = made(), made(**WRITING)
    with pytest.raises(DataError, match="it has no labels to rank"):
        ask(vllm, lambda opened: opened.classify(writing.digest, [{"text": "a"}], 5.0), writing)
    with pytest.raises(DataError, match="it generates no text"):
        pieces(vllm, labels, "a", Sampling())


def test_a_prompt_that_was_dropped_is_not_found(vllm: Vllm) -> None:
    one = made()

    async def use(opened: Gateway) -> None:
        opened.drop(one.digest)
        await opened.classify(one.digest, [{"text": "a"}], 5.0)

    with pytest.raises(NotFound, match="is held here"):
        ask(vllm, use, one)


# ---------------------------------------------------------------- time, and too much


def test_an_answer_that_takes_too_long_is_timed_out(vllm: Vllm) -> None:
    one, writing = made(), made(**WRITING)

    async def use(opened: Gateway) -> None:
        vllm.delay = 0.5
        for ask_it in (opened.classify(one.digest, [{"text": "a"}], 0.1), anext(slow(opened))):
            with pytest.raises(TimedOut, match=r"within 0\.1 s"):
                await ask_it

    def slow(opened: Gateway) -> Any:
        return opened.generate(writing.digest, {"text": "a"}, Sampling(), 0.1)

    ask(vllm, use, one, writing)


def test_a_reader_who_leaves_ends_the_generation_in_vllm(vllm: Vllm) -> None:
    one = made(" the film", labels={}, generate=Generation(max_new_tokens=100))

    async def use(opened: Gateway) -> None:
        vllm.delay = 0.02
        reading = opened.generate(one.digest, {"text": "a"}, Sampling(), 10.0)
        await anext(reading)
        await reading.aclose()

    ask(vllm, use, one)
    assert vllm.aborted.wait(10)


def test_more_texts_than_may_wait_are_refused(vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEXTS", 4)
    hot, cold = made(), made(task="cold")

    async def use(opened: Gateway) -> Any:
        asked = [opened.classify(one.digest, [{"text": "a"}] * 2, 30.0) for one in (hot, hot, cold)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = ask(vllm, use, hot, cold)
    assert [type(answer) for answer in first + third] == [dict] * 4
    assert isinstance(second, Overloaded)
    assert second.retry_after > 0


def test_a_server_that_ends_answers_what_it_took_and_takes_no_more(vllm: Vllm) -> None:
    one = made()

    async def use(opened: Gateway) -> Any:
        taken = asyncio.ensure_future(opened.classify(one.digest, [{"text": "a"}], 30.0))
        await asyncio.sleep(0)
        assert opened.observe().waiting == 1
        await opened.drain(30.0)
        with pytest.raises(Overloaded, match="about to end"):
            await opened.classify(one.digest, [{"text": "a"}], 30.0)
        return await taken

    assert [type(answer) for answer in ask(vllm, use, one)] == [dict]
