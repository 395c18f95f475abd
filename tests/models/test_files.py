"""What is hashed of a base model is what is loaded, and a folder that holds more, or harmful files, is refused."""

import itertools
import json
import os
import re
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from ptpipeline.errors import BaseModelError
from ptpipeline.models import weights
from ptpipeline.models.base import PreparedBase, prepare_folder
from ptpipeline.models.load import load_base
from ptpipeline.models.weights import Stored, digest_weights, read_headers
from tests import processes
from tests.tiny import tiny_base

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "model")


def prepare(folder: Path) -> PreparedBase:
    return prepare_folder("tiny", folder, folder.parent / "home")


def edited(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def sharded(folder: Path) -> Path:
    """The same weights in two files with their index."""
    tensors = sorted(load_file(folder / WEIGHTS).items())
    places = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(dict(part), name)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


# ---------------------------------------------------------------- files beside those that are loaded


@pytest.mark.parametrize(
    "name",
    [
        "zz.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.Q4_1.gguf",
        "adapter_config.json",
        "Adapter_Model.pt2",
        "adapter_model.safetensors",
        "PYTORCH_MODEL.BIN",
        INDEX,
    ],
)
def test_weights_beside_the_weights_are_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / WEIGHTS).read_bytes() if name.endswith(".safetensors") else b"{}")
    with pytest.raises(BaseModelError, match=rf"{name}: lies beside .*; copy the model without {name}"):
        prepare(folder)


def test_old_weights_in_an_extra_file_do_not_hide_altered_ones(folder: Path) -> None:
    """The attack that worked: the extra file sorted last and was hashed, and model.safetensors was loaded."""
    before = prepare(folder).ref.fingerprint
    (folder / "zz.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] *= 2
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"zz\.safetensors"):
        prepare(folder)
    (folder / "zz.safetensors").unlink()
    assert prepare(folder).ref.fingerprint != before


def test_files_that_no_loader_reads_may_stay(folder: Path) -> None:
    before = prepare(folder).ref.fingerprint
    for name in ("README.md", "LICENSE", "chat_template.jinja", "modeling_tiny.py", "vocab.json"):
        (folder / name).write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    assert prepare(folder).ref.fingerprint == before
    assert load_base(prepare(folder), "float32").context == 256


def test_the_same_weights_in_several_files_are_the_same_model(folder: Path) -> None:
    before = prepare(folder).ref
    assert prepare(sharded(folder)).ref == before
    assert load_base(prepare(folder), "float32").ref == before


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "weights.bin"])
def test_an_index_that_names_files_elsewhere_is_refused(folder: Path, name: str) -> None:
    edited(sharded(folder) / INDEX, weight_map={"a": name})
    with pytest.raises(BaseModelError, match="expected safetensors files beside it"):
        prepare(folder)


def test_an_index_that_leaves_a_file_out_is_refused(folder: Path) -> None:
    first = "model-00001-of-00002.safetensors"
    edited(sharded(folder) / INDEX, weight_map={"model.norm.weight": first})
    with pytest.raises(BaseModelError, match=r"model-00002-of-00002.safetensors: lies beside"):
        prepare(folder)


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "x.safetensors"}}]
)
def test_an_index_without_its_files_is_refused(folder: Path, index: dict[str, Any]) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=INDEX):
        prepare(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    path = sharded(folder) / "model-00002-of-00002.safetensors"
    both = load_file(path) | {"model.embed_tokens.weight": torch.zeros(333, 64)}
    save_file(both, path, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"tensor 'model.embed_tokens.weight' is also in model-00001"):
        prepare(folder)


# ---------------------------------------------------------------- code of its own


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling_tiny.Tiny"}),
        ("attn_implementation", "owner/kernel"),
        ("configuration_files", ["config.4.0.0.json"]),
        ("fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
        ("transformers_weights", "other.safetensors"),
    ],
)
def test_a_field_that_names_code_or_further_files_is_refused(
    folder: Path, file: str, field: str, value: object
) -> None:
    edited(folder / file, **{field: value})
    with pytest.raises(BaseModelError, match=rf"{file}: field {field} .*; copy the model without {field}"):
        prepare(folder)


@pytest.mark.parametrize(
    "part", [{"auto_map": {"AutoConfig": "a.B"}}, {"auto_map": {}}, [{"parts": [{"auto_map": "a.B"}]}]]
)
def test_remote_code_in_a_part_of_the_configuration_is_refused(folder: Path, part: object) -> None:
    edited(folder / "config.json", text_config=part)
    with pytest.raises(BaseModelError, match="copy the model without auto_map"):
        prepare(folder)


def test_a_field_for_code_that_names_none_is_harmless(folder: Path) -> None:
    edited(folder / "generation_config.json", auto_map=None)
    assert prepare(folder).ref.hidden_size == 64


# ---------------------------------------------------------------- bytes that change


def flip(path: Path) -> None:
    """Flip the last byte, and put size and time of change back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_flipped_bytes_are_found_by_the_same_process(folder: Path) -> None:
    before = prepare(folder).ref.fingerprint
    flip(folder / WEIGHTS)
    assert prepare(folder).ref.fingerprint != before


def test_flipped_bytes_are_found_by_the_next_process(folder: Path) -> None:
    def fingerprint() -> str:
        return prepare(folder).ref.fingerprint

    before = processes.ask(fingerprint)
    flip(folder / WEIGHTS)
    assert before == prepare_folder("tiny", tiny_base(folder.parent / "other"), folder.parent).ref.fingerprint
    assert processes.ask(fingerprint) != before


def test_a_process_reads_the_weights_once(folder: Path) -> None:
    def times_opened() -> int:
        opened: list[str] = []
        sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
        for _ in range(3):
            prepare(folder)
        return sum(path.endswith(WEIGHTS) for path in opened)

    assert [processes.ask(times_opened) for _ in range(2)] == [1, 1]


def test_weights_that_are_written_while_they_are_hashed_are_refused(tmp_path: Path) -> None:
    path, done = tmp_path / WEIGHTS, threading.Event()
    save_file({"weight": torch.zeros(2**21)}, path)

    def write() -> None:
        while not done.wait(0.001):
            os.utime(path)

    def hash_often() -> None:
        for _ in range(200):  # one of them at least is written to within its milliseconds
            digest_weights([path])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(BaseModelError, match="its weights change while they are read; wait for who writes them"):
            hash_often()
    finally:
        done.set()
        writer.join()


def test_weights_that_change_between_hash_and_load_are_refused(folder: Path) -> None:
    prepared = prepare(folder)
    flip(folder / WEIGHTS)
    with pytest.raises(BaseModelError, match=r"model.safetensors: was changed since it was hashed"):
        load_base(prepared, "float32")


def test_weights_that_are_replaced_between_hash_and_load_are_refused(folder: Path) -> None:
    prepared = prepare(folder)
    other = folder / "other"
    other.write_bytes((folder / WEIGHTS).read_bytes())
    other.rename(folder / WEIGHTS)
    with pytest.raises(BaseModelError, match="was changed since"):
        load_base(prepared, "float32")


def test_weights_that_are_removed_between_hash_and_load_are_refused(folder: Path) -> None:
    prepared = prepare(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BaseModelError, match=r"model.safetensors: was changed since it was hashed"):
        prepared.files.check_unchanged()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_small_files_are_loaded_as_they_were_hashed(folder: Path, name: str) -> None:
    prepared = prepare(folder)
    expected = load_base(prepared, "float32").encode("good film", True)
    (folder / name).write_text("{}")
    base = load_base(prepared, "float32")
    assert (base.encode("good film", True), base.context, base.end_tokens) == (expected, 256, {2})


@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [("F32", "F32"), ("BF16", "BF16"), ("F32", "BF16"), ("BF16", "F32")])
def test_a_loaded_model_does_not_change_with_its_file(folder: Path, stored: tuple[str, str], computed: str) -> None:
    """Whether its tensors are of the stored type, or converted, or some are: `stored` are the types by turns."""
    types = itertools.cycle({"F32": torch.float32, "BF16": torch.bfloat16}[name] for name in stored)
    tensors = {name: tensor.to(next(types)) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    base = load_base(prepare(folder), computed)
    before = base.digest_weights()
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(2048)
        file.write(bytes(100_000))
    assert base.digest_weights() == before


# ---------------------------------------------------------------- headers


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(begin: Any, end: Any, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGED = {
    "empty": b"",
    "short": b"\0\0",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
    "a header of a tebibyte": safetensors({}, length=2**40),
    "a header of 2**64-1": safetensors({}, length=2**64 - 1),
    "no JSON": safetensors(b"{"),
    "deep JSON": safetensors(b'{"a":' * 100_000),
    "no object": safetensors([1]),
    "a number of many digits": safetensors(b'{"a": ' + b"9" * 10_000 + b"}"),
    "negative place": safetensors({"a": tensor(-4, 0)}, bytes(4)),
    "place behind the end": safetensors({"a": tensor(0, 2**40, shape=[2**38])}, bytes(4)),
    "overlap": safetensors({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
    "gap": safetensors({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "rest": safetensors({"a": tensor(0, 4)}, bytes(8)),
    "other shape": safetensors({"a": tensor(0, 4, shape=[2])}, bytes(4)),
    "shape of texts": safetensors({"a": tensor(0, 4, shape=["1"])}, bytes(4)),
    "shape of truths": safetensors({"a": tensor(0, 4, shape=[True])}, bytes(4)),
    "negative shape": safetensors({"a": tensor(0, 4, shape=[-1, -1])}, bytes(4)),
    "place of no integers": safetensors({"a": tensor(0.0, 4.0)}, bytes(4)),
    "unknown type": safetensors({"a": tensor(0, 4, "X32")}, bytes(4)),
    "no type": safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "three offsets": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}, bytes(4)),
    "the same name twice": safetensors(
        b'{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}, '
        b'"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}',
        bytes(2),
    ),
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused_in_a_sentence(body: bytes, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(body)
    with pytest.raises(BaseModelError, match=WEIGHTS):
        prepare(folder)


def test_a_tensor_without_numbers_may_be_stated_behind_one_that_begins_where_it_does(tmp_path: Path) -> None:
    header = {"a": tensor(0, 4), "b": tensor(0, 0, shape=[0])}
    (tmp_path / WEIGHTS).write_bytes(safetensors(header, bytes(4)))
    assert read_headers([tmp_path / WEIGHTS]) == {"a": Stored("F32", [1]), "b": Stored("F32", [0])}


def test_a_digest_is_of_names_types_shapes_and_bytes_in_whatever_order_they_are_stated(tmp_path: Path) -> None:
    def digest(header: dict[str, Any], body: bytes = bytes(range(8))) -> str:
        (tmp_path / WEIGHTS).write_bytes(safetensors(header, body))
        return digest_weights([tmp_path / WEIGHTS])[0]

    both = {"a": tensor(0, 4), "b": tensor(4, 8)}
    assert digest(both) == digest(dict(reversed(both.items()))) == digest(both | {"__metadata__": {"format": "pt"}})
    others = [
        both, {"a": tensor(4, 8), "b": tensor(0, 4)}, {"a": tensor(0, 4), "c": tensor(4, 8)},
        {"a": tensor(0, 4, "I32"), "b": tensor(4, 8)}, {"a": tensor(0, 4, shape=[1, 1]), "b": tensor(4, 8)},
    ]  # fmt: skip
    assert len({*map(digest, others), digest(both, bytes(8))}) == 6


def test_a_header_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = safetensors({"a": tensor(0, 4)}, bytes(4))
    (tmp_path / WEIGHTS).write_bytes(body)
    monkeypatch.setattr(weights, "MAX_HEADER", len(body) - 12)
    assert list(read_headers([tmp_path / WEIGHTS])) == ["a"]
    monkeypatch.setattr(weights, "MAX_HEADER", len(body) - 13)
    with pytest.raises(BaseModelError, match="not a safetensors file"):
        read_headers([tmp_path / WEIGHTS])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.binary(min_size=1, max_size=6), st.integers(0, 400)), max_size=3),
    cut=st.integers(0, 300) | st.none(),
)
def test_whatever_is_written_into_a_file_gives_a_digest_or_a_sentence(
    places: list[tuple[bytes, int]], cut: int | None, tmp_path: Path
) -> None:
    body = bytearray(save({"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}))
    for piece, at in places:
        body[at : at + len(piece)] = piece
    (tmp_path / "x.safetensors").write_bytes(body[:cut])
    try:
        digest, _ = digest_weights([tmp_path / "x.safetensors"])
        assert len(digest) == 64
    except BaseModelError as error:
        assert "x.safetensors" in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a":' * 100_000, b'{"a": NaN}', b"\xff", b'{"a": 1, "a": 2}'])
def test_a_damaged_small_file_is_refused_in_a_sentence(folder: Path, file: str, body: bytes) -> None:
    (folder / file).write_bytes(body)
    with pytest.raises(BaseModelError, match=rf"{file}.*is damaged"):
        prepare(folder)


def test_a_tokenizer_of_older_files_is_refused_with_the_call_that_converts_it(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(BaseModelError, match=r"lacks tokenizer.json; AutoTokenizer.*save_pretrained.* writes it"):
        prepare(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["dangling", "pipe", "folder"])
def test_what_stands_in_the_place_of_a_small_file_is_not_taken_for_none(folder: Path, file: str, kind: str) -> None:
    """Without its settings a tokenizer is another one, and nobody would see why."""
    path = folder / file
    path.unlink(missing_ok=True)
    {"dangling": lambda: path.symlink_to("gone"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(
        BaseModelError, match=rf"{file}: (cannot be read|not a regular file).*is not what its name says"
    ):
        prepare(folder)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"version": "1.0"}', b'{"a":' * 100_000])
def test_a_damaged_tokenizer_is_refused_in_a_sentence(folder: Path, body: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(body)
    with pytest.raises(BaseModelError):
        load_base(prepare(folder), "float32")


# ---------------------------------------------------------------- what does not fit together


Tensors = dict[str, torch.Tensor]


def without(part: str) -> Callable[[Tensors], Tensors]:
    """Return a change that leaves out the tensors with that word in their names."""
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


MISFITS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a layer is missing": (without("layers.1"), r"model\.layers\.1\..* is in no file, .* more"),
    "one weight is missing": (without("layers.0.mlp.down_proj"), "down_proj.weight is in no file; fetch"),
    "other names": (lambda tensors: {f"x.{name}": tensor for name, tensor in tensors.items()}, "is in no file"),
    "another shape": (
        lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"][:3].clone()},
        r"model\.norm\.weight has shape \[3\] instead of \[\d+\]",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_would_be_drawn_at_random_are_refused_by_name(folder: Path, name: str) -> None:
    """transformers warns and draws them: each process would serve another model under the same fingerprint."""
    change, expected = MISFITS[name]
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(BaseModelError, match=expected):
        load_base(prepare(folder), "float32")


MISSTATED: dict[str, tuple[str, dict[str, object], str]] = {
    "activation": ("config.json", {"hidden_act": "nosuch"}, "its weights: .*KeyError.*nosuch.*choose another"),
    "package": (
        "config.json",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        ".*pip install -U bitsandbytes",
    ),
    "tokens": ("tokenizer.json", {"model": {"type": "NoSuch"}}, "its tokenizer: .*fetch it again"),
}


@pytest.mark.parametrize("name", MISSTATED)
def test_what_transformers_cannot_load_is_told_with_its_part_and_reason(folder: Path, name: str) -> None:
    file, fields, expected = MISSTATED[name]
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    with pytest.raises(BaseModelError, match=rf"base model .*: {re.escape(str(folder))}: {expected}"):
        load_base(prepare(folder), "float32")
