"""How probes encode a text: as it stands behind the prompt, and the same text for the base without it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from ptpipeline.data.rows import Row
from ptpipeline.errors import ContextError
from ptpipeline.evaluation.probes.likelihood import bare_likelihoods
from ptpipeline.evaluation.probes.queries import Known, answer_rows, ask, encode_bare, encode_prompted, fits
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.records.prompts import Generation
from ptpipeline.serving.engine import Engine, Question
from tests.evaluation.probed import NUMBERS, artifact, rows, tiny, writing
from tests.models.families import family
from tests.numbers import number_tokenizer

BOS = 3


def made(**changes: Any) -> tuple[Engine, Artifact]:
    """A prompt behind which three tokens fit, over a base whose texts begin with BOS."""
    base: FrozenBase = replace(family("llama"), tokenizer=number_tokenizer(begin=BOS))
    return Engine(base), artifact(
        base, torch.zeros(2, 32), **{"template": "{text}", "labels": NUMBERS, "max_input_tokens": 3} | changes
    )


def test_behind_bos_the_same_text_has_one_token_more_without_the_prompt() -> None:
    engine, after = made(placement="after_bos")
    assert encode_prompted(engine, after, {"text": "5 6 7"}) == [5, 6, 7]
    assert encode_bare(engine, after, {"text": "5 6 7"}) == [BOS, 5, 6, 7]
    with pytest.raises(ContextError):
        encode_bare(engine, after, {"text": "5 6 7 8"})


def test_before_bos_both_texts_are_the_same() -> None:
    engine, before = made(placement="before_bos")
    assert (
        encode_prompted(engine, before, {"text": "5 6"}) == encode_bare(engine, before, {"text": "5 6"}) == [BOS, 5, 6]
    )
    assert [fits(engine, before, {"text": text}) for text in ("5 6", "5 6 7")] == [True, False]


@pytest.mark.parametrize("kind", [{}, {"labels": {}, "generate": Generation(max_new_tokens=4)}], ids=["label", "text"])
def test_an_answer_on_the_bare_base_is_as_likely_wherever_the_prompt_stands(kind: dict[str, Any]) -> None:
    answer = "41 42" if kind else next(iter(NUMBERS))
    likelihoods = []
    for placement in ("before_bos", "after_bos"):
        engine, prompt = made(placement=placement, **kind)
        engine.load(prompt)
        likelihoods += bare_likelihoods(engine, prompt, [Row("1", {"text": "5 6"}, answer)])
    assert likelihoods[0] == likelihoods[1] < 0


def test_what_is_cut_behind_the_prompt_is_cut_without_it() -> None:
    engine, cut = made(placement="after_bos", too_long="truncate_end")
    assert encode_prompted(engine, cut, {"text": "5 6 7 8 9"}) == [5, 6, 7]
    assert encode_bare(engine, cut, {"text": "5 6 7 8 9"}) == [BOS, 5, 6, 7]
    assert fits(engine, cut, {"text": "5 6 7 8 9"})


class Loud(Engine):
    """Writes large letters between blanks."""

    def generate(self, questions: Sequence[Question]) -> list[str]:
        return ["  A  Good\n" for _ in questions]


def test_generated_texts_are_compared_without_case_and_white_space() -> None:
    row, (_, prompt) = rows(1)[0], writing(tiny())
    engine = Loud(tiny())
    engine.load(prompt)
    assert ask(engine, prompt, [row.fields]) == ["a good"]
    assert answer_rows(engine, prompt, [row], Known(texts={row.id: "Not \n good"})) == ["not good"]
    assert answer_rows(engine, prompt, [row], Known()) == ["a good"]
