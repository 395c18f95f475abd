"""Foreign bytes end in a value or in an error of ours, within two seconds and 256 MB; and only here are they parsed."""

import ast
import json
import math
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace

from ptpipeline import foreign
from ptpipeline.errors import ArtifactError, NotFound
from ptpipeline.foreign import MAX_VALUES, parse_json, parse_record, parsing, read_file, shorten
from ptpipeline.prompts.artifact import check_tensors
from ptpipeline.records.base import MAX_INTEGER
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.versions import Pointer, Promotion
from tests.prompts.test_artifact import artifact

ROOT = Path(__file__).parents[1]
MADE = artifact()
STATED = MADE.manifest.to_json()


def manifest(**changes: object) -> bytes:
    return json.dumps(STATED | changes).encode()


MANIFESTS = {
    "a seed beyond canonical JSON": manifest(seed=2**60),
    "a negative seed": manifest(seed=-1),
    "a seed of a thousand digits": manifest().replace(b'"seed": 0', b'"seed": ' + b"9" * 1000),
    "a seed of a million digits": manifest().replace(b'"seed": 0', b'"seed": ' + b"9" * 2**20),
    "a fraction of a seed": manifest(seed=0.5),
    "a width beyond canonical JSON": manifest(base_model=STATED["base_model"] | {"hidden_size": 2**63}),
    "a negative width": manifest(base_model=STATED["base_model"] | {"hidden_size": -6}),
    "a negative side of a shape": manifest(tensors={"embeddings": {"shape": [-4, -6], "dtype": "float16"}}),
    "an infinite number of tokens": manifest().replace(b'"num_virtual_tokens": 4', b'"num_virtual_tokens": 1e999'),
    "not a number of tokens": manifest(num_virtual_tokens=float("nan")),
    "half a surrogate pair": manifest(template="{text}\ud800"),
    "half a surrogate pair as a name": manifest(labels={"\udfff": " a"}),
    "a field twice": manifest()[:-1] + b', "seed": 0}',
    "nested a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "nested three hundred deep": manifest(labels={"a": " a"}).replace(b'" a"', b"[" * 300 + b"]" * 300),
    "half a million lists": b"[" + b"[]," * 500_000 + b"[]]",
    "no text": b"\xff\xfe\x00",
    "UTF-16": manifest().decode().encode("utf-16"),
    "nothing": b"",
    "a number": b"1",
    "an unknown field": manifest(later=1),
    "a digest of another length": manifest(snapshot="c" * 65),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_what_is_no_manifest_is_an_artifact_error(kind: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse_record(PromptManifest, MANIFESTS[kind], "manifest.json")
    assert str(caught.value).startswith("manifest.json: ")
    assert len(str(caught.value)) < 400


def header(**tensors: object) -> bytes:
    return json.dumps(tensors).encode()


def tensor_file(head: bytes, length: int | None = None, payload: bytes = bytes(48)) -> bytes:
    return struct.pack("<Q", len(head) if length is None else length) + head + payload


SOUND = {"dtype": "F16", "shape": [4, 6], "data_offsets": [0, 48]}
HEADERS = {
    "a length of 2**63": tensor_file(header(embeddings=SOUND), 2**63),
    "a length of 2**64 - 1": tensor_file(header(embeddings=SOUND), 2**64 - 1),
    "a length beyond the file": tensor_file(header(embeddings=SOUND), 65_000),
    "offsets that are truth values": tensor_file(
        header(embeddings=SOUND | {"data_offsets": [False, 48]}),
    ),
    "offsets that are fractions": tensor_file(header(embeddings=SOUND | {"data_offsets": [0.0, 48.0]})),
    "offsets beyond 64 bits": tensor_file(header(embeddings=SOUND | {"data_offsets": [2**64, 2**64 + 48]})),
    "offsets of a thousand digits": tensor_file(header(embeddings=SOUND).replace(b"48", b"9" * 1000)),
    "negative offsets": tensor_file(header(embeddings=SOUND | {"data_offsets": [-48, 0]})),
    "three offsets": tensor_file(header(embeddings=SOUND | {"data_offsets": [0, 24, 48]})),
    "no offsets": tensor_file(header(embeddings={"dtype": "F16", "shape": [4, 6]})),
    "a shape of fractions": tensor_file(header(embeddings=SOUND | {"shape": [4.0, 6.0]})),
    "a shape whose product overflows": tensor_file(header(embeddings=SOUND | {"shape": [2**62, 4, 6]})),
    "an unknown field": tensor_file(header(embeddings=SOUND | {"later": 1})),
    "metadata that is a list": tensor_file(header(embeddings=SOUND, __metadata__=["a"])),
    "metadata that is a number": tensor_file(header(embeddings=SOUND, __metadata__=1)),
    "metadata of numbers": tensor_file(header(embeddings=SOUND, __metadata__={"format": 1})),
    "a tensor twice": tensor_file(header(embeddings=SOUND)[:-1] + b', "embeddings": {}}'),
    "nested ten thousand deep": tensor_file(b"[" * 10_000 + b"]" * 10_000),
    "a thousand tensors": tensor_file(header(**{f"tensor{n}": {} for n in range(1000)})),
    "half a surrogate pair": tensor_file(b'{"\\ud800": {}}'),
    "not a number": tensor_file(b'{"embeddings": NaN}'),
    "a list": tensor_file(b"[]"),
    "no bytes": b"",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_what_is_no_tensor_file_is_an_artifact_error(kind: str) -> None:
    import hashlib

    body = HEADERS[kind]
    stated = MADE.manifest.model_copy(update={"tensor_sha256": hashlib.sha256(body).hexdigest()})
    with pytest.raises(ArtifactError) as caught:
        check_tensors(stated, body)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isascii()


def test_a_sound_manifest_and_a_sound_file_are_taken() -> None:
    assert parse_record(PromptManifest, manifest(), "manifest.json") == MADE.manifest
    check_tensors(MADE.manifest, MADE.tensors)


@pytest.mark.parametrize(
    "change", [{"seq": 0}, {"seq": 2**31}, {"version": 2**31}, {"previous": -1}, {"reason": "a\0b"}, {"at": "2" * 33}]
)
def test_a_promotion_that_no_ledger_holds_is_refused(change: dict[str, object]) -> None:
    row = Promotion(
        task="a", alias="production", seq=1, version=1, digest="d" * 64, previous=None, actor="me", reason="because",
        verdict=None, at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    body = json.dumps({"promotion": row.to_json() | change, "nonce": "n" * 16}).encode()
    with pytest.raises(ArtifactError, match=f"pointer: promotion.{next(iter(change))}: "):
        parse_record(Pointer, body, "pointer")


def test_a_sentence_never_quotes_the_bytes() -> None:
    for body in (b'{"secret": NaN}', b'{"secret": "\\ud800"}', b'"secret', b'{"schema_version": "secret"}'):
        with pytest.raises(ArtifactError) as caught:
            parse_record(Pointer, body, "pointer")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{'model': 1}", "is not valid JSON: key must be a string at line 1 column 2"),
        (b'{"secret": 1,}', "is not valid JSON: trailing comma at line 1 column 14"),
        (b'{"a": 1}secret', "is not valid JSON: trailing characters at line 1 column 9"),
        (b'"\xe9secret"', "is not valid JSON: invalid unicode code point at line 1 column 2"),
        (b"secret", "is not valid JSON: expected value at line 1 column 1"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(body: bytes, told: str) -> None:
    with pytest.raises(ArtifactError) as raised:
        parse_json(body, "x", "mend it")
    assert str(raised.value) == f"x: {told}; mend it"


def test_an_error_of_ours_passes_as_it_is() -> None:
    with pytest.raises(NotFound, match="gone"), parsing("pointer"):
        raise NotFound("gone")


def test_a_panic_of_a_parser_in_rust_is_one_sentence_and_an_interrupt_goes_on() -> None:
    """A search that goes back too often panics, as in a tokenizer of somebody's base; that is no Exception."""
    backend = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    backend.normalizer = Replace(Regex("(x+x+)+y"), "b")
    with pytest.raises(ArtifactError, match=r"^words: .*; it is altered"), parsing("words"):
        backend.encode("x" * 40)
    with pytest.raises(KeyboardInterrupt), parsing("words"):
        raise KeyboardInterrupt


def test_a_foreign_value_is_shown_without_what_a_terminal_acts_upon() -> None:
    shown = shorten({"\x1b[2J": "\u202e" * 1000})
    assert (shown.isascii(), shown.isprintable(), len(shown)) == (True, True, 120)


def test_an_object_of_json_has_to_be_one_value() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\\ud83d\\ude00"]}', "x") == {"a": [1, 2.5, "\U0001f600"]}


# ---------------------------------------------------------------- files


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(ArtifactError, match="5 bytes, at most 4 allowed"):
        read_file(path, 4)


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_file(tmp_path / "config.json", 5)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        read_file(tmp_path / "config.json", 5)


# ---------------------------------------------------------------- no other module parses

PARSERS = {
    "json": {"load", "loads", "JSONDecoder"},
    "pickle": {"load", "loads", "Unpickler"},
    "torch": {"load"},
    "np": {"load", "fromfile", "genfromtxt", "loadtxt", "open_memmap"},
    "numpy": {"load", "fromfile"},
    "safetensors": {"safe_open"},
    "pq": {"ParquetFile", "read_table"},
    "yaml": {"load", "safe_load", "full_load", "unsafe_load"},
    "tomllib": {"load", "loads"},
}
IMPORTED = {"safetensors.torch": {"load", "load_file"}, "safetensors": {"safe_open"}, "ruamel.yaml": {"YAML"}}
METHODS = {"model_validate_json", "open_memmap"}

ALLOWED = {
    "ptpipeline/foreign.py": "the one place",
    "ptpipeline/data/hub.py": "bounds the cards of a data set, then parses them within `parsing`",
    "ptpipeline/data/json_lines.py": "says which line of a user's file is broken",
    "ptpipeline/data/json_shapes.py": "says what the same file is instead, as far as its first 64 MiB tell",
    "ptpipeline/data/parquet.py": "bounds a Parquet file, then parses within `parsing`",
    "ptpipeline/task/document.py": "bounds a YAML file, then parses it",
    "ptpipeline/prompts/tensors.py": "loads what `check_tensors` accepted, within `parsing`",
    "ptpipeline/prompts/initialise.py": "maps a bounded file within `parsing`",
    "ptpipeline/prompts/neighbours.py": "what the library of tokenizers wrote in this process",
    "ptpipeline/tuning/state.py": "a checkpoint, within `parsing`",
    "ptpipeline/models/base.py": "a base model's own files",
    "ptpipeline/models/configuration.py": "what it wrote itself a moment ago",
    "ptpipeline/models/chat_process.py": "what its parent sends",
    "ptpipeline/models/load.py": "a base model's own files",
    "ptpipeline/models/offload.py": "a base model's own files",
    "ptpipeline/settings.py": "lies below `foreign`; reads the file that `ptp up` wrote for its owner alone",
    "flows/local/stack.py": "the file that `ptp up` wrote for its owner alone",
    "flows/local/servers.py": "answers of servers that it started itself",
    "flows/on_demand/vllm_client.py": "a script for machines without ptpipeline: reads what `ptp export` wrote for it",
    "flows/server/apprise_process.py": "what its parent sends",
    "flows/server/bootstrap.py": "templates of work pools that are part of this package",
    "flows/server/buckets.py": "policies that are part of this package",
}


def parsers_in(module: Path) -> Iterator[str]:
    """The parsers that a module calls or imports by name."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in METHODS or node.attr in PARSERS.get(owner, ()):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "json":
            yield "an answer's json()"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in IMPORTED.get(node.module or "", ()):
                    yield f"{node.module}.{alias.name}"


def test_no_other_module_parses_foreign_bytes() -> None:
    modules = [path for package in ("ptpipeline", "registry", "flows") for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 150
    parsing_ones = {str(path.relative_to(ROOT)): set(parsers_in(path)) for path in modules}
    strays = {name: found for name, found in parsing_ones.items() if found and name not in ALLOWED}
    assert strays == {}, "parse it by ptpipeline.foreign"


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**30])
def test_an_integer_that_canonical_json_cannot_write_is_refused(number: int) -> None:
    with pytest.raises(ArtifactError, match="holds an integer that canonical JSON cannot write"):
        parse_json(b'{"seed": %d}' % number, "manifest.json")


def test_the_largest_integers_of_canonical_json_are_taken() -> None:
    assert parse_json(b"[9007199254740991, -9007199254740991]", "x") == [MAX_INTEGER, -MAX_INTEGER]


@pytest.mark.parametrize(("digits", "taken"), [(400, True), (401, False)])
def test_no_integer_has_more_digits_than_are_allowed_however_large_it_may_be(digits: int, taken: bool) -> None:
    with nullcontext() if taken else pytest.raises(ArtifactError, match="holds an integer"):
        assert parse_json(b"9" * digits, "x", largest=math.inf) == 10**digits - 1


def test_too_many_values_are_refused_before_any_is_made() -> None:
    with pytest.raises(ArtifactError, match="holds too many values"):
        parse_json(b"[" + b"0," * (MAX_VALUES + 1) + b"0]", "x")


def test_a_value_that_just_fits_is_shown_whole() -> None:
    assert (shorten("a" * 118), shorten("a" * 119)) == (f"'{'a' * 118}'", f"'{'a' * 116}...")


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes(b"12345")
    monkeypatch.setattr(foreign, "check_file", lambda *_: 4)
    with pytest.raises(ArtifactError, match="more than 4 bytes; it grew"):
        read_file(tmp_path / "config.json", 4)


def test_what_is_no_path_is_not_found() -> None:
    with pytest.raises(NotFound, match=r"cannot be read \(not a path\)"):
        read_file(Path("a\0b"), 5)
