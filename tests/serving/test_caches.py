"""Prefix caches in memory: bounded in bytes, those used last stay, and what was dropped is computed again."""

import gc
import tracemalloc
from dataclasses import replace

import pytest
import torch

from ptpipeline.errors import NotFound
from ptpipeline.models.inputs import KeyValues, PrefixCache
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.serving.caches import PrefixCaches, copy_entries, count_bytes
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import artifact, embeddings, fields, tiny
from tests.models.families import SEQ2SEQ_FAMILIES, family, seq2seq_family
from tests.numbers import number_tokenizer

TEXTS = ["the good film", "awful plot and story", "a scene", "very bad"]


def cache(width: int = 4) -> PrefixCache:
    """A cache of one prompt with 2 tensors of 8 bytes a slot."""
    return PrefixCache((torch.zeros(1, 1, width, 2), torch.ones(1, 1, width, 2)), torch.tensor([width]))


def test_the_cache_used_last_stays() -> None:
    caches = PrefixCaches(2 * count_bytes(cache()))
    caches.keep("a", cache())
    caches.keep("b", cache())
    assert caches.find("a") is not None
    caches.keep("c", cache())
    assert [name for name in "abc" if name in caches] == ["a", "c"]


def test_a_cache_that_somebody_waits_for_stays_longer() -> None:
    caches = PrefixCaches(2 * count_bytes(cache()))
    caches.is_wanted = {"a", "c", "d"}.__contains__
    for name in "abc":
        caches.keep(name, cache())
    assert [name for name in "abc" if name in caches] == ["a", "c"]
    caches.keep("d", cache())
    assert [name for name in "abcd" if name in caches] == ["c", "d"]


def test_caches_never_hold_more_than_the_bound() -> None:
    bound = 3 * count_bytes(cache()) + 1
    caches = PrefixCaches(bound)
    for number in range(20):
        caches.keep(str(number % 7), cache(1 + number % 4))
        assert caches.size == sum(count_bytes(one) for one in caches._kept.values()) <= bound
    caches.keep("large", cache(100))
    assert "large" not in caches
    assert caches.size == 0


def test_hits_and_misses_are_counted() -> None:
    caches = PrefixCaches()
    caches.find("a")
    caches.keep("a", cache())
    caches.find("a")
    assert (caches.hits, caches.misses) == (1, 1)


def test_an_entry_is_copied_out_of_its_pass() -> None:
    whole = torch.randn(2, 3, 5, 4).transpose(0, 1)  # [K=3, kv=2, P=5, d=4]
    copied = copy_entries(PrefixCache((whole,), torch.tensor([5, 2, 3])), 1, 2)
    torch.testing.assert_close(copied.tensors[0], whole[1:3, :, 2:])
    assert copied.lengths.tolist() == [2, 3]
    assert copied.tensors[0].untyped_storage().nbytes() == copied.tensors[0].nbytes


def prompts() -> list[tuple[Artifact, list[Artifact]]]:
    """A prompt of each kind and of several lengths, each with its members."""
    base = tiny()
    start = compute_activations(base, embeddings(base, " the good film"))
    keys = KeyValues(start.key.detach(), start.value.detach())
    members = [artifact(base, embeddings(base, word)) for word in (" yes", " bad plot")]
    whole = pack_ensemble(members, "average", fields(base) | {"method": "ensemble"})
    singles = [artifact(base, embeddings(base, word)) for word in (" yes", " the film was", " no")]
    return [*((one, []) for one in singles), (artifact(base, keys, method="prefix"), []), (whole, members)]


@pytest.mark.parametrize("bound", [0, 3000, 2**30])
def test_mixed_prompts_answer_as_each_alone_whatever_stays_in_memory(bound: int) -> None:
    mixed = Engine(tiny(), bound)
    made = prompts()
    for one, members in made:
        mixed.load(one, members)
    asked = [Question(made[place % 5][0].digest, {"text": TEXTS[place % 4]}) for place in range(40)]
    for question, scores in zip(asked, mixed.score_labels(asked), strict=True):
        alone = Engine(tiny())
        alone.load(*next(one for one in made if one[0].digest == question.digest))
        torch.testing.assert_close(scores, alone.score_labels([question])[0], rtol=0, atol=1e-4)
    assert mixed.caches.size <= bound


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "t5 relu tied"])  # a window; general passes; an encoder-decoder
def test_mixed_prompts_of_other_bases_answer_as_each_alone(name: str) -> None:
    base = replace((seq2seq_family if name in SEQ2SEQ_FAMILIES else family)(name), tokenizer=number_tokenizer())
    torch.manual_seed(3)
    made = [
        artifact(base, torch.randn(length, 32), template="{text} 7", labels={"negative": "41 9", "positive": "42"})
        for length in (1, 9, 4)
    ]
    mixed = Engine(base, 2 * 9 * 32 * 8 * 6)
    for one in made:
        mixed.load(one)
    texts = ["5 8 30", "11", "60 2 17 40 9 3 8 22 90 4 5 6 7"]
    asked = [Question(made[place % 3].digest, {"text": texts[place // 3]}) for place in range(9)]
    for question, scores in zip(asked, mixed.score_labels(asked), strict=True):
        alone = Engine(base)
        alone.load(next(one for one in made if one.digest == question.digest))
        torch.testing.assert_close(scores, alone.score_labels([question])[0], rtol=0, atol=1e-5)


def test_the_tokens_that_are_read_are_those_of_each_prompt_with_the_text_behind_it() -> None:
    engine = Engine(tiny())
    for one, members in prompts():
        engine.load(one, members)
        text, lengths = engine.render(Question(one.digest, {"text": TEXTS[1]})), engine.find_cache(one.digest).lengths
        assert text.ids == tiny().encode(f"{TEXTS[1]}\nSentiment:", True)
        assert engine.count_tokens(text) == int(lengths.sum()) + len(lengths) * len(text.ids)
    assert {len(engine.find(one.digest).prompts) for one, _ in prompts()} > {1}


def test_more_prompts_than_are_stacked_answer_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, made = Engine(tiny()), prompts()
    for one, members in made:
        engine.load(one, members)
    asked = [Question(made[place % 5][0].digest, {"text": TEXTS[place % 4]}) for place in range(20)]
    expected = engine.score_labels(asked)
    monkeypatch.setattr("ptpipeline.serving.engine.STACKED_SLOTS", 4)
    torch.testing.assert_close(engine.score_labels(asked), expected, rtol=0, atol=1e-4)


def test_a_cache_in_memory_is_not_computed_again() -> None:
    engine, (made, _) = Engine(tiny()), prompts()[0]
    engine.load(made)
    engine.score_labels([Question(made.digest, {"text": text}) for text in TEXTS])
    engine.score_labels([Question(made.digest, {"text": TEXTS[0]})])
    assert (engine.caches.hits, engine.caches.misses) == (2, 1)


def test_a_prompt_that_was_unloaded_is_unknown() -> None:
    engine, (made, _) = Engine(tiny()), prompts()[0]
    engine.load(made)
    engine.unload(made.digest)
    engine.unload(made.digest)
    with pytest.raises(NotFound, match=made.digest[:12]):
        engine.score_labels([Question(made.digest, {"text": "a"})])
    assert engine.caches.size == 0


def test_a_thousand_prompts_stay_while_their_caches_keep_the_bound() -> None:
    engine, digests = Engine(tiny(), 20_000), list[str]()
    for number in range(1024):
        made = artifact(tiny(), embeddings(tiny(), " yes"), seed=number)
        engine.add(made)
        digests.append(made.digest)
    first = engine.score_labels([Question(digest, {"text": "a film"}) for digest in digests])
    assert engine.caches.size <= 20_000
    again = engine.score_labels([Question(digest, {"text": "a film"}) for digest in reversed(digests)])
    torch.testing.assert_close(first, again[::-1], rtol=0, atol=1e-4)


def test_a_loaded_prompt_takes_little_more_memory_than_its_tensors() -> None:
    engine = Engine(tiny())
    bodies = [artifact(tiny(), embeddings(tiny(), " yes"), seed=number) for number in range(100)]
    engine.add(bodies.pop())
    texts = [one.manifest.model_dump_json() for one in bodies]
    tracemalloc.start()
    for text, one in zip(texts, bodies, strict=True):
        engine.add(Artifact(PromptManifest.model_validate_json(text), bytes(bytearray(one.tensors))))
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        used / len(bodies) - len(bodies[0].tensors) < 16_000
    )  # 15% of 135M weights in 16 bits is 40 kB for each of 1,024
