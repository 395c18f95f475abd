"""The shared prefix cache computes what plain concatenation computes, in every family; decoding as plain
decoding does.
"""

import pytest
import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import Input, KeyValues, SoftPrompt, stack_caches
from tests.models.families import FAMILIES, family

ROWS = [[5, 6, 7, 8], [11, 12], [20, 21, 22, 23, 24, 25, 26, 27, 28], [3]]
MEMBERS = [0, 1, 1, 2]
INPUTS = [Input(row[:1], row[1:], member) for row, member in zip(ROWS, MEMBERS, strict=True)]  # a state for every token


@pytest.fixture(params=sorted(FAMILIES))
def base(request: pytest.FixtureRequest) -> CausalBase:
    return family(request.param)


def prompts() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, 32, dtype=torch.float64) * 0.2 for length in (20, 9, 1)]


def key_values(base: CausalBase, length: int = 3) -> KeyValues:
    torch.manual_seed(2)
    config = base.model.config
    width = getattr(config, "head_dim", None) or 8
    shape = (config.num_hidden_layers, getattr(config, "num_key_value_heads", 4), length, width)
    return KeyValues(torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64))


def test_shared_prefix_equals_concatenation(base: CausalBase) -> None:
    shared = base.compute_states(base.compute_prefix(prompts()), INPUTS)
    torch.testing.assert_close(shared, base.concatenate(prompts(), INPUTS), rtol=1e-9, atol=1e-9)


def test_prompt_gradient_equals_concatenation(base: CausalBase) -> None:
    gradients, direction = [], torch.cos(torch.arange(32.0, dtype=torch.float64))
    for path in (lambda p: base.compute_states(base.compute_prefix(p), INPUTS), lambda p: base.concatenate(p, INPUTS)):
        leaves = [prompt.requires_grad_() for prompt in prompts()]
        (path(leaves) * direction).sum().backward()  # the squared length of a normed state would be a constant
        gradients.append([leaf.grad for leaf in leaves])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_states_are_those_behind_text_and_continuation(base: CausalBase) -> None:
    every = base.compute_states(None, [Input([5], [6, 7, 8], 0)])
    torch.testing.assert_close(base.compute_states(None, [Input([5, 6, 7], [8], 0)]), every[2:])


def test_without_prompt_padding_changes_nothing(base: CausalBase) -> None:
    alone = [base.compute_states(None, [row]) for row in INPUTS]
    torch.testing.assert_close(base.compute_states(None, INPUTS), torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_stacked_caches_answer_as_one_pass(base: CausalBase) -> None:
    stacked = stack_caches([base.compute_prefix([prompt]) for prompt in prompts()])
    torch.testing.assert_close(
        base.compute_states(stacked, INPUTS), base.compute_states(base.compute_prefix(prompts()), INPUTS)
    )


def test_forward_leaves_the_cache_as_it_was(base: CausalBase) -> None:
    prefix = base.compute_prefix(prompts())
    first = base.compute_states(prefix, INPUTS)
    assert prefix.width == 20
    torch.testing.assert_close(base.compute_states(prefix, INPUTS), first)


def test_embeddings_and_key_values_mix_in_one_batch(base: CausalBase) -> None:
    """Each row answers as behind its prompt alone, and gradients reach both kinds."""
    mixed: list[SoftPrompt] = [prompts()[0], key_values(base), prompts()[2]]
    leaves = [
        prompt.requires_grad_()
        if isinstance(prompt, torch.Tensor)
        else KeyValues(*(t.requires_grad_() for t in prompt))
        for prompt in mixed
    ]
    together = base.compute_states(base.compute_prefix(leaves), INPUTS)
    torch.testing.assert_close(together, base.concatenate(mixed, INPUTS), rtol=1e-9, atol=1e-9)
    (together * torch.cos(torch.arange(32.0))).sum().backward()  # the sum of a normed state would be a constant
    assert all(
        t.grad is not None and t.grad.abs().sum() > 0
        for leaf in leaves
        for t in (leaf if isinstance(leaf, KeyValues) else [leaf])
    )


def test_key_values_of_an_embedded_prompt_stand_for_it(base: CausalBase) -> None:
    cache = base.compute_prefix([prompts()[1]])
    half = len(cache.tensors) // 2
    given = KeyValues(
        torch.stack([t[0] for t in cache.tensors[:half]]), torch.stack([t[0] for t in cache.tensors[half:]])
    )
    row = [Input([5, 6, 7], [8, 9], 0)]
    torch.testing.assert_close(base.compute_states(base.compute_prefix([given]), row), base.compute_states(cache, row))


def test_key_values_of_another_shape_are_refused(base: CausalBase) -> None:
    wrong = KeyValues(torch.zeros(7, 4, 3, 8), torch.zeros(7, 4, 3, 8))
    with pytest.raises(BaseModelError, match="7 layers"):
        base.compute_prefix([wrong])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_text_is_read_without_its_continuation_and_decoding_goes_on_behind_it(name: str) -> None:
    base = family(name)
    cache, rows = base.compute_prefix(prompts()), [Input([5, 6], [7, 8], 0), Input([9], [3], 1)]
    plain, given = (base.extend(cache, inputs) for inputs in ([row._replace(continuation=()) for row in rows], rows))
    assert torch.equal(given.states, plain.states)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(given.cache.tensors, plain.cache.tensors, strict=True))
    whole = [Input([*row.text, *row.continuation], (), row.prompt) for row in rows]
    assert base.decode(cache, rows, 3) == base.decode(cache, whole, 3)


@pytest.mark.parametrize("prompted", [True, False])
def test_decoding_together_equals_plain_decoding_alone(base: CausalBase, prompted: bool) -> None:
    """The oracle reads the whole sequence anew for every token; windows are shorter than prompt and text."""
    base.model.generation_config.eos_token_id = None
    limit, texts = 7, [[5, 6, 7, 8], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28]]
    cache = base.compute_prefix(prompts()) if prompted else None
    found = base.decode(cache, [Input(text, [], member) for member, text in enumerate(texts)], limit)
    for text, prompt, answer in zip(texts, prompts(), found, strict=True):
        expected: list[int] = []
        for _ in range(limit):
            embedded = base.embed(torch.tensor(text + expected))
            logits = base.model(
                inputs_embeds=torch.cat([prompt, embedded])[None] if prompted else embedded[None]
            ).logits[0, -1]
            expected.append(int(logits.argmax()))
        assert answer == expected


def test_decoding_stops_at_each_end_of_text(base: CausalBase) -> None:
    base.model.generation_config.eos_token_id = None
    text = Input([5, 6, 7], [], 0)
    whole = base.decode(None, [text], 6)[0]
    base.model.generation_config.eos_token_id = [10**6, whole[2], -1]
    assert base.decode(None, [text, Input([9], [], 0)], 6)[0] == whole[: whole.index(whole[2])]
