"""Where rows stand: which keys a span multiplies, and in which type positions are turned."""

import pytest
import torch

from ptpipeline.models import layout
from ptpipeline.models.layout import Reads, _span, _span_all
from tests.models.families import family

CPU = torch.device("cpu")


def test_a_span_multiplies_the_keys_that_its_queries_may_see_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five queries behind three keys, two at a time: all keys before, or a window of four tokens."""
    monkeypatch.setattr(layout, "SPAN", 2)
    assert _span(5, 3, None) == ((0, 2, 0, 5), (2, 4, 0, 7), (4, 5, 0, 8))
    assert _span(5, 3, 4) == ((0, 2, 0, 5), (2, 4, 2, 7), (4, 5, 4, 8))
    assert _span(2, 0, 9) == ((0, 2, 0, 2),)
    assert _span_all(3, 9) == ((0, 2, 0, 9), (2, 3, 0, 9))


def test_positions_of_bfloat16_are_turned_in_float32() -> None:
    """Position 301 is none of bfloat16, and its angle would be rounded."""
    base = family("llama", torch.bfloat16)
    assert base.fused is not None
    geometry, positions = base.fused.geometry, torch.tensor([[0, 7, 301]])
    found = geometry.compute_rotations(positions, geometry.kinds[0]).keys
    assert found.cos.dtype == found.sin.dtype == torch.float32
    angles = positions[..., None] * geometry.rotary.inv_freq.double()
    torch.testing.assert_close(found.sin.double(), angles.sin(), rtol=0, atol=1e-4)


def test_each_state_is_read_where_its_row_says() -> None:
    states = torch.arange(24.0).view(2, 6, 2)
    reads = Reads.of([3, 1], [2, 3], CPU)
    assert torch.equal(reads.take(states), torch.cat([states[0, 3:5], states[1, 1:4]]))
