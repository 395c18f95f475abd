"""A prompt behind the tokenizer's BOS: the model reads [BOS][prompt][text], in training and in serving."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from ptpipeline.errors import ContextError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, KeyValues
from ptpipeline.models.load import load_base
from ptpipeline.prompts.placement import build_text_encoder, count_extra_tokens, drop_bos, place_prompt
from ptpipeline.settings import Settings
from tests.tiny import tiny_project


@pytest.fixture
def base(tmp_path: Path) -> FrozenBase:
    """The tiny base with a tokenizer that puts BOS before every text, as Llama's and Gemma's do."""
    found = load_base(prepare_base("tiny", Settings(home=tmp_path / "home", tasks=tiny_project(tmp_path))), "float32")
    found.tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return replace(found)


def test_text_behind_the_prompt_has_no_bos(base: FrozenBase) -> None:
    plain = base.encode("a good film", False)
    assert build_text_encoder(base, "before_bos")("a good film", True) == [1, *plain]
    assert build_text_encoder(base, "after_bos")("a good film", True) == plain
    assert build_text_encoder(base, "after_bos")("a good film", False) == plain


def test_the_model_reads_bos_then_prompt_then_text(base: FrozenBase) -> None:
    """Against the plain model on embeddings that are put in a row by hand."""
    torch.manual_seed(0)
    prompt, ids = torch.randn(3, 64) * 0.1, build_text_encoder(base, "after_bos")("a good film", True)
    ours = base.compute_states(base.compute_prefix([place_prompt(base, prompt, "after_bos")]), [Input(ids, [], 0)])
    row = torch.cat([base.embed(torch.tensor([1])), prompt, base.embed(torch.tensor(ids))])[None]
    plain = base.model.base_model(inputs_embeds=row).last_hidden_state[0, -1:]
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    assert count_extra_tokens("after_bos") == 1


def test_only_the_prompt_gets_gradient(base: FrozenBase) -> None:
    prompt = torch.zeros(3, 64, requires_grad=True)
    place_prompt(base, prompt, "after_bos").sum().backward()
    assert torch.equal(prompt.grad, torch.ones(3, 64))  # type: ignore[arg-type]


def test_keys_and_values_stand_in_front_of_everything(base: FrozenBase) -> None:
    prefix = KeyValues(torch.zeros(2, 2, 3, 16), torch.zeros(2, 2, 3, 16))
    assert place_prompt(base, prefix, "before_bos") is prefix


def test_a_tokenizer_without_bos_is_refused(base: FrozenBase) -> None:
    base.tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ContextError, match=r"tune\.placement: after_bos, but the tokenizer of tiny puts no BOS"):
        build_text_encoder(replace(base), "after_bos")


@pytest.mark.parametrize("kind", [list, tuple])
def test_bos_is_dropped_once_whatever_kind_of_sequence_holds_it(kind: type) -> None:
    assert [drop_bos(kind(ids), 3) for ids in ([3, 3, 5], [5, 3], [])] == [[3, 5], [5, 3], []]
    assert drop_bos(kind([3, 5]), None) == [3, 5]
