"""`ptp serve` and `ptp token` as processes: from a token to an answer, and a SIGTERM that no client notices."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.flows.cli.test_cli import environment_of, error_of, ptp
from tests.server.test_listen import make_pair
from tests.tiny import tiny_project

ASK = {"model": "tiny-sentiment", "input": "the good film"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a project whose task ran: version 1 is in production."""
    folder = tmp_path_factory.mktemp("ran")
    tiny_project(folder)
    assert ptp(environment_of(folder), "run", "tiny-sentiment").returncode == 0
    return environment_of(folder)


@contextmanager
def serving(
    environment: dict[str, str], *options: str, verify: ssl.SSLContext | bool = True
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address of a server that is ready, and its process."""
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " serving at " in line:
                break
        assert lines, "it ended without a word"
        assert " serving at " in lines[-1], "".join(lines)
        url = lines[-1].split()[-1]
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx.get(f"{url}/readyz", verify=verify).status_code == 200:
                    break
            except httpx.TransportError:
                assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url, process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_server_without_tokens_says_how_to_make_one(ran: dict[str, str]) -> None:
    line = error_of(ptp(ran, "serve", "--tokens", f"{ran['PTP_HOME']}/none.json"), 1)
    assert "make a token with `ptp token NAME`" in line


def test_a_server_for_anyone_listens_on_loopback_alone(ran: dict[str, str]) -> None:
    assert "on loopback alone, not on 0.0.0.0" in error_of(ptp(ran, "serve", "--anyone", "--host", "0.0.0.0"), 1)


def test_tls_takes_both_files_of_a_pair(ran: dict[str, str], tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path)
    assert "TLS takes both --tls-cert and --tls-key" in error_of(
        ptp(ran, "serve", "--anyone", "--tls-cert", str(certificate)), 1
    )
    known, pair = (
        ssl.create_default_context(cafile=certificate),
        ("--tls-cert", str(certificate), "--tls-key", str(key)),
    )
    with serving(ran, "--anyone", *pair, verify=known) as (url, _):
        assert url.startswith("https://")
        assert httpx.post(f"{url}/v1/classify", json=ASK, verify=known, timeout=30).status_code == 200


@pytest.mark.parametrize("seconds", ["0.4", "15.1"])
def test_a_server_looks_at_the_store_neither_all_the_time_nor_hardly_ever(ran: dict[str, str], seconds: str) -> None:
    assert ptp(ran, "serve", "--anyone", "--poll", seconds, "--tokens", "x").returncode == 2


def test_a_token_is_told_once_and_kept_as_a_hash(ran: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    made = ptp(ran, "token", "friend", "--task", "tiny-sentiment", "--per-minute", "9", "--tokens", str(path))
    token = made.stdout.strip()
    assert token.startswith("ptp_")
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    listed = ptp(ran, "token", "--tokens", str(path)).stdout
    assert all(word in listed for word in ("friend", "tiny-sentiment", "9"))
    assert ptp(ran, "token", "friend", "--revoke", "--tokens", str(path)).returncode == 0
    assert "friend" not in path.read_text()
    assert "there is no token friend" in error_of(ptp(ran, "token", "friend", "--revoke", "--tokens", str(path)), 1)
    assert "name: String should match pattern" in error_of(ptp(ran, "token", "A b", "--tokens", str(path)), 1)


def test_a_token_for_a_task_without_a_file_is_made_and_told(ran: dict[str, str], tmp_path: Path) -> None:
    words = ("token", "friend", "--task", "tiny-sentimnt", "--task", "tiny-sentiment")
    made = ptp(ran, *words, "--tokens", str(tmp_path / "tokens.json"))
    assert made.stdout.startswith("ptp_")
    [told] = made.stderr.splitlines()
    assert told.startswith(f"--task tiny-sentimnt: there is no {ran['PTP_TASKS']}/tiny-sentimnt.yaml; ")


def test_the_log_of_a_server_does_not_tell_where_a_librarys_keys_are_from() -> None:
    code = (
        "import logging; from flows.cli.terminal import log_plainly; log_plainly(logging.INFO)\n"
        "logging.getLogger('botocore.credentials').info('found'); logging.getLogger('ptpipeline').info('serving')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "INFO serving\n"


def test_a_tokens_file_that_others_may_write_is_refused(ran: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    assert ptp(ran, "token", "friend", "--tokens", str(path)).returncode == 0
    path.chmod(0o666)
    assert "other users may write to it" in error_of(ptp(ran, "serve", "--tokens", str(path)), 1)


def test_a_token_opens_a_server_that_reads_the_store_alone(ran: dict[str, str]) -> None:
    token = ptp(ran, "token", "me").stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    with serving({**ran, "PTP_LEDGER": "sqlite:////nonexistent/ledger.db"}) as (url, _):
        assert httpx.post(f"{url}/v1/classify", json=ASK).status_code == 401
        answer = httpx.post(f"{url}/v1/classify", json=ASK, headers=headers).json()
        assert (answer["version"], answer["data"][0]["label"]) == ("tiny-sentiment@1", "positive")
        metrics = httpx.get(f"{url}/metrics", headers=headers).text
        assert 'ptp_serve_version{alias="production",task="tiny-sentiment"} 1.0' in metrics
        assert 'ptp_serve_answers_total{task="tiny-sentiment",version="tiny-sentiment@1"} 1.0' in metrics


def test_a_server_that_is_terminated_answers_until_its_end(ran: dict[str, str]) -> None:
    with serving(ran, "--anyone", "--drain", "4") as (url, process):
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        answers, ready, last = [], [], began
        while process.poll() is None:
            try:
                ready.append(httpx.get(f"{url}/readyz").status_code)
                answers.append(httpx.post(f"{url}/v1/classify", json=ASK, timeout=10).status_code)
                last = time.monotonic()
            except httpx.ConnectError:  # it takes no more
                break
            time.sleep(0.05)
        assert set(answers) == {200}
        assert 503 in ready
        assert last - began > 2.5  # it went on while the load balancer could notice
        assert process.wait(20) == 0


@pytest.mark.soak  # one that is terminated ends through the same code
def test_a_server_that_is_interrupted_ends_at_once(ran: dict[str, str]) -> None:
    with serving(ran, "--anyone", "--drain", "600") as (url, process):
        httpx.post(f"{url}/v1/classify", json=ASK).raise_for_status()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 0
