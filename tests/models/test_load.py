"""Anyone's base is loaded and right, or refused in a sentence: architectures, contexts, stored types, vocabularies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from ptpipeline.errors import BaseModelError
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input
from ptpipeline.models.load import _check_stored, _check_whole, load_base, load_vocabulary
from ptpipeline.models.weights import Stored
from ptpipeline.prompts.initialise import compute_activations
from tests.tiny import FOLDER, tiny_base

TEXT = {
    "vocab_size": 333,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIZES = TEXT | {"intermediate_size": 64, "max_position_embeddings": 128}
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


def save(folder: Path, kind: str, **settings: Any) -> Path:
    """A random base of that architecture, with the tokenizer of the tiny base; returns `folder`."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**settings)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder / name)
    return folder


def state(folder: Path, name: str = "config.json", **fields: Any) -> None:
    """Change fields of a file; those that are None go."""
    stated = json.loads((folder / name).read_text()) | fields
    (folder / name).write_text(json.dumps({field: value for field, value in stated.items() if value is not None}))


def load(folder: Path, dtype: str = "float32") -> FrozenBase:
    return load_base(prepare_folder("own", folder, folder), dtype)


def concatenate(folder: Path, base: CausalBase, prompt: Tensor, ids: list[int]) -> Tensor:
    """The last logits [V] of prompt and text as transformers alone computes them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    joined = torch.cat([prompt, model.get_input_embeddings()(torch.tensor(ids))])[None]
    logits: Tensor = model.eval()(inputs_embeds=joined, use_cache=False).logits[0, -1]
    return logits.detach()


def hub_bloom(folder: Path) -> Path:
    """BLOOM with the fields that the hub's `config.json` has."""
    made = save(folder, "Bloom", **TEXT)
    state(made, hidden_size=None, n_embed=32, seq_length=64)
    return made


RIGHT: dict[str, tuple[Callable[[Path], Path], int]] = {  # how it is saved, and its context
    "OPT, whose embeddings are narrower": (
        lambda folder: save(folder, "OPT", **SIZES, ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False),
        128,
    ),
    "BLOOM of the hub": (hub_bloom, 64),
    "MPT": (lambda folder: save(folder, "Mpt", vocab_size=333, d_model=32, n_heads=4, n_layers=2, max_seq_len=96), 96),
    "Falcon, of one key head": (lambda folder: save(folder, "Falcon", **SIZES, multi_query=True), 128),
    "BioGPT, whose head is called otherwise": (lambda folder: save(folder, "BioGpt", **SIZES), 128),
    "DeepSeek, of latent attention": (lambda folder: save(folder, "DeepseekV2", **SIZES, **LATENT), 128),
}


@pytest.mark.parametrize("which", RIGHT)
def test_prompts_of_any_architecture_compute_what_transformers_computes(which: str, tmp_path: Path) -> None:
    make, context = RIGHT[which]
    base = load(make(tmp_path / "base"))
    assert isinstance(base, CausalBase)
    assert base.context == context
    prompt = base.embed(torch.tensor([9, 8, 7])) * 1.1
    assert prompt.shape == (3, base.ref.hidden_size)
    row, cache = [Input([5, 6], [], 0)], base.compute_prefix([prompt])
    ours = base.compute_logits(base.compute_states(cache, row))[0]
    torch.testing.assert_close(ours, concatenate(tmp_path / "base", base, prompt, [5, 6]), rtol=1e-4, atol=1e-5)
    if which.startswith("DeepSeek"):
        with pytest.raises(BaseModelError, match=r"own are 1 heads of 8 and 1 heads of 16; set it to `prompt`"):
            compute_activations(base, prompt)
        return
    given = base.compute_prefix([compute_activations(base, prompt)])
    torch.testing.assert_close(base.compute_states(given, row), base.compute_states(cache, row))


def test_latent_attention_computes_in_bfloat16(tmp_path: Path) -> None:
    """Its values are narrower than its keys."""
    folder = save(tmp_path / "base", "DeepseekV2", **SIZES, **LATENT)
    exact, coarse = load(folder), load(folder, "bfloat16")
    row = [Input([5, 6], [], 0)]
    torch.testing.assert_close(
        coarse.compute_states(None, row).float(), exact.compute_states(None, row), rtol=0.1, atol=0.2
    )


def test_layers_of_several_shapes_have_no_prefix(tmp_path: Path) -> None:
    few = {"head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
    base = load(save(tmp_path / "base", "MiMoV2Flash", **SIZES, **few, moe_intermediate_size=32))
    with pytest.raises(BaseModelError, match="own are 2 heads of 8 and 4 heads of 8; set it to `prompt`"):
        compute_activations(base, base.embed(torch.tensor([9, 8])))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "BERT": (lambda folder: save(folder, "Bert", **SIZES), "BertLMHeadModel reads texts both ways"),
    "RoBERTa": (lambda folder: save(folder, "Roberta", **SIZES), "RobertaForCausalLM reads texts both ways"),
    "Gemma 3 that embeds": (
        lambda folder: save(
            folder, "Gemma3Text", **SIZES, num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True
        ),
        "Gemma3ForCausalLM reads texts both ways",
    ),
    "RoBERTa as a decoder": (
        lambda folder: save(folder, "Roberta", **SIZES, is_decoder=True),
        "computes otherwise behind keys and values of a prompt than behind the prompt itself",
    ),
    "Mamba": (lambda folder: save(folder, "Mamba", **TEXT), "MambaForCausalLM has layers that keep a state"),
    "Jamba": (
        lambda folder: save(
            folder, "Jamba", **SIZES, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
            use_mamba_kernels=False,
        ),
        "JambaForCausalLM has layers that keep a state",
    ),
    "Falcon H1, whose configuration has an infinity": (
        lambda folder: save(folder, "FalconH1", **SIZES, num_key_value_heads=2, **STATES),
        "FalconH1ForCausalLM has layers that keep a state",
    ),
    "LFM2": (
        lambda folder: save(
            folder, "Lfm2", **SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"]
        ),
        "its layers: cannot be read .*this model is built in a way that is not supported",
    ),
    "Gemma 4, which looks tokens up by their embeddings": (
        lambda folder: save(
            folder, "Gemma4Text", **SIZES, num_key_value_heads=2, head_dim=8, global_head_dim=16,
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=333, num_kv_shared_layers=0,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "its layers: cannot be read .*do not exactly match the embedding weights",
    ),
    "ELECTRA": (
        lambda folder: save(folder, "Electra", **SIZES, is_decoder=True, embedding_size=16),
        "embeddings are 16 wide, and config.json states 32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_a_model_that_can_have_no_prompt_is_refused_before_anything_trains(which: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[which]
    with pytest.raises(BaseModelError, match=sentence):
        load(make(tmp_path / "base"))


def test_what_bfloat16_leaves_in_doubt_is_tried_in_float32(tmp_path: Path) -> None:
    """A decoder of PLBART counts the pads of a shorter prompt; experts that round otherwise are as far apart."""
    counts = {
        "vocab_size": 333,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "decoder_ffn_dim": 64,
        "init_std": 0.2,
    }
    folder = save(tmp_path / "counts", "PLBart", **counts, decoder_attention_heads=4, max_position_embeddings=128)
    with pytest.raises(BaseModelError, match="computes otherwise behind keys and values of a prompt"):
        load(folder, "bfloat16")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    load(save(tmp_path / "experts", "Olmoe", **SIZES | {"num_hidden_layers": 24}, **experts), "bfloat16")


@pytest.mark.parametrize("which", ["type", "float16"])
def test_nothing_computes_in_another_type(which: str, tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base")
    with pytest.raises(BaseModelError, match=f"nothing computes in '{which}'; expected float32 or bfloat16"):
        load(folder, which)


def test_no_more_than_three_weights_that_are_lacking_are_named() -> None:
    for count, shown in ((3, "w2 is in no file; fetch"), (4, "w2 is in no file, and 1 more; fetch")):
        loaded = {"missing_keys": [f"w{number}" for number in range(count)], "mismatched_keys": []}
        with pytest.raises(BaseModelError, match=shown):
            _check_whole("base", loaded)


def test_numbers_that_are_no_weights_may_be_of_any_type() -> None:
    _check_stored("base", SimpleNamespace(), {"position_ids": Stored("I64", [9]), "a.weight": Stored("F16", [9])})
    with pytest.raises(BaseModelError, match=r"a\.weight is stored as I64"):
        _check_stored("base", SimpleNamespace(), {"a.weight": Stored("I64", [9])})


def test_a_loaded_base_trains_nothing_and_draws_nothing(tmp_path: Path) -> None:
    model = load(tiny_base(tmp_path / "base")).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_without_their_scales_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """transformers takes the numbers for the weights if it does not know the quantisation that config.json names."""
    path = tiny_base(tmp_path / "base") / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    tensors |= {name: tensors[name].to(dtype), f"{name}_scale": torch.ones(1)}
    save_file(tensors, path, metadata={"format": "pt"})
    state(tmp_path / "base", quantization_config={"quant_method": "modelopt"})
    with pytest.raises(BaseModelError, match=rf"{name} is stored as [IF]8.*take the model before it was quantised"):
        load(tmp_path / "base")


def test_weights_that_are_no_numbers_are_named_as_such(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", "GPT2", vocab_size=333, n_embd=32, n_layer=2, n_head=4)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="computes numbers that are not finite in float32"):
        load(folder)


def test_a_saved_form_of_answers_changes_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", "GPT2", vocab_size=333, n_embd=32, n_layer=2, n_head=4)
    before = load(folder).compute_states(None, [Input([5, 6], [], 0)])
    state(folder, return_dict=False)
    torch.testing.assert_close(load(folder).compute_states(None, [Input([5, 6], [], 0)]), before)


def add_to_tokenizer(folder: Path, token: str, special: bool) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(token, special=special)])
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_word_without_an_embedding_is_refused(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base")
    add_to_tokenizer(folder, "positive film", special=False)
    for read in (load_base, lambda prepared, _: load_vocabulary(prepared)):
        with pytest.raises(BaseModelError, match="has 1 tokens, such as 333, beyond the 333 embeddings of the model"):
            read(prepare_folder("own", folder, tmp_path), "float32")


def test_a_pad_that_nobody_writes_needs_no_embedding(tmp_path: Path) -> None:
    """Fine-tuners add one, and no text becomes a control token; a chat template would write it."""
    folder = tiny_base(tmp_path / "base")
    add_to_tokenizer(folder, "<pad>", special=True)
    assert 333 not in load(folder).encode("a <pad>", True)
    (folder / "chat_template.jinja").write_text("<pad>{{ messages[0].content }}")
    with pytest.raises(BaseModelError, match="such as 333, beyond the 333 embeddings"):
        load(folder)


def test_a_tokenizer_that_cannot_read_every_text_is_refused(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base")
    made = json.loads((folder / "tokenizer.json").read_text())
    made |= {"pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None, "added_tokens": []}
    made["model"] = {"type": "WordLevel", "vocab": {"a": 0, "film": 1}, "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(BaseModelError, match=r"its tokenizer: .*it cannot read every text"):
        load(folder)


def test_an_end_of_text_that_is_no_number_ends_nothing(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base")
    state(folder, "generation_config.json", eos_token_id="</s>")
    assert load(folder).end_tokens == {2}
