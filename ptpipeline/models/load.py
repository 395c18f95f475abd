"""Loading a prepared base: frozen, in eval mode, in its compute type, as the family that its configuration states."""

from pathlib import Path
from typing import Any, Literal

import torch

from ptpipeline.errors import BaseModelError
from ptpipeline.models.attention import use_short_rows
from ptpipeline.models.base import UNSTATED_LENGTH, Prepared
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.seq2seq import FAMILIES, Seq2SeqBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
T5_LENGTH = 512  # tokens of a row while T5 was trained (Raffel et al. 2020, section 3.1.2)


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 matrices natively; emulated ones are slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))


def compute_dtype(setting: Literal["auto", "float32", "bfloat16"]) -> str:
    """The compute type that a setting means on this machine: `float32` or `bfloat16`."""
    if setting == "auto":
        return "bfloat16" if native_bfloat16() else "float32"
    return setting


def load_base(prepared: Prepared, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> FrozenBase:
    """The prepared base model as its family.

    Raises BaseModelError where the folder holds no such model, is an encoder-decoder other than T5, or its
    configuration states no context length.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    folder: Path = prepared.folder
    chosen = DTYPES[compute_dtype(dtype)]
    try:
        config = AutoConfig.from_pretrained(folder)
        _check_family(prepared.name, config)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=chosen, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise BaseModelError(
            f"base model {prepared.name}: {folder} does not load as a language model: {error}"
        ) from error
    model.requires_grad_(False)
    model.eval()
    if torch.cuda.is_available():
        model.to("cuda")
    context = _context(prepared.name, config, tokenizer)
    if config.is_encoder_decoder:
        if model.device.type == "cpu" and chosen == torch.bfloat16:
            model.set_attn_implementation("eager")  # .8 of the fused kernel's time, as near to the float32 gradient
        return Seq2SeqBase(model, tokenizer, prepared.ref, chosen, context, _start(prepared.name, model))
    use_short_rows(model)
    return CausalBase(model, tokenizer, prepared.ref, chosen, context)


def _check_family(name: str, config: Any) -> None:
    if config.is_encoder_decoder and config.model_type not in FAMILIES:
        raise BaseModelError(
            f"base model {name}: {config.model_type} is an encoder-decoder that is not supported "
            f"({' and '.join(FAMILIES)} are); take one of these or a causal model"
        )


def _context(name: str, config: Any, tokenizer: Any) -> int:
    """The most tokens that the model reads; T5's relative positions have no bound, there the length that it was trained
    on.
    """
    length: int = tokenizer.model_max_length
    if config.is_encoder_decoder and length < UNSTATED_LENGTH:
        return length
    stated = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(stated, int):
        return stated
    if config.is_encoder_decoder:
        return T5_LENGTH
    raise BaseModelError(
        f"base model {name}: its config.json states no context length (max_position_embeddings or n_positions)"
    )


def _start(name: str, model: Any) -> int:
    for config in (model.config, model.generation_config):
        start = getattr(config, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise BaseModelError(
        f"base model {name}: its config.json states no decoder_start_token_id; add it (0, the pad token, for T5)"
    )
