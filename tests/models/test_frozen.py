"""What every family of bases makes of its states: logits in float32, scaled as the model says; copies for checks."""

import pytest
import torch

from tests.models.families import family


@pytest.mark.parametrize(("factor", "divisor"), [(0.25, 1.0), (1.0, 8.0), (0.25, 8.0), (None, 1.0)])
def test_logits_are_scaled_by_the_models_factor_and_divisor(factor: float | None, divisor: float) -> None:
    """A factor as Cohere's configuration states it, a divisor as Granite's."""
    base = family("gpt2")
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = base.model.lm_head(states).float()
    base.model.config.logit_scale, base.model.config.logits_scaling = factor, divisor
    torch.testing.assert_close(base.compute_logits(states), plain * (factor or 1) / divisor)


def test_logits_are_float32_and_a_float32_copy_leaves_the_base_as_it_was() -> None:
    base = family("gpt2", torch.bfloat16)
    assert base.compute_logits(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.float32
    copied = base.to_float32()
    assert (copied.dtype, copied.model.dtype) == (torch.float32, torch.float32)
    assert (base.dtype, base.model.dtype) == (torch.bfloat16, torch.bfloat16)
