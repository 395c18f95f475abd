"""The passes by hand against transformers' own layers in float64, in one span and in many, with what they keep and
without.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ptpipeline.models import kept, layout
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.decoder import FusedDecoder
from ptpipeline.models.inputs import Input
from ptpipeline.models.traits import ARCHITECTURES
from tests.models.families import FUSED, family

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8]]
INPUTS = [Input(ROWS[0][:4], ROWS[0][4:], 0), Input(ROWS[1], [], 1), Input(ROWS[2], [], 0)]


def prompts_of(lengths: Sequence[int]) -> list[Tensor]:
    dice = torch.Generator().manual_seed(1)
    return [torch.randn(length, 32, generator=dice, dtype=torch.float64).requires_grad_() for length in lengths]


def by_hand(base: CausalBase, prompts: Sequence[Tensor], members: Sequence[int]) -> Tensor:
    inputs = [row._replace(prompt=member) for row, member in zip(INPUTS, members, strict=True)]
    assert base.fused is not None
    return base.compute_states(base.compute_prefix(prompts), inputs)


def concatenated(base: CausalBase, prompts: Sequence[Tensor], members: Sequence[int]) -> Tensor:
    return base.concatenate(prompts, [row._replace(prompt=m) for row, m in zip(INPUTS, members, strict=True)])


def gradients(states: Tensor, prompts: Sequence[Tensor]) -> list[Tensor]:
    dice = torch.Generator().manual_seed(2)
    direction = torch.randn(states.shape, generator=dice, dtype=states.dtype)
    return list(torch.autograd.grad((states * direction).sum(), prompts))


def test_every_known_architecture_has_a_model_here() -> None:
    assert {type(family(name).model).__name__ for name in FUSED} == set(ARCHITECTURES)


@pytest.mark.parametrize("span", [2, layout.SPAN])
@pytest.mark.parametrize(
    ("lengths", "members"), [((1,), (0, 0, 0)), ((20,), (0, 0, 0)), ((5, 20, 3), (2, 0, 1)), ((8, 2), (1, 0, 1))]
)
@pytest.mark.parametrize("name", FUSED)
def test_states_and_gradients_equal_transformers_own(
    name: str, lengths: tuple[int, ...], members: tuple[int, ...], span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "SPAN", span)
    base, prompts = family(name), prompts_of(lengths)
    expected, found = concatenated(base, prompts, members), by_hand(base, prompts, members)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(found, prompts), gradients(expected, prompts), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3 sliding", "olmo2"])
@pytest.mark.parametrize("span", [2, layout.SPAN])
def test_layers_that_run_again_give_the_same_bits(name: str, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SPAN", span)
    base, prompts = family(name), prompts_of([5, 2])
    once = gradients(by_hand(base, prompts, (0, 1, 0)), prompts)
    monkeypatch.setattr(kept, "KEPT_SHARE", 0.0)
    runs: list[int] = []
    forward = FusedDecoder.forward_layer
    monkeypatch.setattr(FusedDecoder, "forward_layer", lambda *args: runs.append(1) or forward(*args))
    again = gradients(by_hand(base, prompts, (0, 1, 0)), prompts)
    assert len(runs) == 2 * (3 + 2)  # the rows' three layers and the prompts' two, each forward twice
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("name", FUSED)
def test_fusing_leaves_the_model_as_it_was(name: str) -> None:
    model = family(name).model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    FusedDecoder(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_joined_maps_are_in_memory_once() -> None:
    model = family("llama biases").model
    FusedDecoder(model)
    maps = model.model.layers[0].mlp
    for name in ("weight", "bias"):
        pair = (getattr(part, name).untyped_storage().data_ptr() for part in (maps.gate_proj, maps.up_proj))
        assert len(set(pair)) == 1


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_nan_of_one_prompt_reaches_no_other(name: str) -> None:
    base, prompts = family(name), prompts_of([4, 2, 3])
    expected = gradients(by_hand(base, prompts, [0, 1, 2]), prompts)
    with torch.no_grad():
        prompts[1][:] = float("nan")
    found = gradients(by_hand(base, prompts, [0, 1, 2]), prompts)
    assert torch.isnan(found[1]).all()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])


def test_a_gradient_of_a_gradient_is_refused_and_not_taken_for_none() -> None:
    base, prompts = family("llama"), prompts_of([3])
    (first,) = torch.autograd.grad(by_hand(base, prompts, (0, 0, 0)).cos().sum(), prompts, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


@pytest.mark.parametrize("name", FUSED)
def test_logits_equal_the_models_own(name: str) -> None:
    base = family(name)
    own = base.model(input_ids=torch.tensor([ROWS[2]])).logits[0, -1:].float()
    torch.testing.assert_close(base.compute_logits(base.compute_states(None, [INPUTS[2]])), own)
