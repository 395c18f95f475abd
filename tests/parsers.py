"""Every parser of foreign bytes, each with bytes that it takes: what the fuzzers try."""

import atexit
import gzip
import hashlib
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import torch
from safetensors.torch import save

from benchmarks.fixtures.prompts import a_report, a_snapshot, a_task, an_artifact
from flows.local.watcher import read_aliases
from flows.server import api
from ptpipeline.data import hub
from ptpipeline.data.rows import Row
from ptpipeline.data.snapshot import _decode, _encode
from ptpipeline.errors import ArtifactError, DataError
from ptpipeline.evaluation.results import Results, store_results
from ptpipeline.foreign import parse_json, parse_record, parsing
from ptpipeline.models.compute_type import Speed
from ptpipeline.prompts.artifact import check_tensors, parse_header
from ptpipeline.prompts.initialise import read_tensor
from ptpipeline.prompts.interpretation import Neighbours
from ptpipeline.prompts.peft import read_foreign
from ptpipeline.records.data import Snapshot
from ptpipeline.records.prompts import PromptManifest
from ptpipeline.records.serving import ServerReport
from ptpipeline.records.versions import Pointer, Promotion, VersionName
from ptpipeline.server.callers import Token, TokenFile, read_tokens
from ptpipeline.serving import seen, vllm
from ptpipeline.serving.trials import _Kept
from ptpipeline.signing import find_flaw, state_object
from ptpipeline.storage import FolderStore
from ptpipeline.task.document import parse_yaml
from ptpipeline.task.folder import load_task
from ptpipeline.tuning.seal import seal, unseal
from ptpipeline.tuning.state import _read_state
from registry.ledger import backup
from registry.ledger.ledger import Release
from registry.versions.dossier import Dossier
from tests.prompts.test_artifact import artifact
from tests.registry.signed import WORKER
from tests.task.test_task import GOOD

MADE = artifact()
ROW = Promotion(
    task="mood", alias="production", seq=1, version=1, digest="d" * 64, previous=None, actor="me", reason="because",
    verdict=None, at="2026-01-01T00:00:00+00:00",
)  # fmt: skip
_FOLDER = Path(tempfile.mkdtemp(prefix="parsers-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


class Parser(NamedTuple):
    """A parser, and bytes that it takes."""

    parse: Callable[[bytes], object]
    sound: bytes


def _record(kind: type, sound: object) -> Parser:
    body = sound if isinstance(sound, bytes) else json.dumps(sound).encode()
    return Parser(lambda raw: parse_record(kind, raw, "object"), body)


def _file(name: str, parse: Callable[[Path], object], sound: bytes) -> Parser:
    path = _FOLDER / name
    path.parent.mkdir(exist_ok=True)

    def read(raw: bytes) -> object:
        path.write_bytes(raw)
        return parse(path)

    return Parser(read, sound)


def _adapter(raw: bytes) -> object:
    """An adapter's configuration beside a sound tensor."""
    return read_foreign(_FOLDER / "adapter") if (_FOLDER / "adapter/adapter_config.json").write_bytes(raw) else None


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((4, 6), np.float32))
    return buffer.getvalue()


def _tensors(raw: bytes) -> object:
    stated = MADE.manifest.model_copy(update={"tensor_sha256": hashlib.sha256(raw).hexdigest()})
    return check_tensors(stated, raw)


def _dossier() -> bytes:
    tuned = {
        "task": "mood", "digest": "d" * 64, "training_key": "e" * 64, "snapshot": "c" * 64, "bytes": 1, "steps": 1,
        "best_step": 1, "best_dev": 0.5, "stopped_early": False, "seconds": 1.0, "tokens_per_second": 1.0,
        "compute_dtype": "float32", "self_check": {}, "curve": [{"step": 1, "loss": 0.5, "learning_rate": 0.1}],
    }  # fmt: skip
    publication = {"tuned": tuned, "commit": None, "plots": {}}
    return json.dumps({"publication": publication, "report": None, "verdict": None}).encode()


def _signature() -> Parser:
    statement = state_object("prompts/mood/aliases/production.json", b"a pointer")

    def check(raw: bytes) -> None:
        if flaw := find_flaw(raw, WORKER.public, statement):
            raise ArtifactError(flaw)

    return Parser(check, WORKER.sign(statement).to_bytes())


def _results() -> Parser:
    """Results that their report states: whoever measured them wrote what they liked."""
    store, report = FolderStore(_FOLDER / "results"), a_report(an_artifact(a_task("mood"), 1), 0.5)
    store_results(
        store, report.rows_key, {"id": ["a", "b"], "label": ["good", "bad"], "log_likelihood.good": [-1.0, 0]}
    )

    def read(raw: bytes) -> object:
        store.replace(report.rows_key, raw, store.read(report.rows_key).etag)
        return Results.of(store, report.model_copy(update={"rows_sha256": hashlib.sha256(raw).hexdigest()}))

    return Parser(read, store.read(report.rows_key).body)


def _backup() -> bytes:
    head = json.dumps({"format": backup.FORMAT, "schema": "0001"}).encode() + b"\n"
    row = b'["promotion",{"seq":1,"body":{"base64":"AAAA"},"at":null}]\n'
    return head + row + json.dumps({"rows": 1, "sha256": hashlib.sha256(head + row).hexdigest()}).encode() + b"\n"


def _lines(raw: bytes) -> object:
    """The rows of a backup, whatever its last line says of them."""
    (_FOLDER / "lines.gz").write_bytes(gzip.compress(raw, 1))
    return list(backup._read_rows(_FOLDER / "lines.gz"))


def _card(path: Path) -> None:
    with parsing("hub:a/b", "its card is not as the hub has it", DataError):
        hub._check_paths("hub:a/b", hub._read_card("hub:a/b", path))


def _mlflow(raw: bytes) -> object:
    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=raw)))
    return list(read_aliases(client, "http://mlflow"))


def _prefect(raw: bytes) -> object:
    return api._wrap(api._parse(raw, "http://prefect/api/flows"), "http://prefect/api/flows")


def _vllm(kind: type, sound: object) -> Parser:
    upstream = vllm.Upstream("http://gpu:8000")
    return Parser(lambda raw: upstream._parse(raw, kind), json.dumps(sound).encode())


SECRET, PLACE = b"s" * 32, "checkpoints/one.safetensors"
STATE = save({"0.parameter.embeddings": torch.zeros(4, 6)}, {"state": json.dumps({"format": 1, "members": []})})
PRODUCT = {
    "device": "cpu", "processor": "one", "instructions": ["avx2"], "threads": 2, "torch": "2", "tokens": 512,
    "inputs": 6, "outputs": 4,
}  # fmt: skip
CARD = b"""---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
dataset_info:
  features:
  - name: label
    dtype:
      class_label:
        names: {'0': bad, '1': good}
---
# Reviews
"""
ROWS = [Row(f"{number:016x}", {"text": "a text"}, "good") for number in range(20)]
SNAPSHOT = a_snapshot(a_task("mood"))
CONFIG = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "token_dim": 6}

PARSERS = {
    "json": Parser(lambda raw: parse_json(raw, "object"), b'{"a": [1, 2.5, true, null, "b"], "c": {"d": {}}}'),
    "manifest": _record(PromptManifest, MADE.manifest.to_json()),
    "pointer": _record(Pointer, {"promotion": ROW.to_json(), "nonce": "n" * 16}),
    "promotion": _record(Promotion, ROW.to_json()),
    "name of a version": _record(VersionName, {"task": "mood", "number": 1, "digest": "d" * 64}),
    "dossier": _record(Dossier, _dossier()),
    "snapshot": _record(Snapshot, SNAPSHOT.to_json()),
    "server": _record(
        ServerReport, {"server": "one", "at": "2026-01-01T00:00:00+00:00", "holds": [["mood", "d" * 64]]}
    ),
    "release": _record(
        Release, {"name": "r", "actor": "me", "reason": "x", "versions": {"mood": 1}, "at": "2026-01-01T00:00:00+00:00"}
    ),
    "neighbours": _record(Neighbours, {"k": 1, "tokens": [], "overlap": {"a": 0.5}}),
    "header": Parser(lambda raw: parse_header(raw, len(raw)), MADE.tensors),
    "tensors": Parser(_tensors, MADE.tensors),
    "rows": Parser(lambda raw: _decode(raw, "rows", SNAPSHOT), _encode(ROWS, SNAPSHOT)),
    "npy": _file("start.npy", read_tensor, _npy()),
    "tensor file": _file("start.safetensors", read_tensor, MADE.tensors),
    "adapter": Parser(_adapter, json.dumps(CONFIG).encode()),
    "yaml": _file("any.yaml", parse_yaml, GOOD.encode()),
    "task": _file("reviews.yaml", load_task, GOOD.encode()),
    "signature": _signature(),
    "results": _results(),
    "checkpoint": Parser(lambda raw: unseal(SECRET, PLACE, raw), seal(SECRET, PLACE, STATE)),
    "state of a gang": Parser(_read_state, STATE),
    "backup": _file("backup.gz", backup._check, gzip.compress(_backup(), mtime=0)),
    "lines of a backup": Parser(_lines, _backup()),
    "tokens": _file(
        "tokens.json",
        read_tokens,
        TokenFile(tokens=(Token(name="me", sha256="d" * 64, tasks=("mood",), per_minute=60),))
        .model_dump_json()
        .encode(),
    ),
    "newest promotion seen": _file(
        "seen.json",
        seen._read,
        seen.Seen(store="file:///s", task="mood", alias="production", seq=1, row="d" * 64).model_dump_json().encode(),
    ),
    "tallies of trials": _record(
        _Kept, {"store": "s", "tallies": [["mood", "production", 1, 1, 2]], "canaries": [["mood", "next", 1, 1, 2]]}
    ),
    "speed of a machine": _record(Speed, {"product": PRODUCT, "float32": 100.0, "bfloat16": 200.0}),
    "card of a data set": _file("README.md", _card, CARD),
    "answer of Prefect": Parser(_prefect, b'[{"id": "a", "state": {"type": "COMPLETED"}, "tags": []}]'),
    "answer of MLflow": Parser(_mlflow, b'{"registered_models": [{"name": "mood", "aliases": [], "tags": []}]}'),
    "answer of vLLM": _vllm(
        vllm._Completion, {"choices": [{"text": "a", "logprobs": {"top_logprobs": [{"a": -0.1}]}}], "usage": None}
    ),
    "event of vLLM": _vllm(vllm._Event, {"choices": [{"text": "a", "finish_reason": "stop"}]}),
    "models of vLLM": _vllm(vllm._Models, {"data": [{"id": "base", "max_model_len": 512}]}),
}

(_FOLDER / "adapter").mkdir(exist_ok=True)
_HEAD = json.dumps({"prompt_embeddings": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 96]}}).encode()
(_FOLDER / "adapter/adapter_model.safetensors").write_bytes(struct.pack("<Q", len(_HEAD)) + _HEAD + bytes(96))

# What parsers stumble over.
TOKENS = [
    b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"true", b"null", b"9" * 20, b"9" * 500, b"18446744073709551615",
    b"[" * 300, b"{" * 300, b'{"a":' * 100, b"\\ud800", b"\\u0000", b"\x00", b"\xff", b"\xed\xa0\x80", b"", b",", b'"',
    b"*a", b"&a ", b"<<: *a\n", b"!!binary ", b"? ", b"- " * 40, b"\n" * 50, b"---\n", b"PAR1", b"__metadata__",
    struct.pack("<Q", 2**63), struct.pack("<Q", 2**32), b"2020-13-99", b"{text}", b"x" * 5000,
]  # fmt: skip
