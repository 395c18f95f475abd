"""A GPU's fewer launches compute what the plain steps do. A CPU runs them too, but not the norm's way back."""

import pytest
import torch
from torch import Tensor

from ptpipeline.models import gpu_kernels, kernels
from ptpipeline.models.operands import Norm, Rotation

TYPES = [torch.float64, torch.float32, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 1e-2}[found.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_norm_is_the_plain_one(dtype: torch.dtype) -> None:
    states, norm = random(5, 7, 16, dtype=dtype), Norm(random(16, dtype=dtype), 1e-5)
    for found, expected in zip(gpu_kernels.normalise(states, norm), kernels.normalise(states, norm), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_softmax_and_its_way_back_are_the_plain_ones(dtype: torch.dtype) -> None:
    scores, grad = random(2, 3, 2, 4, 9, dtype=dtype), random(2, 3, 2, 4, 9, dtype=dtype).flip(-1)
    mask = torch.zeros(3, 1, 4, 9).masked_fill(torch.arange(9) > torch.arange(4)[:, None] + 4, float("-inf"))
    weights = kernels.softmax(scores, mask.to(kernels.accumulation_dtype(dtype)))
    assert_same(gpu_kernels.softmax(scores.clone(), mask.to(dtype)), weights)
    assert_same(gpu_kernels.softmax_backward(grad, weights), kernels.softmax_backward(grad, weights))


@pytest.mark.parametrize("half", [8, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_rotation_whole_or_partial_is_the_plain_one(dtype: torch.dtype, half: int) -> None:
    heads, wide = random(5, 7, 3, 16, dtype=dtype), kernels.accumulation_dtype(dtype)
    rotation = Rotation(random(5, 7, half, dtype=wide), random(7, 5, half, dtype=wide).transpose(0, 1), 0.5)
    rotation = rotation._replace(sin=rotation.sin.contiguous())
    assert_same(gpu_kernels.rotate(heads, rotation), kernels.rotate(heads, rotation))
