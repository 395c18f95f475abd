"""What a base model hashes to: exactly what is loaded of it, by content.

A fingerprint covers names, types, shapes and bytes of all tensors; the configuration but for fields known to change no
answer (`configuration.HARMLESS`); the tokenizer with its settings; and the tokens that end a decoded text. Files are
read by `files`, which refuses a folder that holds more.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.errors import BaseModelError
from ptpipeline.foreign import parsing
from ptpipeline.models.configuration import digest_configuration
from ptpipeline.models.files import CONFIG, TOKENIZER, BaseFiles
from ptpipeline.records.base import digest_of
from ptpipeline.records.prompts import BaseModelRef

UNSTATED_LENGTH = 1_000_000  # tokens; a tokenizer without a bound states 1e30

# Fields of tokenizer_config.json that change no ids, besides those that `digest_tokenizer` reads by itself.
_HARMLESS = {
    "tokenizer_class": "read by itself",
    "model_max_length": "a causal model's context is that of its configuration; that of a T5 is read by itself",
    "additional_special_tokens": "read by itself",
    "extra_special_tokens": "read by itself",
    "model_specific_special_tokens": "read by itself",
    "add_bos_token": "transformers 5 takes it from tokenizer.json alone",
    "add_eos_token": "the same",
    "chat_template": "what it wrote is kept with each prompt of a chat",
    "padding_side": "batches are padded here",
    "truncation_side": "a text that is too long is refused or cut here",
    "clean_up_tokenization_spaces": "decoding of transformers 5 ignores it",
    "model_input_names": "ids alone are read",
    "processor_class": "no processor is loaded",
    "backend": "says how it was saved",
    "transformers_version": "says who saved it",
    "name_or_path": "says where it lay",
    "special_tokens_map_file": "says where it lay",
    "tokenizer_file": "the loader puts tokenizer.json in its place",
    "is_local": "says where it lay",
    "local_files_only": "the loader says it again",
}
_EARLIER_SETTINGS = ("add_prefix_space", "split_special_tokens", "legacy", "extra_ids", "added_tokens_decoder")
# A prompt's width by its names: OPT's embeddings may be narrower than its layers, and BLOOM's have a name of their own.
_WIDTHS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "n_embed")
_GENERIC = {"PreTrainedTokenizer": "TokenizersBackend"}  # one class, by its names before and since transformers 5


class Fingerprints(NamedTuple):
    """A base model by its fingerprint, and by the one that the same files had before all that is loaded was covered."""

    ref: BaseModelRef
    earlier: BaseModelRef


def compute_fingerprints(name: str, files: BaseFiles, home: Path) -> Fingerprints:
    """Return what the files hash to. Raises BaseModelError if one of them is damaged."""
    with parsing(f"base model {name}: {files.folder}", "it is damaged, fetch it again", BaseModelError):
        config = files.read_json(CONFIG) or {}
        generation = files.read_json("generation_config.json")
        hidden = next((own for field in _WIDTHS if (own := config.get(field))), None)
        if type(hidden) is not int:
            of_text = "text_config" in config or "thinker_config" in config
            raise BaseModelError(
                f"base model {name}: {files.folder / CONFIG} states no hidden_size (nor n_embd or d_model)"
                + ("; it reads more than text, which is not supported: choose a model of text alone" if of_text else "")
            )
        start = config.get("decoder_start_token_id")
        if start is None:  # read there by the loader, too
            start = (generation or {}).get("decoder_start_token_id")
        ends = (config if generation is None else generation).get("eos_token_id")  # as transformers reads them
        tokenizer = _digest_tokenizer(files, config)
        parts = {
            "weights": files.weights_digest,
            "tokenizer": tokenizer,
            "config": digest_configuration(files, home),
            "ends": ends,
        }
        earlier_tokenizer = _digest_tokenizer(files, config, _EARLIER_SETTINGS)
        earlier = {
            "weights": files.weights_digest,
            "tokenizer": earlier_tokenizer,
            "config": _select_earlier(config | {"decoder_start_token_id": start}),
            "ends": ends,
        }
        return Fingerprints(
            BaseModelRef(name=name, fingerprint=digest_of(parts), tokenizer_fingerprint=tokenizer, hidden_size=hidden),
            BaseModelRef(
                name=name, fingerprint=digest_of(earlier), tokenizer_fingerprint=earlier_tokenizer, hidden_size=hidden
            ),
        )


def _digest_tokenizer(files: BaseFiles, config: dict[str, Any], settings: tuple[str, ...] | None = None) -> str:
    """Return the digest of the tokenizer file and of what else decides ids: class, special tokens, settings, and T5's
    context. `settings` are the fields that count; if there are none given, all but the harmless.
    """
    stated = files.read_json("tokenizer_config.json") or {}
    if "added_tokens_decoder" not in stated:  # savers before transformers 5 write these two files in its place
        stated |= files.read_json("special_tokens_map.json") or {}
        stated["added_tokens_decoder"] = files.read_json("added_tokens.json")
    kind = str(stated.get("tokenizer_class") or config.get("tokenizer_class")).removesuffix("Fast")
    fields = settings or [field for field in stated if field not in _HARMLESS and not _is_token(field, stated[field])]
    parts = {
        "file": files.digest_of_text(TOKENIZER),
        "class": _GENERIC.get(kind, kind),
        "bos": _read_token(stated.get("bos_token")),
        "eos": _read_token(stated.get("eos_token")),
        "special": sorted(_list_special_tokens(stated)),
        "settings": {field: stated[field] for field in fields if stated.get(field) is not None},
    }
    length = stated.get("model_max_length")
    bounded = config.get("is_encoder_decoder") and length is not None and length < UNSTATED_LENGTH
    return digest_of(parts | ({"context": length} if bounded else {}))


def _is_token(field: str, value: Any) -> bool:
    return field.endswith("_token") and isinstance(value, str | dict)


def _list_special_tokens(stated: dict[str, Any]) -> set[str]:
    """Return all tokens that decoding skips and sampled vocabulary leaves out; their roles change nothing."""
    tokens = [value for field, value in stated.items() if _is_token(field, value)]
    for field in ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"):
        more = stated.get(field) or []
        tokens += more.values() if isinstance(more, dict) else more
    return {str(_read_token(token)) for token in tokens}


def _read_token(token: Any) -> Any:
    """Return a token's text, which some savers wrap in a record of how it is matched."""
    return token.get("content") if isinstance(token, dict) else token


# ---------------------------------------------------------------- as it was before

# The fields that counted. Prompts that were trained then name such a fingerprint; do not change what follows.
_EARLIER_FIELDS = (
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
_EARLIER_SEQ2SEQ_FIELDS = (
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


def _select_earlier(config: dict[str, Any]) -> dict[str, Any]:
    rope = dict(
        config.get("rope_parameters") or {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    )
    if rope.get("rope_type") == "default":
        del rope["rope_type"]
    fields = {field: config[field] for field in _EARLIER_FIELDS if config.get(field) is not None} | {"rope": rope}
    return _add_earlier_seq2seq(config, fields) if config.get("is_encoder_decoder") else fields


def _add_earlier_seq2seq(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Savers before transformers 5 state only by the tying whether a T5 scales the states of its head, and leave out
    the number of decoder layers if it is that of the encoder.
    """
    fields |= {field: config[field] for field in _EARLIER_SEQ2SEQ_FIELDS if config.get(field) is not None}
    fields["num_decoder_layers"] = config.get("num_decoder_layers") or config.get("num_layers")
    if config.get("model_type") == "t5":
        tied = fields.pop("tie_word_embeddings", None) is not False
        fields["scale_decoder_outputs"] = config.get("scale_decoder_outputs", tied)
    return fields
