"""The client that leaves with a prompt for vLLM answers as the engine does, without importing anything of ours."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from flows.on_demand.vllm import build_vllm_files
from flows.on_demand.vllm_client import Client
from ptpipeline.errors import DataError
from ptpipeline.models.base import prepare_base
from ptpipeline.models.load import load_vocabulary
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.initialise import compute_activations
from ptpipeline.prompts.peft import AdapterBase
from ptpipeline.records.prompts import ChatForm, Generation, Scoring
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.settings import Settings
from tests.evaluation.probed import NUMBERS, artifact, embeddings, tiny
from tests.http_server import Quiet, serve
from tests.models.families import family
from tests.numbers import number_tokenizer
from tests.serving.vllm_server import Vllm, running_vllm
from tests.tiny import tiny_project

LONG = {"negative": " bad and awful", "positive": " good and lovely", "mixed": " good or bad"}
TEXT = 'a "lovely" film </s>'


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("vllm")
    return load_vocabulary(prepare_base("tiny", Settings(home=folder / "home", tasks=tiny_project(folder / "project"))))


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    with running_vllm(tiny(), key="k" * 20) as server:
        yield server


def write(folder: Path, vocabulary: Vocabulary, made: Artifact) -> Path:
    for name, body in build_vllm_files(
        vocabulary, made, AdapterBase(vocabulary.tokenizer.name_or_path, None, False)
    ).items():
        (folder / name).write_bytes(body)
    return folder / "client.py"


def run(client: Path, url: str, key: str, *texts: str) -> subprocess.CompletedProcess[str]:
    """The client as a process that can import no module of ours."""
    environment = {"PATH": os.environ["PATH"], "VLLM_API_KEY": key, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", str(client), url, "--model", "base", *texts],
        env=environment, cwd=client.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def without_base(url: str) -> Client:
    """A client that can ask only, since it has read no base and no prompt."""
    client = object.__new__(Client)
    client.url, client.model, client.prompt, client.embedding = url, "base", torch.zeros(1, 2), torch.nn.Embedding(4, 2)
    return client


def asked(client: Path, vllm: Vllm, *texts: str) -> list[dict[str, Any]]:
    """What the client prints."""
    done = run(client, vllm.url, "k" * 20, *texts)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_client_says_in_a_line_why_there_is_no_answer(vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    client = without_base(vllm.url)
    with pytest.raises(
        SystemExit, match=f"^error: {vllm.url} answers 401: .*; set VLLM_API_KEY to the --api-key of vLLM$"
    ):
        client.ask([1], {})
    client.url = "http://127.0.0.1:9"
    with pytest.raises(SystemExit, match=r"^error: http://127\.0\.0\.1:9 does not answer \("):
        client.ask([1], {})


@pytest.mark.parametrize(
    "scoring",
    [pytest.param(Scoring(), marks=pytest.mark.soak), Scoring(length_normalised=True, calibrated=True)],
    ids=["summed", "normalised and calibrated"],
)
def test_the_client_gives_the_probabilities_of_the_engine(
    vocabulary: Vocabulary, vllm: Vllm, tmp_path: Path, scoring: Scoring
) -> None:
    made = artifact(tiny(), embeddings(tiny()), labels=LONG, scoring=scoring)
    engine = Engine(tiny())
    engine.load(made)
    scores = engine.score_labels([Question(made.digest, {"text": text}) for text in (TEXT, "bad")])
    found = asked(write(tmp_path, vocabulary, made), vllm, TEXT, "bad")
    for answer, score in zip(found, scores, strict=True):
        expected = dict(zip(LONG, score.softmax(0).tolist(), strict=True))
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-4)


def test_the_client_writes_the_text_of_the_engine(vocabulary: Vocabulary, vllm: Vllm, tmp_path: Path) -> None:
    made = artifact(
        tiny(), embeddings(tiny()), labels={}, generate=Generation(max_new_tokens=12), template="{a}: {b}{{"
    )
    engine = Engine(tiny())
    engine.load(made)
    fields = {"a": "the film", "b": TEXT}
    found = asked(write(tmp_path, vocabulary, made), vllm, json.dumps(fields))
    assert found == [{"text": engine.generate([Question(made.digest, fields)])[0]}]
    assert not vllm.dead


def test_a_prompt_behind_bos_takes_it_along_and_the_client_leaves_it_out() -> None:
    base = replace(family("llama"), tokenizer=number_tokenizer(begin=3))
    for placement, skipped in (("before_bos", 0), ("after_bos", 1)):
        made = artifact(base, torch.ones(2, 32), template="{text}", labels=NUMBERS, placement=placement)
        files = build_vllm_files(base, made, AdapterBase("base", None, False))
        assert json.loads(files["vllm.json"])["skip"] == skipped
        assert len(load(files["embeddings.safetensors"])["embeddings"]) == 2 + skipped


def test_what_vllm_cannot_take_does_not_leave(vocabulary: Vocabulary, tmp_path: Path) -> None:
    prefix = artifact(tiny(), compute_activations(tiny(), embeddings(tiny())), method="prefix")
    with pytest.raises(DataError, match="a prefix is keys and values, and vLLM takes embeddings only"):
        write(tmp_path, vocabulary, prefix)
    chat = artifact(
        tiny(), embeddings(tiny()), chat=ChatForm(template="c" * 64, parts=["<s>", "{text}", "</s>"]), template="{text}"
    )
    with pytest.raises(DataError, match="only ptpipeline tells from the words of a text"):
        write(tmp_path, vocabulary, chat)
    assert list(tmp_path.iterdir()) == []


def test_the_key_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str | None] = []

    class Elsewhere(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            shown.append(self.headers.get("Authorization"))
            self.answer(200, b"{}")

    class Referring(Quiet):
        def do_POST(self) -> None:  # noqa: N802
            shown.append(self.headers.get("Authorization"))
            self.send_response(302)
            self.send_header("Location", elsewhere)
            self.send_header("Content-Length", "0")
            self.end_headers()

    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with serve(Elsewhere) as elsewhere, serve(Referring) as url:
        without_base(url).ask([1], {})
    assert shown == ["Bearer secret", None]
