"""`ptp serve` as a process: here in front of a server that speaks vLLM's format."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from benchmarks.fixtures.s3_server import free_ports, wait_until_healthy
from ptpipeline.errors import NotFound, PtpError, SettingsError
from ptpipeline.server.listen import Address
from ptpipeline.server.serve import Options, _check_folder, _choose_base, serve
from ptpipeline.serving.engine import Engine, Question
from ptpipeline.serving.live import Live
from ptpipeline.serving.worker import Worker
from ptpipeline.settings import Settings
from ptpipeline.storage import FolderStore
from tests.evaluation.probed import tiny
from tests.flows.stages.test_approve import FILE
from tests.server.serving import fill, prompts, publish
from tests.serving.registered import OnEngine
from tests.serving.test_gateway import TEXTS, by_engine, vllm
from tests.serving.vllm_server import Vllm
from tests.tiny import tiny_project

__all__ = ["vllm"]  # a fixture


def test_ptp_serve_answers_by_vllm(vllm: Vllm, tmp_path: Path) -> None:
    tiny_project(tmp_path)
    store = FolderStore(tmp_path / "store")
    published = fill(store)
    environment = {**os.environ, "PTP_HOME": str(tmp_path / "home"), "PTP_TASKS": str(tmp_path / "tasks")}
    environment["PTP_STORE"] = store.url
    log, command = (
        tmp_path / "log",
        [sys.executable, "-m", "flows.cli", "serve", "--anyone", "--port", "0", "--drain", "0"],
    )
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--upstream", vllm.url], stderr=output, env=environment, start_new_session=True
        )
    try:
        address = wait_for_address(log, process)
        wait_until_healthy(f"{address}/readyz", process, log)
        with httpx.Client(base_url=address, timeout=60) as client:
            told = client.post("/v1/classify", json={"model": "movies@1", "input": TEXTS[:2]})
            assert [row["probabilities"] for row in told.json()["data"]] == [
                pytest.approx(expected, abs=1e-4) for expected in by_engine(published["first"], TEXTS[:2])
            ]
            assert told.headers["x-ptp-digest"] == published["first"].digest
            engine = Engine(tiny())
            engine.load(published["writer"])
            written = client.post("/v1/completions", json={"model": "writer", "prompt": "a scene"}).json()
            question = Question(published["writer"].digest, {"text": "a scene"})
            assert written["choices"][0]["text"] == engine.generate([question])[0]
            penalised = {"model": "writer", "prompt": "a scene", "presence_penalty": 0.5}
            refused = client.post("/v1/completions", json=penalised)
            assert (refused.status_code, "vLLM's engine ends by that" in refused.text) == (400, True)
        process.terminate()
        assert process.wait(60) == 0
        assert vllm.url not in log.read_text()  # one line for each request, and none for each of ours to vLLM
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_server_whose_computing_thread_died_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever starts it again would else never: it answers every request with an error."""

    def fail(_: Worker) -> bool:
        raise MemoryError("a private text")

    monkeypatch.setattr(Worker, "_wait", fail)
    tiny_project(tmp_path)
    store = FolderStore(tmp_path / "store")
    fill(store)
    settings = Settings(home=tmp_path / "home", tasks=tmp_path / "tasks", store=store.url)
    with pytest.raises(PtpError, match="start the server again"):
        serve(settings, Options(Address("127.0.0.1", 0), None))
    assert "nothing is computed any more: unexpected MemoryError at" in caplog.text
    assert "private" not in caplog.text


def test_a_server_looks_at_the_store_as_often_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[float]()
    monkeypatch.setattr(Live, "start", lambda live: looks.append(live.every))
    monkeypatch.setattr(Worker, "_wait", lambda worker: bool(looks) and 1 / 0)
    tiny_project(tmp_path)
    fill(FolderStore(tmp_path / "store"))
    settings = Settings(home=tmp_path / "home", tasks=tmp_path / "tasks", store=f"file://{tmp_path}/store")
    with pytest.raises(PtpError, match="start the server again"):
        serve(settings, Options(Address("127.0.0.1", 0), None, poll=7.5))
    assert looks == [7.5]


def wait_for_address(log: Path, process: subprocess.Popen[bytes], seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"serving at (http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(log.read_text()[-2000:])


def folder_of(folder: Path, **bases: str) -> Settings:
    """The settings of a folder with a task for each base."""
    for task, base in bases.items():
        (folder / f"{task}.yaml").write_text(FILE.replace("name: mood", f"name: {task}").replace("tiny", base))
    return Settings(home=folder, tasks=folder)


def test_a_server_of_one_base_serves_all_of_the_store(tmp_path: Path) -> None:
    assert _choose_base(folder_of(tmp_path, a="small", b="small"), None) == ("small", [])


def test_of_several_bases_one_is_named_and_its_tasks_are_served(tmp_path: Path) -> None:
    settings = folder_of(tmp_path, a="small", b="large", c="small")
    with pytest.raises(SettingsError, match="the tasks use the bases large, small: name the base to serve with --base"):
        _choose_base(settings, None)
    assert _choose_base(settings, "small") == ("small", ["a", "c"])


def test_without_a_task_the_base_is_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"no task is in {tmp_path}: name the base"):
        _choose_base(folder_of(tmp_path), None)
    assert _choose_base(folder_of(tmp_path), "small") == ("small", [])


def test_a_store_that_is_no_folder_is_not_looked_for_on_the_disk(tmp_path: Path) -> None:
    _check_folder(SimpleNamespace(url="s3://bucket/prompts"), tmp_path)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_no_store_but_its_last_good_set_is_served(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FILE.replace("name: mood", "name: a"))
    settings = Settings(home=tmp_path / "home", tasks=tmp_path, store=f"file://{tmp_path}/store")
    options = Options(Address("127.0.0.1", free_ports(1)[0]), None)
    with pytest.raises(SettingsError, match=f"^{settings.store}: there is no such folder; correct PTP_STORE, or regi"):
        serve(settings, options)
    assert not (tmp_path / "store").exists()
    store = FolderStore(tmp_path / "store")
    publish(store, prompts()["first"], 1)
    Live(store, OnEngine(), settings.home, server=f"{socket.gethostname()}-{options.address.port}").poll()
    store.root.rename(tmp_path / "unmounted")
    with pytest.raises(NotFound, match=r"base_models\.yaml: no such file"):  # what is looked at next
        serve(settings, options)
