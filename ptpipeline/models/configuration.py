"""The configuration of a base model in one form, however it was saved.

transformers fills in fields that a file leaves out, and each release saves more of them. So a field counts unless the
model's own configuration class fills in the same value without it, or unless it is known to change no answer.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptpipeline.errors import BaseModelError
from ptpipeline.foreign import parsing
from ptpipeline.hub import check_variables
from ptpipeline.models.files import CONFIG, BaseFiles
from ptpipeline.records.base import digest_of

MAX_LAYERS = 1_000  # the deepest bases have a tenth; each takes milliseconds before its weights are looked for
START = "decoder_start_token_id"
_FLOAT = "__float__"
_FORM = 1  # raise it by one if the same file would get another digest

# Each of these fields changes no answer:
HARMLESS = {
    "transformers_version": "says who saved it",
    "dtype": "the compute type is a setting, and the stored type is in the weights",
    "torch_dtype": "the same, by its name before transformers 5",
    "_name_or_path": "says where it lay",
    "_model_name_or_path": "a name, which a GGUF file states",
    "_commit_hash": "says where it came from",
    "architectures": "the class follows from model_type; a test asserts that each model_type has one class",
    "use_cache": "every call here passes a cache or none",
    "output_attentions": "the answer holds more, and its logits stay",
    "output_hidden_states": "the same",
    "return_dict": "how an answer is wrapped",
    "bos_token_id": "BOS comes from the tokenizer",
    "eos_token_id": "the fingerprint has the tokens that end a text apart",
    START: "it is taken from here or from generation_config.json, as the loader does",
}
# Older names of settings that the class keeps under `rope_parameters`.
_ROTARY = ("rope_theta", "rope_scaling")


def digest_configuration(files: BaseFiles, home: Path) -> str:
    """Return the digest of the fields that count; remembered under PTP_HOME by content, to spare loading transformers.

    Raises BaseModelError if transformers takes the file for no model.
    """
    stated = [files.digest_of_text(CONFIG), _read_generation_start(files)]
    key = digest_of([_FORM, sorted(HARMLESS), version("transformers"), *stated])
    known = home / "fingerprints" / f"config-{key}.txt"
    if known.is_file() and len(text := known.read_text()) == 64:
        return text
    digest = digest_of(reduce_configuration(files))
    known.parent.mkdir(parents=True, exist_ok=True)
    partial = known.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(digest)
    partial.rename(known)
    return digest


def reduce_configuration(files: BaseFiles) -> dict[str, Any]:
    """Return the fields that count, with their values."""
    stated, path = files.read_json(CONFIG) or {}, files.folder / CONFIG
    if not isinstance(stated.get("model_type"), str):
        raise BaseModelError(f"{path}: states no model_type; expected a configuration that transformers saved")
    _check_layers(stated, path)
    check_variables()
    from transformers import AutoConfig, GenerationConfig

    with parsing(f"{path}: transformers", "it states no model that transformers knows", BaseModelError, quoting=True):
        with files.view() as folder:
            kind = type(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        full = _build(kind, stated)
        ignored = {*HARMLESS, *_ROTARY, *GenerationConfig().to_dict()}
        rest = dict(full)
        for field in sorted(full):
            without = {name: value for name, value in rest.items() if name != field}
            if field in HARMLESS or _fills_in(kind, without, full):
                rest = without
        unknown = {field: value for field, value in stated.items() if field not in full and field not in ignored}
        start = full.get(START)
        start = _read_generation_start(files) if start is None else start  # as the loader reads it
        return unknown | rest | {"model_type": full["model_type"]} | ({} if start is None else {START: start})


def _read_generation_start(files: BaseFiles) -> Any:
    return (files.read_json("generation_config.json") or {}).get(START)


def _build(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Return all fields that the class has after it was built from these."""
    own = json.loads(json.dumps(fields), object_hook=_read_number)
    full: dict[str, Any] = json.loads(json.dumps(kind(**own).to_dict()), parse_constant=_write_number)
    return full


def _read_number(value: dict[str, Any]) -> Any:
    """Return the infinity that transformers saves as an object, since JSON has no word for it."""
    return float(value[_FLOAT]) if list(value) == [_FLOAT] else value


def _write_number(name: str) -> dict[str, str]:
    return {_FLOAT: name}


def _fills_in(kind: Any, fields: dict[str, Any], full: dict[str, Any]) -> bool:
    try:
        built = _build(kind, fields)
    except Exception:  # noqa: BLE001 - a class that cannot do without a field does not fill it in
        return False
    return {**built, **dict.fromkeys(HARMLESS)} == {**full, **dict.fromkeys(HARMLESS)}


def _check_layers(value: Any, path: Path) -> None:
    if isinstance(value, dict):
        for field, inner in value.items():
            if isinstance(inner, int) and "layer" in field and inner > MAX_LAYERS:
                raise BaseModelError(f"{path}: {field} is {inner}; at most {MAX_LAYERS} layers are read")
            _check_layers(inner, path)
