"""Prompts as models of MLflow: loaded and served by MLflow itself, from files or from a signed store, never pickles."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import mlflow
import mlflow.pyfunc
import pandas
import pytest
from mlflow.exceptions import MlflowException

import ptpipeline
from benchmarks.fixtures.s3_server import free_ports, wait_until_healthy
from flows.on_demand.export import export
from ptpipeline.errors import ArtifactError, NotFound, SettingsError
from ptpipeline.prompts.artifact import Artifact, write_artifact
from ptpipeline.prompts.tensors import pack_ensemble
from ptpipeline.records.prompts import Generation
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.resolver import Resolved
from ptpipeline.storage import FolderStore
from ptpipeline.storage.signed import SignedStore
from registry.mlflow.pyfunc import build_model_files
from registry.mlflow.store import MlflowStore
from tests.evaluation.probed import artifact, embeddings, fields, tiny
from tests.flows.project import Project
from tests.prompts.test_signature import OURS, public_pem
from tests.tiny import tiny_project

TEXTS = ["the good film", "awful plot and story"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a project, which the environment names, with the tiny base and an empty store."""
    folder = tmp_path / "project"
    tiny_project(folder)
    named = {"HOME": "home", "TASKS": "tasks"}
    for name, value in {f"PTP_{name}": str(folder / place) for name, place in named.items()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PTP_DTYPE", "float32")
    monkeypatch.setenv("PTP_STORE", f"file://{folder / 'store'}")
    return folder


def written(folder: Path, made: Artifact, members: Sequence[Artifact] = ()) -> Path:
    """A folder with the MLflow model of version 3."""
    for name, body in build_model_files(Resolved("movies", 3, made, list(members))).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def answers(model: Any, texts: Sequence[str] = TEXTS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = model.predict(pandas.DataFrame({"text": list(texts)}))
    return found


@pytest.mark.usefixtures("project")
def test_mlflow_loads_a_folder_and_answers_as_the_engine(tmp_path: Path) -> None:
    members, whole = an_ensemble()
    engine = Engine(tiny())
    engine.load(whole, members)
    scores = engine.score_labels([Question(whole.digest, {"text": text}) for text in TEXTS])
    found = answers(mlflow.pyfunc.load_model(str(written(tmp_path / "model", whole, members))))
    for answer, score in zip(found, scores, strict=True):
        expected = dict(zip(fields(tiny())["labels"], score.softmax(0).tolist(), strict=True))
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert (answer["version"], answer["digest"]) == ("movies@3", whole.digest)


@pytest.mark.usefixtures("project")
def test_a_model_states_what_it_takes_and_shows_an_example(tmp_path: Path) -> None:
    made = artifact(
        tiny(), embeddings(tiny()), labels={}, generate=Generation(max_new_tokens=4), template="{title}: {text}"
    )
    model = mlflow.pyfunc.load_model(str(written(tmp_path / "model", made)))
    assert model.loader_module == "registry.mlflow.pyfunc"  # models that were written before name it too
    schema = model.metadata.get_input_schema()
    assert [(column.name, str(column.type)) for column in schema.inputs] == [
        ("text", "DataType.string"),
        ("title", "DataType.string"),
    ]
    assert [column.name for column in model.metadata.get_output_schema().inputs] == list(answers_of(model)[0])
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pandas.DataFrame({"text": ["a"]}))


def answers_of(model: Any) -> list[dict[str, Any]]:
    """Its answers to its own example."""
    found: list[dict[str, Any]] = model.predict(model.input_example)
    return found


@pytest.mark.usefixtures("project")
def test_a_text_that_does_not_fit_is_told_in_one_sentence(tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(str(written(tmp_path / "model", artifact(tiny(), embeddings(tiny())))))
    with pytest.raises(MlflowException, match=r"text 1 for movies.*: the text has .* tokens, at most 100 fit"):
        answers(model, ["the film " * 200])


@pytest.mark.usefixtures("project")
def test_altered_files_are_not_loaded(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", artifact(tiny(), embeddings(tiny())))
    sound = (folder / "prompt.safetensors").read_bytes()
    (folder / "prompt.safetensors").write_bytes(sound[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="the file is truncated or altered"):
        mlflow.pyfunc.load_model(str(folder))
    other = artifact(tiny(), embeddings(tiny(), " bad"))
    for name in ("prompt.safetensors", "manifest.json"):
        (folder / name).write_bytes(build_model_files(Resolved("movies", 3, other, []))[name])
    with pytest.raises(ArtifactError, match="MLmodel: is of another prompt"):
        mlflow.pyfunc.load_model(str(folder))


@pytest.mark.usefixtures("project")
def test_members_in_another_order_are_not_loaded(tmp_path: Path) -> None:
    members, whole = an_ensemble()
    with pytest.raises(ArtifactError, match=r"its members are not those that manifest\.json lists"):
        mlflow.pyfunc.load_model(str(written(tmp_path / "model", whole, members[::-1])))


@pytest.mark.usefixtures("project")
def test_a_version_that_is_no_number_is_not_loaded(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", artifact(tiny(), embeddings(tiny())))
    described = (folder / "MLmodel").read_text()
    assert "ptp.version: 3" in described
    (folder / "MLmodel").write_text(described.replace("ptp.version: 3", "ptp.version: three"))
    with pytest.raises(ArtifactError, match="MLmodel: is of another prompt"):
        mlflow.pyfunc.load_model(str(folder))


def an_ensemble() -> tuple[list[Artifact], Artifact]:
    """Two members, and the ensemble of them."""
    members = [artifact(tiny(), embeddings(tiny(), word)) for word in (" yes", " bad")]
    return members, pack_ensemble(members, "average", fields(tiny()) | {"method": "ensemble"})


def test_with_trusted_keys_members_have_to_be_signed_too(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "trusted.pem").write_bytes(public_pem(OURS))
    monkeypatch.setenv("PTP_TRUSTED_KEYS", str(project / "trusted.pem"))
    store, (members, whole) = FolderStore(project / "store"), an_ensemble()
    for member in members:
        write_artifact(store, member)
    write_artifact(SignedStore(store, key=OURS), whole)
    with pytest.raises(ArtifactError, match="nobody signed it"):
        mlflow.pyfunc.load_model(str(written(tmp_path / "model", whole, members)))
    for member in members:
        write_artifact(SignedStore(store, key=OURS), member)
    assert mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_with_trusted_keys_the_store_and_its_signature_count(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = Ed25519PrivateKey.generate().public_key()
    (project / "trusted.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    monkeypatch.setenv("PTP_TRUSTED_KEYS", str(project / "trusted.pem"))
    folder = written(tmp_path / "model", artifact(tiny(), embeddings(tiny())))
    with pytest.raises(SettingsError, match="does not hold movies@3, so its signature cannot be checked"):
        mlflow.pyfunc.load_model(str(folder))


@pytest.mark.servers
def test_a_version_is_loaded_and_served_by_mlflow(
    project: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
        ours = Project.__new__(Project)
        ours._live_in(project, project / "tasks")
        ours.settings = ours.settings.model_copy(update={"mlflow": mlflow_url, "home": project / "home"})
        assert ours.run().status == "promoted"
        with pytest.raises(NotFound, match="has no production version"):
            export(ours.settings, "other", "mlflow", None)
        done = export(ours.settings, "tiny-sentiment@1", "mlflow", None)
        assert done.folder == "models:/tiny-sentiment/1"
        expected = [answer.to_json() for answer in ptpipeline.load("tiny-sentiment").predict(TEXTS)]
        address = "models:/tiny-sentiment@production"
        model = mlflow.pyfunc.load_model(address)
        assert answers(model) == expected
        shown = httpx.get(
            f"{mlflow_url}/model-versions/get-artifact",
            params={"path": "MLmodel", "name": "tiny-sentiment", "version": "1"},
        )
        assert '"name": "text"' in shown.text
        assert served(address, tmp_path / "serving.log", dict(os.environ)) == expected


def served(address: str, log: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """What `mlflow models serve` answers."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", address, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # where MLflow looks for uvicorn
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/ping", process, log)
        asked = {"dataframe_records": [{"text": text} for text in TEXTS]}
        answer = httpx.post(f"http://127.0.0.1:{port}/invocations", json=asked, timeout=120)
        assert answer.status_code == 200, answer.text
        long = {"dataframe_records": [{"text": "the film " * 300}]}
        refused = httpx.post(f"http://127.0.0.1:{port}/invocations", json=long, timeout=120)
        assert (refused.status_code, "at most" in refused.text) == (400, True)
        found: list[dict[str, Any]] = json.loads(answer.content)["predictions"]
        return found
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_without_a_server_and_a_folder_there_is_nowhere_to_go(tmp_path: Path) -> None:
    ours = Project(tmp_path, ("tiny-sentiment",))
    with pytest.raises(SettingsError, match="--to: name a new folder"):
        export(ours.settings, "tiny-sentiment@1", "npy", None)


@pytest.mark.servers
def test_a_version_that_mlflow_does_not_show_is_named(mlflow_url: str) -> None:
    from registry.mlflow.pyfunc import log_model_files

    unknown = Resolved("movies", 3, artifact(tiny(), embeddings(tiny())), [])
    with pytest.raises(NotFound, match=r"MLflow has no logged model of movies@3; `ptp reconcile` brings it"):
        log_model_files(MlflowStore(mlflow_url), unknown, {})
