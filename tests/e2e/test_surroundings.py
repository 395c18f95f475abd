"""The local stack in an environment that belongs to other work: proxies, a cloud account, a home with odd signs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.local.stack import down
from tests.e2e.conftest import write_project

pytestmark = pytest.mark.servers


class Proxy(NamedTuple):
    """A proxy that refuses everything, and what it was asked."""

    address: str
    asked: list[str]


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(403, "this proxy refuses everything")

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Proxy(f"127.0.0.1:{server.server_port}", asked)
    server.shutdown()
    server.server_close()


class Surroundings(NamedTuple):
    """A project folder and the environment of its person, who has a stack up there."""

    folder: Path
    environment: dict[str, str]

    def ptp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def surroundings(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    folder = tmp_path_factory.mktemp("project") / "a b?c%41"
    folder.mkdir()
    write_project(folder)
    (folder / "aws").write_text("no section, which boto refuses")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PTP_", "AWS_", "PREFECT_", "MLFLOW_"))
    }
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), f"http://{proxy.address}")
    proxies |= dict.fromkeys(("ALL_PROXY", "all_proxy"), f"socks://{proxy.address}")
    account = {
        "AWS_ACCESS_KEY_ID": "mine",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEXAMPLE",
        "AWS_PROFILE": "nobody",
        "AWS_CONFIG_FILE": str(folder / "aws"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "aws"),
        "MLFLOW_TRACKING_TOKEN": "mine",
        "PREFECT_API_KEY": "mine",
    }
    found = Surroundings(folder, clean | proxies | account | {"PTP_HOME": str(folder / "my home?x=1&y#z%2f,ü")})
    try:
        up = found.ptp("up", "--json")
        assert up.returncode == 0, up.stderr
        yield found
    finally:
        down(Path(found.environment["PTP_HOME"]))


def test_a_whole_night_needs_nothing_of_the_surroundings(surroundings: Surroundings, proxy: Proxy) -> None:
    states = [json.loads(line)["state"] for line in surroundings.ptp("status", "--json").stdout.splitlines()]
    assert states == ["up"] * 4
    ingested = surroundings.ptp("ingest", "fruit", "--json")
    assert ingested.returncode == 0, ingested.stderr
    night = surroundings.ptp("trigger", "nightly", "--json")
    assert night.returncode == 0, night.stderr
    assert json.loads(night.stdout)["status"] == "promoted"
    answered = surroundings.ptp("predict", "fruit", "apple pear plum", "--json")
    assert json.loads(answered.stdout)["version"] == "fruit@1", answered.stderr
    assert surroundings.ptp("doctor").returncode == 0
    assert proxy.asked == []


def test_all_of_a_home_with_odd_signs_lies_in_it(surroundings: Surroundings) -> None:
    home = Path(surroundings.environment["PTP_HOME"])
    files = {path.name for path in home.rglob("*") if path.is_file()}
    assert {"stack-ledger.db", "prefect.db", "mlflow.db", "stack.json", "prefect.yaml"} <= files
    assert [path.name for path in home.parent.iterdir() if path.name.startswith("my home")] == [home.name]
    assert sorted(path.name for path in home.parent.iterdir()) == ["aws", "fruit.csv", home.name, "tasks", "tiny"]
