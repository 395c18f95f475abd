"""A prompt of somebody else as the task would have made it, and on a base of its own kind alone."""

from collections.abc import Callable

import pytest
import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.models.inputs import KeyValues
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.peft import ForeignPrompt
from ptpipeline.records.prompts import Generation, Scoring
from ptpipeline.task.recipe import Ensemble, Tune
from ptpipeline.tuning.adopt import _adapt_recipe, _check_base, _import_key
from ptpipeline.tuning.member import Job
from tests.models.families import family, seq2seq_family
from tests.tuning.jobs import job


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


@pytest.mark.parametrize("width", [16, 64])
def test_a_prompt_of_another_width_than_the_base_is_refused(width: int) -> None:
    with pytest.raises(BaseModelError, match=f"the prompt is {width} wide, base model .* is 32 wide"):
        _check_base(family("llama", torch.float32), foreign(prompt=torch.zeros(3, width)))


def test_a_prefix_of_other_layers_or_heads_than_the_base_is_refused() -> None:
    base = family("llama", torch.float32)
    prefix = compute_activations(base, base.embed(torch.tensor([1, 2, 3])).detach())
    _check_base(base, foreign(prompt=prefix, method="prefix"))
    for other in (KeyValues(prefix.key[:1], prefix.value[:1]), KeyValues(prefix.key[:, :1], prefix.value[:, :1])):
        with pytest.raises(BaseModelError):
            _check_base(base, foreign(prompt=other, method="prefix"))


CHANGES: dict[str, Callable[[Job], Job]] = {
    "a value": lambda one: one._replace(initial=torch.ones(3, 32)),
    "a shape": lambda one: one._replace(initial=torch.zeros(6, 16)),
    "a method": lambda one: one._replace(tune=one.tune.model_copy(update={"method": "p_tuning"})),
    "a place": lambda one: one._replace(tune=one.tune.model_copy(update={"placement": "after_bos"})),
    "a stored type": lambda one: one._replace(tune=one.tune.model_copy(update={"store_dtype": "float16"})),
    "a template": lambda one: one._replace(task=one.task.model_copy(update={"template": "{text}:"})),
    "labels": lambda one: one._replace(task=one.task.model_copy(update={"labels": {"no": "n", "yes": "y"}})),
    "free texts": lambda one: one._replace(task=one.task.model_copy(update={"generate": Generation(max_new_tokens=4)})),
    "a cut": lambda one: one._replace(
        task=one.task.model_copy(update={"data": one.task.data.model_copy(update={"too_long": "truncate_end"})})
    ),
    "a scoring": lambda one: one._replace(task=one.task.model_copy(update={"scoring": Scoring(calibrated=True)})),
    "a task": lambda one: one._replace(task=one.task.model_copy(update={"name": "other"})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_import_is_another_one_whatever_about_it_changes(change: str) -> None:
    base = family("llama", torch.float32)
    plain = job(base, "plain")._replace(initial=torch.zeros(3, 32))
    assert _import_key(base.ref, CHANGES[change](plain)) != _import_key(base.ref, plain)
    assert _import_key(base.ref.model_copy(update={"fingerprint": "f" * 64}), plain) != _import_key(base.ref, plain)


def test_a_recipe_of_training_changes_no_import() -> None:
    base = family("llama", torch.float32)
    plain, longer = (job(base, "plain", steps=steps)._replace(initial=torch.zeros(3, 32)) for steps in (6, 9))
    assert _import_key(base.ref, plain) == _import_key(base.ref, longer)
