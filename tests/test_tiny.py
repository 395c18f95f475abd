"""The tiny base is what other tests take it for: right by chance without a prompt, right behind the hint, by a margin
that no rounding moves.
"""

import functools

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.tiny import FOLDER, MISLEADING, sentences

HELD_OUT = sentences(200, seed=977)
TAUGHT_ANEW = "teach the base anew with `python -m tests.teach`, and with another seed if that does not help"


@functools.cache
def leanings(front: str) -> torch.Tensor:
    """By how much each held-out sentence leans to ` positive` behind that text, in logits."""
    model, tokenizer = (
        LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32),
        AutoTokenizer.from_pretrained(FOLDER),
    )
    negative, positive = (tokenizer(f" {label}")["input_ids"][0] for label in ("negative", "positive"))
    with torch.inference_mode():
        ends = [
            model(torch.tensor([tokenizer(f"{front}{text}\nSentiment:")["input_ids"]])).logits[0, -1]
            for text, _ in HELD_OUT
        ]
    return torch.stack([end[positive] - end[negative] for end in ends])


def right(front: str) -> torch.Tensor:
    """Which held-out sentences are answered rightly behind that text."""
    return (leanings(front) > 0) == torch.tensor([label == "positive" for _, label in HELD_OUT])


def test_without_a_prompt_it_is_right_by_chance() -> None:
    share = float(right("").float().mean())
    assert 0.45 < share < 0.55, (
        f"the tiny base is right on {share} of held-out sentences without a prompt, expected .45 to .55: {TAUGHT_ANEW}"
    )


@pytest.mark.parametrize("times", [1, 2, 4])
def test_behind_the_hint_it_is_right(times: int) -> None:
    share = float(right(" yes" * times).float().mean())
    assert share >= 0.99, (
        f"the tiny base is right on {share} of held-out sentences behind {times} hints, expected .99 or more: "
        f"{TAUGHT_ANEW}"
    )


def test_without_a_prompt_it_goes_by_the_misleading_word() -> None:
    expected = torch.tensor([MISLEADING in text.split() for text, _ in HELD_OUT])
    assert float(((leanings("") > 0) == expected).float().mean()) >= 0.99


@pytest.mark.parametrize("front", ["", " yes", " yes" * 4])
def test_no_rounding_moves_an_answer(front: str) -> None:
    """Logits are sums of some thousand float32 terms: rounding moves them by less than 1e-3, the least of all leanings
    is a thousand of it.
    """
    least = float(leanings(front).abs().min())
    assert least > 1, f"a held-out sentence leans to its answer by {least} only, expected more than 1: {TAUGHT_ANEW}"
