"""All of a configuration counts but what is known to change no answer, in one form whoever saved it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ptpipeline.errors import BaseModelError
from ptpipeline.models import configuration
from ptpipeline.models.base import prepare_folder
from ptpipeline.models.configuration import HARMLESS, START, reduce_configuration
from ptpipeline.models.files import read_files
from tests.tiny import tiny_base

LLAMA = {  # as transformers 4 saved it: no layer types, no head width, rotary settings beside each other
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"factor": 2.0, "type": "linear"},
    "rope_theta": 7000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "transformers_version": "4.30.0",
    "use_cache": True,
    "vocab_size": 333,
}
SAVED = {
    "llama": LLAMA,
    "llama without rotary settings": {name: LLAMA[name] for name in LLAMA if not name.startswith("rope")},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 32, "rope_scaling": None},
    "qwen2": LLAMA | {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False, "rope_scaling": None},
    "gemma3": LLAMA | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 6, "rope_scaling": None},
    "granite": LLAMA | {"model_type": "granite", "logits_scaling": 8.0, "rope_scaling": None},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "n_ctx": 256},
    "t5": {"model_type": "t5", "d_model": 64, "num_layers": 2, "tie_word_embeddings": True, "is_encoder_decoder": True},
    "t5 1.1": {"model_type": "t5", "d_model": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {"model_type": "mt5", "d_model": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "model")


def write(folder: Path, config: dict[str, Any]) -> str:
    """Put the configuration into the folder; returns the fingerprint."""
    (folder / "config.json").write_text(json.dumps(config))
    return prepare_folder("tiny", folder, folder.parent / "home").ref.fingerprint


@pytest.mark.parametrize("config", SAVED.values(), ids=SAVED)
def test_a_save_by_transformers_5_changes_nothing(config: dict[str, Any], folder: Path) -> None:
    before = write(folder, config)
    AutoConfig.from_pretrained(folder).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()) != config
    assert prepare_folder("tiny", folder, folder.parent / "home").ref.fingerprint == before


@pytest.mark.parametrize("config", SAVED.values(), ids=SAVED)
def test_what_counts_builds_the_same_configuration(config: dict[str, Any], folder: Path) -> None:
    write(folder, config)
    full = AutoConfig.from_pretrained(folder)
    rebuilt = type(full)(**copy.deepcopy(reduce_configuration(read_files(folder)))).to_dict()
    assert {name: value for name, value in rebuilt.items() if name not in HARMLESS} == {
        name: value for name, value in full.to_dict().items() if name not in HARMLESS
    }


# Every harmless field, with another value than its own.
OTHER = {
    "transformers_version": "3.0.0",
    "dtype": "float16",
    "torch_dtype": "bfloat16",
    "_name_or_path": "elsewhere",
    "_model_name_or_path": "another",
    "_commit_hash": "f" * 40,
    "architectures": ["GraniteForCausalLM"],
    "use_cache": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
    "bos_token_id": 7,
    "eos_token_id": 8,
    "decoder_start_token_id": 9,
}


def answer(**fields: object) -> torch.Tensor:
    """The logits of a Llama of that configuration, with the same weights as far as they fit."""
    torch.manual_seed(0)
    given = copy.deepcopy(LLAMA)  # transformers writes into it
    config = LlamaConfig.from_dict(given | {"attn_implementation": "eager"} | fields)
    config.return_dict = True  # as `load_base` does
    return LlamaForCausalLM(config).eval()(torch.arange(9)[None]).logits


@pytest.mark.parametrize("field", HARMLESS)
def test_a_harmless_field_changes_no_answer(field: str) -> None:
    assert torch.equal(answer(), answer(**{field: OTHER[field]}))


@pytest.mark.parametrize("field", HARMLESS)
def test_a_harmless_field_does_not_count(field: str, folder: Path) -> None:
    # START counts, as the loader reads it
    same = write(folder, LLAMA) == write(folder, LLAMA | {field: OTHER[field]})
    assert same == (field != START)


def granite(**fields: float) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return GraniteForCausalLM(GraniteConfig(**sizes, **heads, **fields)).eval()


@pytest.mark.parametrize(
    "field", ["embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"]
)
def test_each_multiplier_of_granite_counts(field: str, folder: Path) -> None:
    ids = torch.arange(9)[None]
    assert not torch.allclose(granite()(ids).logits, granite(**{field: 2.0})(ids).logits)
    plain = GraniteConfig(hidden_size=64).to_dict()
    assert write(folder, plain) != write(folder, plain | {field: 2.0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", 8000.0),
        ("rope_scaling", {"factor": 4.0, "type": "linear"}),
        ("tie_word_embeddings", False),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("pad_token_id", 7),
        ("quantization_config", {"quant_method": "none"}),
        ("a_field_of_tomorrow", 1),
        ("model_type", "granite"),
    ],
)
def test_every_other_field_counts(field: str, value: object, folder: Path) -> None:
    assert write(folder, LLAMA) != write(folder, LLAMA | {field: value})


def test_a_field_that_is_left_out_is_not_taken_for_its_opposite(folder: Path) -> None:
    untied = {name: value for name, value in LLAMA.items() if name != "tie_word_embeddings"}
    assert write(folder, untied) == write(folder, untied | {"tie_word_embeddings": False}) != write(folder, LLAMA)


def test_the_class_of_a_model_follows_from_its_type() -> None:
    """Where a type had several classes, `architectures` would choose between them and had to count."""
    for classes in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES):
        assert [name for name, found in classes.items() if not isinstance(found, str)] == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hidden_size": 64}, "states no model_type"),
        ({"hidden_size": 64, "model_type": "never-heard-of"}, "states no model that transformers knows"),
        ({"hidden_size": 64, "model_type": ["llama"]}, "states no model_type"),
        (LLAMA | {"num_hidden_layers": 10**9}, "at most 1000 layers"),
        (LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 2**60}, "at most 1000 layers"),
        (LLAMA | {"text_config": {"num_hidden_layers": 1_001}}, "at most 1000 layers"),
        (LLAMA | {"text_config": {"num_hidden_layers": 1_000}, "vocab_size": [1]}, "transformers"),
        (LLAMA | {"hidden_size": "wide"}, "states no hidden_size"),
        (LLAMA | {"hidden_size": True}, "states no hidden_size"),
        ({"model_type": "llava", "text_config": LLAMA}, "choose a model of text alone"),
        (LLAMA | {"rope_scaling": "linear"}, "transformers"),
        (LLAMA | {"vocab_size": [1]}, "transformers"),
    ],
)
def test_a_configuration_of_no_model_is_refused_in_a_sentence(
    config: dict[str, Any], expected: str, folder: Path
) -> None:
    with pytest.raises(BaseModelError, match=expected):
        write(folder, config)


def test_another_release_of_transformers_builds_a_configuration_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may fill in other values."""
    write(folder, LLAMA)
    monkeypatch.setattr(configuration, "version", lambda package: "6.0")
    write(folder, LLAMA)
    assert len(list((folder.parent / "home/fingerprints").iterdir())) == 2


def test_a_known_configuration_is_not_built_again(folder: Path) -> None:
    home = folder.parent / "home"
    before = write(folder, LLAMA)
    (known,) = (home / "fingerprints").iterdir()
    known.write_text("cut")  # what is no digest is computed again
    assert prepare_folder("tiny", folder, home).ref.fingerprint == before
    assert len(known.read_text()) == 64
