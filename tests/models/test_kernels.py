"""The steps of a layer in bfloat16: what they sum they sum in float32, and what they are given stays as it was."""

import pytest
import torch
from torch import Tensor

from ptpipeline.models.kernels import accumulation_dtype, linear, normalise, normalise_backward, softmax_backward
from ptpipeline.models.operands import Norm

ROUNDED = 1.02 * 2**-8  # of a number that is rounded once to bfloat16, with a little room


def random(*shape: int) -> Tensor:
    """Numbers of bfloat16, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16().double()


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_are_float32_or_float64(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert accumulation_dtype(dtype) == wide
    _, scale = normalise(random(3, 16).to(dtype), Norm(random(16).to(dtype), 1e-5))
    assert scale.dtype == wide


def test_a_norm_of_bfloat16_is_rounded_once() -> None:
    states, weight = random(64, 128), random(128)
    exact = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-5) * weight
    found, _ = normalise(states.bfloat16(), Norm(weight.bfloat16(), 1e-5))
    torch.testing.assert_close(found.double(), exact, rtol=ROUNDED, atol=0)


def test_the_way_back_through_a_norm_of_bfloat16_is_rounded_once() -> None:
    states, weight, grad, plus = random(64, 128), random(128), random(64, 128).flip(-1), random(64, 128).flip(0)
    leaf = states.clone().requires_grad_()
    exact = leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-5) * weight
    (expected,) = torch.autograd.grad(exact, leaf, grad)
    norm = Norm(weight.bfloat16(), 1e-5)
    _, scale = normalise(states.bfloat16(), norm)
    given = grad.bfloat16(), states.bfloat16(), norm, scale
    for found, wanted in (
        (normalise_backward(*given), expected),
        (normalise_backward(*given, plus.bfloat16()), expected + plus),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=ROUNDED, atol=1e-5)


def test_the_way_back_through_a_softmax_of_bfloat16_is_rounded_once() -> None:
    weights, grad = random(32, 64).softmax(-1).bfloat16().double(), random(32, 64).flip(-1)
    exact = weights * (grad - (grad * weights).sum(-1, keepdim=True))
    found = softmax_backward(grad.bfloat16(), weights.bfloat16())
    torch.testing.assert_close(found.double(), exact, rtol=ROUNDED, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_map_adds_bias_and_states_and_leaves_both_as_they_were(dtype: torch.dtype) -> None:
    states, weight, plus, bias = (random(*shape).to(dtype) for shape in ((5, 8), (6, 8), (5, 6), (6,)))
    before = plus.clone(), bias.clone()
    for found, expected in (
        (linear(states, weight), states @ weight.T),
        (linear(states, weight, plus), states @ weight.T + plus),
        (linear(states, weight, plus, bias), states @ weight.T + plus + bias),
    ):
        torch.testing.assert_close(found, expected)
    assert torch.equal(plus, before[0])
    assert torch.equal(bias, before[1])
