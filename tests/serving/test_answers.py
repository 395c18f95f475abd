"""Answers of mixed kinds in one batch are those of each question alone."""

import torch

from ptpipeline.data.tokens import LabelTokens
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import PrefixCache
from ptpipeline.serving.answers import Opening, answer, generate
from ptpipeline.serving.ranking import Query
from tests.models.families import family
from tests.tuning.jobs import words

LABELS = LabelTokens(("a", "b"), ((11,), (12, 13)))


def prompts() -> list[torch.Tensor]:
    torch.manual_seed(4)
    return [torch.randn(p, 32, dtype=torch.float64) * 2 for p in (2, 6)]


def prompted(name: str) -> tuple[FrozenBase, PrefixCache]:
    base = words(family(name))
    base.model.generation_config.eos_token_id = None
    return base, base.compute_prefix(prompts())


def openings() -> list[Opening]:
    return [
        Opening(list(range(5, 5 + length)), limit, index % 2)
        for index, (length, limit) in enumerate([(3, 4), (9, 6), (1, 6), (5, 2)])
    ]


def test_texts_generated_together_are_those_of_each_alone_behind_its_own_prompt() -> None:
    base, cache = prompted("llama")
    together = generate(base, cache, openings())
    assert together == [
        generate(base, base.compute_prefix([prompts()[one.prompt]]), [one._replace(prompt=0)])[0] for one in openings()
    ]
    assert [len(text.split()) for text in together] == [4, 6, 6, 2]


def test_many_texts_are_decoded_in_several_groups() -> None:
    base, cache = prompted("llama")
    long = [Opening([5] * 60, 40, 0)] * 50
    assert generate(base, cache, [*long, *openings()])[-4:] == generate(base, cache, openings())


def test_labels_and_texts_are_answered_in_the_order_asked() -> None:
    base, cache = prompted("llama")
    asked = [openings()[0], Query([5, 6, 7], LABELS, 1), openings()[1], Query([8], LABELS, 0)]
    assert answer(base, cache, asked) == [answer(base, cache, [one])[0] for one in asked]


def test_nothing_asked_nothing_answered() -> None:
    base, cache = prompted("llama")
    assert (answer(base, cache, []), generate(base, None, [])) == ([], [])
