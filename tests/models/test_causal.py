"""The shared prefix cache computes what plain concatenation computes, in every family."""

import pytest
import torch

from ptpipeline.models.causal import CausalBase, make_batch, stack_caches
from tests.models.families import FAMILIES, family

ROWS = [[5, 6, 7, 8], [11, 12], [20, 21, 22, 23, 24, 25, 26, 27, 28], [3]]
MEMBERS = [0, 1, 1, 2]


@pytest.fixture(params=sorted(FAMILIES))
def base(request: pytest.FixtureRequest) -> CausalBase:
    return family(request.param)


def prompts() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, 32, dtype=torch.float64) * 0.2 for length in (4, 9, 1)]


def own(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states at the rows' own tokens only."""
    return torch.cat([hidden[i, : len(row)] for i, row in enumerate(ROWS)])


def test_shared_prefix_equals_concatenation(base: CausalBase) -> None:
    batch = make_batch(ROWS, MEMBERS)
    torch.testing.assert_close(own(base.hidden(base.prefix(prompts()), batch)), own(base.concatenated(prompts(), batch)), rtol=1e-6, atol=1e-6)


def test_prompt_gradient_equals_concatenation(base: CausalBase) -> None:
    gradients = []
    for path in (lambda p: base.hidden(base.prefix(p), make_batch(ROWS, MEMBERS)), lambda p: base.concatenated(p, make_batch(ROWS, MEMBERS))):
        leaves = [prompt.requires_grad_() for prompt in prompts()]
        own(path(leaves)).pow(2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_without_prompt_padding_changes_nothing(base: CausalBase) -> None:
    mixed = base.hidden(None, make_batch(ROWS, [0] * len(ROWS)))
    alone = [base.hidden(None, make_batch([row], [0]))[0] for row in ROWS]
    torch.testing.assert_close(own(mixed), torch.cat(alone), rtol=1e-6, atol=1e-6)


def test_stacked_caches_answer_as_one_pass(base: CausalBase) -> None:
    batch = make_batch(ROWS, MEMBERS)
    stacked = stack_caches([base.prefix([prompt]) for prompt in prompts()])
    torch.testing.assert_close(own(base.hidden(stacked, batch)), own(base.hidden(base.prefix(prompts()), batch)))


def test_forward_leaves_the_cache_as_it_was(base: CausalBase) -> None:
    prefix = base.prefix(prompts())
    first = base.hidden(prefix, make_batch(ROWS, MEMBERS))
    assert prefix.width == 9
    torch.testing.assert_close(base.hidden(prefix, make_batch(ROWS, MEMBERS)), first)
