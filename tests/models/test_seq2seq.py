"""Encoder-decoder models: rows behind their prompts compute what plain transformers computes on the concatenation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from ptpipeline.errors import BaseModelError
from ptpipeline.models.base import PreparedBase, prepare_folder
from ptpipeline.models.inputs import Input, KeyValues, stack_caches
from ptpipeline.models.load import load_base
from ptpipeline.models.seq2seq import Seq2SeqBase
from tests.models.families import SEQ2SEQ_FAMILIES, T5_SIZES, seq2seq_family
from tests.tiny import tiny_base

ROWS = [
    Input([5, 6, 7, 8, 1], [9, 10], 0),
    Input([11, 1], [], 1),
    Input([*range(20, 29), 1], [3, 4, 5, 1], 1),
    Input([1], [2], 2),
]


@pytest.fixture(params=sorted(SEQ2SEQ_FAMILIES))
def base(request: pytest.FixtureRequest) -> Seq2SeqBase:
    return seq2seq_family(request.param)


def prompts() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, 32, dtype=torch.float64) for length in (4, 9, 1)]


def transformers_forward(base: Seq2SeqBase, prompt: Tensor, row: Input) -> tuple[Tensor, Tensor]:
    """What the head reads and what it says at each of the row's decoder tokens, out of transformers' own
    forward pass.
    """
    read: list[Tensor] = []
    hook = base.model.lm_head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0][0]))
    embedded = torch.cat([prompt, base.model.shared(torch.tensor(row.text))])[None]
    logits: Tensor = base.model(
        inputs_embeds=embedded, decoder_input_ids=torch.tensor([[0, *row.continuation]])
    ).logits[0]
    hook.remove()
    return read[0], logits


def scored(states: Tensor) -> Tensor:
    """A number that depends on each state's direction: their length is fixed by the last norm, its gradient is none."""
    return (states * torch.linspace(-1, 2, 32, dtype=states.dtype)).sin().sum()


def test_mixed_rows_equal_transformers_alone(base: Seq2SeqBase) -> None:
    scale = 32**-0.5 if base.ref.name == "t5 relu tied" else 1.0
    expected = torch.cat([transformers_forward(base, prompts()[row.prompt], row)[0] for row in ROWS])
    torch.testing.assert_close(
        base.compute_states(base.compute_prefix(prompts()), ROWS) * scale, expected, rtol=1e-9, atol=1e-9
    )


def test_concatenated_equals_transformers(base: Seq2SeqBase) -> None:
    expected = torch.cat([transformers_forward(base, prompts()[row.prompt], row)[1] for row in ROWS]).float()
    torch.testing.assert_close(base.compute_logits(base.concatenate(prompts(), ROWS)), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_those_of_transformers_in_float32(base: Seq2SeqBase) -> None:
    expected = torch.cat([transformers_forward(base, prompts()[row.prompt], row)[1] for row in ROWS]).float()
    torch.testing.assert_close(
        base.compute_logits(base.compute_states(base.compute_prefix(prompts()), ROWS)), expected, rtol=1e-5, atol=1e-5
    )


def test_prompt_gradient_equals_transformers(base: Seq2SeqBase) -> None:
    scale = 32**-0.5 if base.ref.name == "t5 relu tied" else 1.0
    ours = [prompt.requires_grad_() for prompt in prompts()]
    scored(base.compute_states(base.compute_prefix(ours), ROWS) * scale).backward()
    theirs = [prompt.requires_grad_() for prompt in prompts()]
    scored(torch.cat([transformers_forward(base, theirs[row.prompt], row)[0] for row in ROWS])).backward()
    for prompt, reference in zip(ours, theirs, strict=True):
        assert reference.grad is not None
        assert reference.grad.abs().max() > 1e-3
        torch.testing.assert_close(prompt.grad, reference.grad, rtol=1e-8, atol=1e-9)


def test_rows_of_one_prompt_equal_transformers(base: Seq2SeqBase) -> None:
    rows = [row._replace(prompt=0) for row in ROWS]
    expected = torch.cat([transformers_forward(base, prompts()[0], row)[1] for row in rows]).float()
    torch.testing.assert_close(
        base.compute_logits(base.compute_states(base.compute_prefix(prompts()[:1]), rows)),
        expected,
        rtol=1e-5,
        atol=1e-5,
    )


def test_without_prompt_padding_changes_nothing(base: Seq2SeqBase) -> None:
    empty = torch.zeros(0, 32, dtype=torch.float64)
    expected = torch.cat([transformers_forward(base, empty, row)[1] for row in ROWS]).float()
    torch.testing.assert_close(base.compute_logits(base.compute_states(None, ROWS)), expected, rtol=1e-5, atol=1e-5)


def test_stacked_caches_answer_as_one(base: Seq2SeqBase) -> None:
    stacked = stack_caches([base.compute_prefix([prompt]) for prompt in prompts()])
    torch.testing.assert_close(
        base.compute_states(stacked, ROWS), base.compute_states(base.compute_prefix(prompts()), ROWS)
    )


def test_prompt_of_nan_spoils_its_own_rows_only(base: Seq2SeqBase) -> None:
    members = torch.tensor([row.prompt for row in ROWS for _ in range(row.state_count)])
    clean = base.compute_states(base.compute_prefix(prompts()), ROWS)
    leaves = [prompt.requires_grad_() for prompt in prompts()]
    states = base.compute_states(base.compute_prefix([leaves[0], leaves[1] * float("nan"), leaves[2]]), ROWS)
    assert states[members == 1].isnan().all()
    torch.testing.assert_close(states[members != 1], clean[members != 1])
    scored(states).backward()
    assert [bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None] == [True, False, True]


def test_gradient_of_a_row_reaches_its_own_prompt_only(base: Seq2SeqBase) -> None:
    leaves = [prompt.requires_grad_() for prompt in prompts()]
    scored(base.compute_states(base.compute_prefix(leaves), ROWS)[:3]).backward()
    assert [bool(leaf.grad.any()) for leaf in leaves if leaf.grad is not None] == [True, False, False]


def generated(base: Seq2SeqBase, row: Input, limit: int) -> list[int]:
    embedded = torch.cat([prompts()[row.prompt], base.model.shared(torch.tensor(row.text))])[None]
    given = torch.tensor([[0, *row.continuation]])
    tokens = base.model.generate(
        inputs_embeds=embedded, decoder_input_ids=given, num_beams=1, do_sample=False, max_new_tokens=limit
    )
    new: list[int] = tokens[0, given.shape[1] :].tolist()
    return [token for token in new if token not in base.end_tokens]


@pytest.mark.parametrize("continued", [False, True])
def test_decoding_together_equals_generating_alone(base: Seq2SeqBase, continued: bool) -> None:
    rows = [row if continued else row._replace(continuation=[]) for row in ROWS]
    base.model.generation_config.eos_token_id = [
        1,
        generated(base, rows[0], 4)[2],
    ]  # one that ends a row before the others
    found = base.decode(base.compute_prefix(prompts()), rows, 7)
    assert found == [generated(base, row, 7) for row in rows]
    assert sorted(map(len, found))[0] <= 2 < len(max(found, key=len)) == 7


def test_decoding_stops_at_the_limit(base: Seq2SeqBase) -> None:
    longer = base.decode(base.compute_prefix(prompts()), ROWS, 5)
    assert base.decode(base.compute_prefix(prompts()), ROWS, 2) == [tokens[:2] for tokens in longer]
    assert base.decode(base.compute_prefix(prompts()), ROWS, 0) == [[], [], [], []]


def test_keys_and_values_are_refused() -> None:
    base = seq2seq_family("t5 relu tied")
    prefix = KeyValues(torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8))
    for taking in (lambda: base.compute_prefix([prefix]), lambda: base.concatenate([prefix], ROWS[:1])):
        with pytest.raises(BaseModelError, match=r"prefix tuning .* needs a causal model"):
            taking()


def test_an_embedded_prompt_beside_keys_and_values_changes_nothing_of_that() -> None:
    base, prefix = seq2seq_family("t5 relu tied"), KeyValues(torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8))
    with pytest.raises(BaseModelError, match=r"prefix tuning .* needs a causal model"):
        base.compute_prefix([prompts()[0], prefix])


def test_the_same_text_behind_two_prompts_is_read_behind_each() -> None:
    base = seq2seq_family("t5 relu tied")
    cache, rows = base.compute_prefix(prompts()), [ROWS[0]._replace(prompt=member) for member in (0, 1, 0)]
    together = base.compute_states(cache, rows)
    torch.testing.assert_close(together, torch.cat([base.compute_states(cache, [row]) for row in rows]))


def test_a_word_without_an_embedding_is_refused(tmp_path: Path) -> None:
    folder = t5_folder(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"word{index}" for index in range(200)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BaseModelError, match="beyond the 500 embeddings of the model"):
        load_base(prepared(folder), "float32")


def t5_folder(folder: Path, **fields: Any) -> Path:
    """A tiny T5 with the tiny base's tokenizer, as transformers saves it; None removes a field of its configuration."""
    PreTrainedTokenizerFast.from_pretrained(tiny_base(folder / "causal")).save_pretrained(folder / "t5")
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**T5_SIZES | {"vocab_size": 500})).save_pretrained(folder / "t5")
    return edited(folder / "t5", "config.json", **fields)


def edited(folder: Path, name: str, **fields: Any) -> Path:
    stated = json.loads((folder / name).read_text()) | fields
    (folder / name).write_text(json.dumps({field: value for field, value in stated.items() if value is not None}))
    return folder


def prepared(folder: Path) -> PreparedBase:
    return prepare_folder("tiny-t5", folder, folder.parent)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_of_a_t5_loads_as_encoder_decoder(tmp_path: Path, dtype: Any) -> None:
    base = load_base(prepared(t5_folder(tmp_path)), dtype)
    assert isinstance(base, Seq2SeqBase)
    assert (base.start, base.ref.hidden_size, base.context) == (0, 32, 512)
    prompt = torch.randn(5, 32).requires_grad_()
    rows = [
        Input(base.encode("good film", True), [3, 4], 0),
        Input(base.encode("the plot was very dull", True), [7], 0),
    ]
    states = base.compute_states(base.compute_prefix([prompt]), rows)
    torch.testing.assert_close(
        states, base.concatenate([prompt], rows), rtol=2e-2, atol=6e-2 if dtype == "bfloat16" else 1e-5
    )
    base.compute_logits(states).logsumexp(-1).sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.abs().max() > 0


def test_context_is_what_the_tokenizer_states(tmp_path: Path) -> None:
    folder = edited(t5_folder(tmp_path), "tokenizer_config.json", model_max_length=300)
    assert load_base(prepared(folder), "float32").context == 300


def test_context_is_n_positions_where_the_tokenizer_states_none(tmp_path: Path) -> None:
    assert load_base(prepared(t5_folder(tmp_path, n_positions=200)), "float32").context == 200


def test_t5_without_start_token_is_refused(tmp_path: Path) -> None:
    folder = t5_folder(tmp_path, decoder_start_token_id=None)
    (folder / "generation_config.json").unlink()
    with pytest.raises(BaseModelError, match="states no decoder_start_token_id"):
        load_base(prepared(folder), "float32")


@pytest.mark.parametrize("family", ["bart", "umt5"])
def test_other_encoder_decoders_are_refused_by_name(tmp_path: Path, family: str) -> None:
    folder = t5_folder(tmp_path)
    config = (
        BartConfig(d_model=32).to_dict()
        if family == "bart"
        else json.loads((folder / "config.json").read_text()) | {"model_type": family}
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=f"{family} is an encoder-decoder that is not supported"):
        load_base(prepared(folder), "float32")


@pytest.mark.parametrize(
    "fields",
    [{"relative_attention_num_buckets": 6}, {"feed_forward_proj": "gated-gelu"}, {"scale_decoder_outputs": False}],
)
def test_fingerprint_covers_what_changes_a_t5(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = t5_folder(tmp_path)
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    assert prepare_folder("a", edited(folder, "config.json", **fields), tmp_path).ref.fingerprint != before


def test_fingerprint_covers_the_context_of_a_t5(tmp_path: Path) -> None:
    folder = t5_folder(tmp_path)
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    assert (
        prepare_folder("a", edited(folder, "tokenizer_config.json", model_max_length=300), tmp_path).ref.fingerprint
        != before
    )


def test_fingerprint_covers_a_start_token_that_generation_states(tmp_path: Path) -> None:
    folder = edited(
        t5_folder(tmp_path, decoder_start_token_id=None), "generation_config.json", decoder_start_token_id=0
    )
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    assert (
        prepare_folder(
            "a", edited(folder, "generation_config.json", decoder_start_token_id=3), tmp_path
        ).ref.fingerprint
        != before
    )


def test_fingerprint_is_the_same_from_savers_before_and_after_transformers_5(tmp_path: Path) -> None:
    folder = t5_folder(tmp_path, tie_word_embeddings=True, scale_decoder_outputs=False, num_layers=2)
    before = prepare_folder("a", folder, tmp_path).ref.fingerprint
    older = edited(
        folder, "config.json", tie_word_embeddings=False, scale_decoder_outputs=None, num_decoder_layers=None
    )
    assert prepare_folder("a", older, tmp_path).ref.fingerprint == before
