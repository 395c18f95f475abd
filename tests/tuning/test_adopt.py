"""A prompt of somebody else as the task would have made it, and on a base of its own kind alone."""

import pytest
import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.prompts.peft import ForeignPrompt
from ptpipeline.task.recipe import Ensemble, Tune
from ptpipeline.tuning.adopt import _adapt_recipe, _check_base
from tests.models.families import family, seq2seq_family


def foreign(**changed: object) -> ForeignPrompt:
    return ForeignPrompt(torch.zeros(3, 32), "prompt", "before_bos", None, None, [])._replace(**changed)  # type: ignore[arg-type]


def test_where_a_prompt_stands_is_what_its_file_says_else_what_the_task_says() -> None:
    tune = Tune(placement="after_bos")
    assert _adapt_recipe(tune, foreign()).placement == "before_bos"
    assert _adapt_recipe(tune, foreign(placement=None)).placement == "after_bos"


@pytest.mark.parametrize("tune", [Tune(method="ensemble", ensemble=Ensemble(members=2)), Tune(search={"seed": [1, 2]})])
def test_an_import_is_one_prompt_whatever_the_task_trains(tune: Tune) -> None:
    adapted = _adapt_recipe(tune, foreign(method="p_tuning"))
    assert (adapted.method, adapted.num_virtual_tokens, adapted.variants()) == ("p_tuning", 3, [adapted])


@pytest.mark.parametrize(("encoder_decoder", "kind"), [(True, "a causal model"), (False, "an encoder-decoder")])
def test_a_prompt_fits_only_a_base_of_its_kind(encoder_decoder: bool, kind: str) -> None:
    bases = [family("llama", torch.float32), seq2seq_family("t5 relu tied", torch.float32)]
    own, other = bases[encoder_decoder], bases[not encoder_decoder]
    for stated in (encoder_decoder, None):
        _check_base(own, foreign(encoder_decoder=stated))
    with pytest.raises(BaseModelError, match=f"is {kind} "):
        _check_base(other, foreign(encoder_decoder=encoder_decoder))
