"""Prompts as PEFT stores them, written and read without PEFT, and as plain NumPy arrays.

A PEFT adapter is `adapter_config.json` beside `adapter_model.safetensors` (the layout of PEFT 0.21) with one tensor,
`prompt_embeddings`: [P, H] for prompt tuning and P-tuning; [P, L 2 kv d] for prefix tuning, the key and the value of
each layer in turn. In the second case its token_dim is kv d, and its num_attention_heads is kv. For encoder-decoders
PEFT allocates 2 P rows, of which the model reads the first P.

Letters: P virtual tokens, H width, L layers, kv key/value heads, d a head's width.
"""

import io
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save
from torch import Tensor

from ptpipeline.errors import ArtifactError, DataError, NotFound
from ptpipeline.foreign import parse_json, parsing, read_file, shorten
from ptpipeline.models.inputs import KeyValues, SoftPrompt
from ptpipeline.prompts.artifact import MAX_MANIFEST_BYTES, MAX_VIRTUAL_TOKENS
from ptpipeline.prompts.initialise import read_tensor, read_tensor_file
from ptpipeline.prompts.tensors import name_tensors
from ptpipeline.records.prompts import Placement

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
TENSOR = "prompt_embeddings"
METHODS: dict[str, Literal["prompt", "p_tuning", "prefix"]] = {
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "p_tuning",
    "PREFIX_TUNING": "prefix",
}


class AdapterBase(NamedTuple):
    """The base model as an adapter's configuration names it: a folder or a hub id with its revision, and its kind."""

    name_or_path: str
    revision: str | None
    encoder_decoder: bool


class ForeignPrompt(NamedTuple):
    """A prompt that something else trained: float32 on the CPU, finite.

    What its file does not state is None: the placement, the base that it names, the kind of model that it is for.
    """

    prompt: SoftPrompt
    method: Literal["prompt", "p_tuning", "prefix"]
    placement: Placement | None
    named_base: str | None
    encoder_decoder: bool | None
    notes: list[str]


def build_peft_files(prompt: SoftPrompt, base: AdapterBase) -> dict[str, bytes]:
    """Return the files of a PEFT adapter, in float32, that computes the same as this prompt before the text."""
    tensor = _flatten(prompt) if isinstance(prompt, KeyValues) else prompt.detach().float().cpu()
    config: dict[str, Any] = {
        "task_type": "SEQ_2_SEQ_LM" if base.encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": base.name_or_path,
        "revision": base.revision,
        "inference_mode": True,
        "num_virtual_tokens": tensor.shape[0],
        "num_transformer_submodules": 1,
        **(
            _describe_prefix(prompt)
            if isinstance(prompt, KeyValues)
            else {"peft_type": "PROMPT_TUNING", "token_dim": tensor.shape[1]}
        ),
    }
    weights = save({TENSOR: tensor.contiguous()}, metadata={"format": "pt"})
    return {CONFIG_FILE: json.dumps(config, indent=2, sort_keys=True).encode(), WEIGHTS_FILE: weights}


def build_npy_files(prompt: SoftPrompt) -> dict[str, bytes]:
    """Return `embeddings.npy` [P, H], or `prefix_key.npy` and `prefix_value.npy` [L, kv, P, d], in float32."""
    return {f"{name.replace('.', '_')}.npy": _encode_npy(tensor) for name, tensor in name_tensors(prompt).items()}


def read_foreign(path: Path) -> ForeignPrompt:
    """Return the prompt of a PEFT adapter's folder, or of a `.npy` file [P, H].

    Raises NotFound if there is none, ArtifactError if its files are damaged, out of bounds or of another kind.
    """
    if path.suffix == ".npy" and path.is_file():
        return _read_npy(path)
    if (path / CONFIG_FILE).is_file():
        return _read_adapter(path)
    raise NotFound(
        f"{path}: no prompt to import; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or a .npy file"
    )


# ---------------------------------------------------------------- writing


def _describe_prefix(prefix: KeyValues) -> dict[str, Any]:
    layers, heads, _, width = prefix.key.shape
    return {
        "peft_type": "PREFIX_TUNING",
        "token_dim": heads * width,
        "num_attention_heads": heads,
        "num_layers": layers,
        "prefix_projection": False,
        "encoder_hidden_size": heads * width,
    }


def _flatten(prefix: KeyValues) -> Tensor:
    """Return [P, L 2 kv d] of keys and values, [L, kv, P, d] each."""
    stacked = torch.stack([tensor.detach().float().cpu() for tensor in prefix], 1)  # [L, 2, kv, P, d]
    return stacked.permute(3, 0, 1, 2, 4).flatten(1)


def _encode_npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.detach().float().cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()


# ---------------------------------------------------------------- reading


class _Config(BaseModel):
    """The part of an adapter's configuration that tells how to read its tensor; the rest tells how it was trained."""

    model_config = ConfigDict(frozen=True, strict=True)

    peft_type: str
    task_type: Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"] | None = None
    base_model_name_or_path: str | None = None
    num_virtual_tokens: int = Field(ge=1, le=MAX_VIRTUAL_TOKENS)
    num_transformer_submodules: Literal[1, 2] | None = None
    token_dim: int = Field(ge=1)
    num_attention_heads: int | None = Field(default=None, ge=1)
    num_layers: int | None = Field(default=None, ge=1)

    @property
    def submodules(self) -> int:
        """Number of the model's stacks that PEFT allocated rows for; if not stated, both of an encoder-decoder."""
        return self.num_transformer_submodules or (2 if self.task_type == "SEQ_2_SEQ_LM" else 1)


def _read_adapter(folder: Path) -> ForeignPrompt:
    config = _read_config(folder / CONFIG_FILE)
    tensor = _read_weights(folder)
    where = f"{folder / WEIGHTS_FILE}: {TENSOR}"
    encoder_decoder = None if config.task_type is None else config.task_type == "SEQ_2_SEQ_LM"
    method, notes = METHODS[config.peft_type], list[str]()
    if method == "prefix":
        return ForeignPrompt(
            _unflatten(tensor, config, where),
            method,
            "before_bos",
            config.base_model_name_or_path,
            encoder_decoder,
            notes,
        )
    if encoder_decoder and config.submodules == 2:
        _check_shape(tensor, [2 * config.num_virtual_tokens, config.token_dim], where)
        notes.append(
            f"of {len(tensor)} rows the first {config.num_virtual_tokens} were imported: PEFT allocates the others "
            "for the decoder, and no model reads them"
        )
        tensor = tensor[: config.num_virtual_tokens].clone()
    _check_shape(tensor, [config.num_virtual_tokens, config.token_dim], where)
    return ForeignPrompt(tensor, method, "before_bos", config.base_model_name_or_path, encoder_decoder, notes)


def _read_config(path: Path) -> _Config:
    expected = "expected a JSON object with `peft_type`"
    with parsing(f"{path}: not the configuration of a PEFT adapter", expected):
        values = parse_json(
            read_file(path, MAX_MANIFEST_BYTES), f"{path}: not the configuration of a PEFT adapter", expected
        )
        kind = values["peft_type"]
    if not isinstance(kind, str) or kind not in METHODS:
        raise ArtifactError(
            f"{path}: peft_type is {shorten(kind)}, which cannot be imported as a soft prompt; expected "
            f"{', '.join(METHODS)}"
        )
    try:
        return _Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtifactError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {shorten(first['input'])}"
        ) from None


def _read_weights(folder: Path) -> Tensor:
    """Return the adapter's only tensor as finite float32; its size is checked before anything is read."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if (folder / PICKLE_FILE).is_file():
            raise ArtifactError(
                f"{folder / PICKLE_FILE}: it is not read, because a pickle can run code; if you trust it, save it as "
                "safetensors: PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)"
            )
        raise NotFound(f"{path}: missing beside {CONFIG_FILE}")
    with parsing(str(path), "it is truncated or altered; fetch the adapter again"):
        tensor = read_tensor_file(path, TENSOR, alone=True)
    if not tensor.is_floating_point() or tensor.itemsize < 2 or not torch.isfinite(tensor).all():
        raise ArtifactError(
            f"{path}: {TENSOR} are {tensor.dtype} and not all finite numbers; expected finite float16, "
            "bfloat16 or float32"
        )
    return tensor.float()


def _unflatten(tensor: Tensor, config: _Config, where: str) -> KeyValues:
    """Return keys and values [L, kv, P, d] of [P, L 2 kv d]."""
    heads, layers = config.num_attention_heads, config.num_layers
    if heads is None or layers is None or config.token_dim % heads:
        raise ArtifactError(
            f"{where}: prefix tuning needs num_layers and num_attention_heads that divide token_dim in {CONFIG_FILE}, "
            f"found {layers} and {heads} for {config.token_dim}; save the adapter again with a current PEFT"
        )
    _check_shape(tensor, [config.num_virtual_tokens, layers * 2 * config.token_dim], where)
    split = tensor.view(config.num_virtual_tokens, layers, 2, heads, -1).permute(2, 1, 3, 0, 4)  # [2, L, kv, P, d]
    return KeyValues(*(part.contiguous() for part in split))


def _check_shape(tensor: Tensor, expected: list[int], where: str) -> None:
    if list(tensor.shape) != expected:
        raise ArtifactError(
            f"{where} are {list(tensor.shape)}, {CONFIG_FILE} states {expected}; the two files do not belong together"
        )


def _read_npy(path: Path) -> ForeignPrompt:
    try:
        tensor = read_tensor(path)
    except DataError as error:
        raise ArtifactError(str(error)) from None
    if not 1 <= len(tensor) <= MAX_VIRTUAL_TOKENS:
        raise ArtifactError(f"{path}: {len(tensor)} virtual tokens, allowed are 1 to {MAX_VIRTUAL_TOKENS}")
    return ForeignPrompt(tensor, "prompt", None, None, None, [])
