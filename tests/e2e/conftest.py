"""One local stack for all end-to-end tests, in a project folder of its own with a tiny base model and one small task.

It is started where a person has other work: behind a proxy that refuses everything, with a cloud account in the
environment, in folders with odd signs. So all that these tests show, they show there.
"""

import csv
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.local.stack import Stack, down, read, up
from flows.server.deploy import deploy
from ptpipeline.errors import StackError
from ptpipeline.settings import load_settings
from ptpipeline.task.folder import load_task
from tests.tiny import tiny_base

TASK = """\
name: fruit
base_model: tiny
data:
  source: {{path: {rows}, format: csv}}
  text: text
  label: label
  split: {{dev: 0.2, test: 0.3}}
template: "{{text}}\\nAnswer:"
labels: {{good: " good", bad: " bad"}}
tune: {{num_virtual_tokens: 4, steps: 12, batch_size: 8, eval_every: 6, learning_rate: 0.05}}
gate: {{metric: accuracy, minimum: 0.0, checks: {{gain: off, collapse: off, never: off}}}}
promote: auto
schedule: {{cron: "0 2 * * *", timezone: Asia/Seoul}}
"""


def make_long(steps: int, eval_every: int) -> str:
    """Return the text of a task that trains so many steps, whatever becomes of it; its rows are still to be named."""
    text = TASK.replace("name: fruit", "name: orchard").replace("eval_every: 6", f"eval_every: {eval_every}")
    return text.replace("steps: 12", f"steps: {steps}, patience: {steps}")


class Proxy(NamedTuple):
    """A proxy that refuses everything, and what it was asked."""

    address: str
    asked: list[str]


class Project(NamedTuple):
    """A project folder and the stack that runs for it; `refused` is what a second `up` was told meanwhile.

    `environment` is that of the person who brought the stack up, `proxy` the one that it names.
    """

    folder: Path
    home: Path
    refused: str
    environment: dict[str, str]
    proxy: Proxy

    @property
    def stack(self) -> Stack:
        stack = read(self.home)
        if stack is None:
            raise RuntimeError(f"no stack in {self.home}")
        return stack

    @property
    def prefect(self) -> str:
        return self.stack.settings["prefect"]

    def ptp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The verb as that person runs it."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def project(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project with its stack up, its settings in the environment; everything is down afterwards."""
    folder = tmp_path_factory.mktemp("project") / "a b?c%41"
    folder.mkdir()
    write_project(folder)
    home = folder / "my home?x=1&y#z%2f,ü"
    before = dict(os.environ)  # load_settings puts the stack's keys into the environment
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("PTP_", "AWS_", "PREFECT_", "MLFLOW_"))]:
            del os.environ[name]
        os.environ["PTP_HOME"] = str(home)
        environment = {**os.environ, **_surroundings(folder, proxy)}
        try:
            refused = _started_by_another_process(home, environment)
            load_settings()
            yield Project(folder, home, refused, environment, proxy)
            assert proxy.asked == []  # by nothing of what all the tests did
        finally:
            down(home)
            os.environ.clear()
            os.environ.update(before)


def _surroundings(folder: Path, proxy: Proxy) -> dict[str, str]:
    """What stands in the environment of a person with other work: proxies and accounts."""
    (folder / "aws").write_text("no section, which boto refuses")
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
    return proxies | account


def _started_by_another_process(home: Path, environment: dict[str, str]) -> str:
    """Bring the stack up by a process that ends; returns the error of a second `up` in the meantime."""
    starter = subprocess.Popen([sys.executable, "-m", "flows.cli", "up"], env=environment, stdout=subprocess.DEVNULL)
    while starter.poll() is None and not (home / "stack.json").exists():
        time.sleep(0.05)
    with pytest.raises(StackError) as refused:
        up(home)
    assert starter.wait(timeout=600) == 0
    return str(refused.value)


def write_project(folder: Path) -> None:
    """Write a tiny base model, rows of two labels, and one task over them into a project folder."""
    (folder / "tasks").mkdir()
    tiny_base(folder / "tiny")
    (folder / "tasks" / "base_models.yaml").write_text(f"tiny:\n  path: {folder / 'tiny'}\n")
    (folder / "tasks" / "fruit.yaml").write_text(TASK.format(rows=folder / "fruit.csv"))
    numbers = random.Random(0)
    with (folder / "fruit.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(160):
            label = numbers.choice(["good", "bad"])
            fruit = "apple pear plum" if label == "good" else "stone dust mud"
            rows.writerow([f"{fruit} {number} {numbers.randrange(10**6)}", label])


@contextmanager
def another_task(project: Project, name: str, text: str) -> Iterator[None]:
    """A task beside `fruit`, without a schedule, known to Prefect."""
    path, fruit = project.folder / "tasks" / f"{name}.yaml", load_task(project.folder / "tasks" / "fruit.yaml")
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("schedule")))
    deploy(load_settings(), [fruit, load_task(path)])
    try:
        yield
    finally:
        path.unlink()
        deploy(load_settings(), [fruit])
