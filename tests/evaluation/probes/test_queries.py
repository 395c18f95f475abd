"""How probes encode a text: as it stands behind the prompt, and the same text for the base without it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ptpipeline.errors import ContextError
from ptpipeline.evaluation.probes.queries import encode_bare, encode_prompted, fits
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.serving.engine import Engine
from tests.evaluation.probed import NUMBERS, artifact
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


def test_what_is_cut_behind_the_prompt_is_cut_without_it() -> None:
    engine, cut = made(placement="after_bos", too_long="truncate_end")
    assert encode_prompted(engine, cut, {"text": "5 6 7 8 9"}) == [5, 6, 7]
    assert encode_bare(engine, cut, {"text": "5 6 7 8 9"}) == [BOS, 5, 6, 7]
    assert fits(engine, cut, {"text": "5 6 7 8 9"})
