"""One local stack for all end-to-end tests, in a project folder of its own with a tiny base model and one small
task.
"""

import csv
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.local.stack import Stack, down, read, up
from ptpipeline.errors import StackError
from ptpipeline.settings import CREDENTIALS, load_settings
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


class Project(NamedTuple):
    """A project folder and the stack that runs for it; `refused` is what a second `up` was told meanwhile."""

    folder: Path
    home: Path
    refused: str

    @property
    def stack(self) -> Stack:
        stack = read(self.home)
        if stack is None:
            raise RuntimeError(f"no stack in {self.home}")
        return stack

    @property
    def prefect(self) -> str:
        return self.stack.settings["prefect"]


@pytest.fixture(scope="package")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project with its stack up, its settings in the environment; everything is down afterwards."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("PTP_", "AWS_", "PREFECT_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("PTP_HOME", str(folder / ".ptp"))
        for name in itertools.chain(*CREDENTIALS.values()):
            patch.setenv(name, "")  # restored afterwards: load_settings sets them
            del os.environ[name]
        home = folder / ".ptp"
        try:
            refused = _started_by_another_process(home)
            load_settings()
            yield Project(folder, home, refused)
        finally:
            down(home)


def _started_by_another_process(home: Path) -> str:
    """Bring the stack up from a process that ends; returns the error of a second `up` in the meantime."""
    code = "import sys; from pathlib import Path; from flows.local.stack import up; up(Path(sys.argv[1]))"
    starter = subprocess.Popen([sys.executable, "-c", code, str(home)])
    while starter.poll() is None and not (home / "stack.json").exists():
        time.sleep(0.05)
    with pytest.raises(StackError) as refused:
        up(home)
    assert starter.wait(timeout=600) == 0
    return str(refused.value)


def write_project(folder: Path) -> None:
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
