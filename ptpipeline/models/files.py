"""The files of a base model's folder: which are loaded, and the same bytes for the fingerprint and for the loader.

The loader sees a folder that holds nothing else. It gets the small files as copies of the bytes that were hashed, and
links to the weights. Any other file of weights, an adapter, and fields that name code or further files are refused.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ptpipeline.errors import BaseModelError, NotFound
from ptpipeline.foreign import parse_json, read_file
from ptpipeline.models.chat import MAX_TEMPLATE, ChatTemplate
from ptpipeline.models.weights import FETCH_AGAIN, FileState, digest_weights, state_of
from ptpipeline.private import scratch

CONFIG, TOKENIZER, WEIGHTS, INDEX = "config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-?????-of-?????.safetensors"  # as transformers names them
CHAT = "chat_template.jinja"
SIDE_FILES = (
    CONFIG,
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    CHAT,
)

_MAX_BYTES = 256 * 2**20  # of one of the files above
_LARGEST = math.inf  # a tokenizer without a bound states 10**30 tokens as an integer
_WEIGHTS_ENDINGS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".ckpt.index",
    ".pkl",
    ".pickle",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".npz",
    ".ot",
)
# Fields by which transformers would run other code, or read other files than these.
_FOREIGN_FIELDS = {
    "auto_map": "names code of its own",
    "custom_pipelines": "names code of its own",
    "attn_implementation": "may name code of its own",
    "_attn_implementation": "may name code of its own",
    "experts_implementation": "may name code of its own",
    "_experts_implementation": "may name code of its own",
    "configuration_files": "names another configuration file",
    "fast_tokenizer_files": "names another tokenizer file",
    "transformers_weights": "names another file of weights",
}

_digests: dict[tuple[FileState, ...], str] = {}  # of weights that this process has read, by their files' states


class BaseFiles(NamedTuple):
    """A base model's files: the small ones by name with their bytes, the weights with their states and their digest."""

    folder: Path
    texts: dict[str, bytes]
    weights: list[Path]
    states: list[FileState]
    weights_digest: str

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the fields of one of the small files; None if there is no such file."""
        return _parse(self.folder / name, self.texts[name]) if name in self.texts else None

    def digest_of_text(self, name: str) -> str:
        """Return the sha256 of one of the small files."""
        return hashlib.sha256(self.texts[name]).hexdigest()

    def read_chat_template(self) -> ChatTemplate | None:
        """Return the base's chat template; None if it has none. Raises BaseModelError if it is too large."""
        stated = self.read_json("tokenizer_config.json") or {}
        if "added_tokens_decoder" not in stated:  # as fingerprint.py: savers before transformers 5
            stated |= self.read_json("special_tokens_map.json") or {}
        text = self.texts[CHAT].decode(errors="replace") if CHAT in self.texts else stated.get("chat_template")
        if isinstance(text, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
            text = named.get("default")
        if not isinstance(text, str) or not text.strip():
            return None
        if len(text) > MAX_TEMPLATE:
            raise BaseModelError(f"{self.folder}: its chat template has more than {MAX_TEMPLATE} characters")
        values = ((role, value.get("content") if isinstance(value, dict) else value) for role, value in stated.items())
        roles = {role: value for role, value in values if role.endswith("_token") and isinstance(value, str)}
        return ChatTemplate(text, tuple(sorted(roles.items())))

    @classmethod
    def look_at(cls, folder: Path) -> "BaseFiles":
        """Return the small files of a folder, whose weights are not looked at. Raises what `read_file` raises."""
        paths = {name: folder / name for name in SIDE_FILES if name != TOKENIZER}
        texts = {name: read_file(path, _MAX_BYTES, BaseModelError) for name, path in paths.items() if path.exists()}
        return cls(folder, texts, [], [], "")

    @contextmanager
    def view(self) -> Iterator[Path]:
        """Give a folder with these files and no other, to load from."""
        with scratch("ptp-base-") as folder:
            for name, body in self.texts.items():
                Path(folder, name).write_bytes(body)
            for path in self.weights:
                Path(folder, path.name).symlink_to(path.resolve())
            yield folder

    def check_unchanged(self) -> None:
        """Raise BaseModelError if somebody wrote to the weights, or replaced them, since they were hashed."""
        for path, state in zip(self.weights, self.states, strict=True):
            if not path.exists() or state_of(path) != state:
                raise BaseModelError(f"{path}: was changed since it was hashed; run again")


def read_files(folder: Path) -> BaseFiles:
    """Return the files of the model in `folder`. Weights are hashed once per process, and again if a file changed.

    Raises BaseModelError if a file is missing or damaged, or if there is one that the fingerprint would not cover.
    """
    texts = read_texts(folder)
    weights = _list_weights(folder, texts)
    states = tuple(state_of(path) for path in weights)
    digest = _digests.get(states)
    if digest is None:
        digest, read = digest_weights(weights)
        states = tuple(read)
        _digests[states] = digest
    return BaseFiles(folder, texts, weights, list(states), digest)


def read_texts(folder: Path) -> dict[str, bytes]:
    """Return the small files of the model in `folder` by name: configuration, tokenizer, chat template. No weights are
    read.

    Raises BaseModelError if one is missing or damaged, or names code or files that no fingerprint covers.
    """
    texts = {name: _read(folder / name) for name in SIDE_FILES if os.path.lexists(folder / name)}
    if CONFIG not in texts or TOKENIZER not in texts:
        lacking = CONFIG if CONFIG not in texts else TOKENIZER
        fix = "give the folder of a model that transformers saved"
        if lacking == TOKENIZER:  # older models have vocab.txt, merges.txt or a SentencePiece model alone
            fix = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes it"
        raise BaseModelError(f"{folder} lacks {lacking}; {fix}")
    for name in texts.keys() - {CHAT}:
        _check_fields(folder / name, _parse(folder / name, texts[name]))
    return texts


def _read(path: Path) -> bytes:
    """The bytes of a small file; a link to nowhere, which an interrupted download leaves, is no missing file."""
    try:
        return read_file(path, _MAX_BYTES, BaseModelError)
    except (BaseModelError, NotFound) as error:
        raise BaseModelError(f"{error}; it is not what its name says, {FETCH_AGAIN}") from None


def _parse(path: Path, body: bytes) -> dict[str, Any]:
    fields = parse_json(body, str(path), f"the model is damaged, {FETCH_AGAIN}", BaseModelError, _LARGEST)
    if not isinstance(fields, dict):
        raise BaseModelError(f"{path}: the model is damaged (no JSON object); {FETCH_AGAIN}")
    return fields


def _check_fields(path: Path, value: Any) -> None:
    """Refuse a field, at any depth, by which a loader would run code or read files that no fingerprint covers."""
    if path.name in (TOKENIZER, INDEX):
        return
    if isinstance(value, dict):
        for field, inner in value.items():
            if field in _FOREIGN_FIELDS and inner is not None:
                raise BaseModelError(
                    f"{path}: field {field} {_FOREIGN_FIELDS[field]}, which is never loaded; copy the model without "
                    f"{field}, if it works without it, or choose another model"
                )
            _check_fields(path, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_fields(path, inner)


def _list_weights(folder: Path, texts: dict[str, bytes]) -> list[Path]:
    """Return the files of weights that are loaded, and add their index to `texts`; refuse any other."""
    if (folder / WEIGHTS).is_file():
        loaded = {WEIGHTS}
    elif (folder / INDEX).is_file():
        texts[INDEX] = _read(folder / INDEX)
        loaded = _list_shards(folder, _parse(folder / INDEX, texts[INDEX]))
    else:
        raise BaseModelError(
            f"{folder} lacks {WEIGHTS} (or {INDEX} with its files); save the model by save_pretrained of transformers"
        )
    for path in sorted(folder.iterdir()):
        if _is_foreign(path.name) and path.name not in loaded | set(texts):
            raise BaseModelError(
                f"{path}: lies beside {' and '.join(sorted(loaded)[:2])}, which are loaded, and no fingerprint covers "
                f"it; copy the model without {path.name}"
            )
    return [folder / name for name in sorted(loaded)]


def _list_shards(folder: Path, index: dict[str, Any]) -> set[str]:
    places = index.get("weight_map")
    names = set(places.values()) if isinstance(places, dict) and all(map(_is_text, places.values())) else set()
    for name in sorted(names):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise BaseModelError(f"{folder / INDEX}: names {name[:80]!r}; expected safetensors files beside it")
        if not (folder / name).is_file():
            raise BaseModelError(f"{folder / INDEX}: names {name[:80]!r}, which is not there; {FETCH_AGAIN}")
    if not names:
        raise BaseModelError(f"{folder / INDEX}: names no files in weight_map; {FETCH_AGAIN}")
    return names


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_foreign(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(_WEIGHTS_ENDINGS) or lower.startswith(("adapter_config", "adapter_model"))
