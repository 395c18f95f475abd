"""A real training process, killed at random instants and run again: it ends at the bits of one that nobody
disturbed.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from safetensors import SafetensorError
from safetensors.torch import load, save

from tests.tiny import tiny_project

TRAINING = """
import json
from flows.stages.context import Context, ingest, select_tasks
from flows.stages.train import plan, train
from ptpipeline.settings import load_settings

stages = Context.open(load_settings())
stages.report = lambda line: print(line, flush=True)
plans = [plan(stages, task, ingest(stages, task)) for task in select_tasks(stages.settings).tasks]
trained = train(stages, plans)
print(json.dumps({name: [tuned.digest, [repr(point) for point in tuned.curve]] for name, tuned in trained.items()}))
"""
KILLS = 3


class Training:
    """The training of the two tasks of a project, with everything it stores below `folder`."""

    def __init__(self, tasks: Path, folder: Path, **settings: object) -> None:
        self.store = folder / "store"
        self._log = folder / "log"
        folder.mkdir()
        settings |= {
            "PTP_HOME": folder,
            "PTP_TASKS": tasks,
            "PTP_STORE": self.store.as_uri(),
            "PTP_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PTP_")}
        self._environment = (
            clean
            | {name: str(value) for name, value in settings.items()}
            | {"PTP_CHECKPOINT_SECONDS": "0.05", "PTP_DTYPE": "float32"}
        )

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", TRAINING], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def checkpoints(self) -> dict[str, float]:
        """When each was last written."""
        found = {}
        for path in self.store.glob("checkpoints/*.safetensors"):
            try:
                found[path.name] = path.stat().st_mtime
            except FileNotFoundError:  # replaced or cleared at this moment
                continue
        return found

    def finished(self) -> dict[str, tuple[str, list[str]]]:
        """Digest and learning curve of each task, of a training that runs to its end now."""
        process = self.start()
        assert process.wait(300) == 0, self.output
        found: dict[str, tuple[str, list[str]]] = json.loads(self.output.splitlines()[-1])
        return found

    def killed(self, dice: random.Random) -> bool:
        """Start it, and kill it at a random instant behind its next checkpoint; False if it was done before that."""
        before, process = self.checkpoints(), self.start()
        while process.poll() is None and self.checkpoints() == before:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return long_tasks(tmp_path)


def long_tasks(project: Path) -> Path:
    """Two tasks of one base, which train long enough to be killed some times on the way."""
    folder = tiny_project(project, ("one", "two"))
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text().replace("steps: 10", "steps: 60, patience: 50"))
    recipe = (
        "method: p_tuning, encoder_width: 16, optimizer: adafactor, schedule: constant, num_virtual_tokens: 4, "
        "steps: 60, patience: 50"
    )
    (folder / "two.yaml").write_text(
        (folder / "two.yaml").read_text().replace("num_virtual_tokens: 4", recipe).replace("steps: 10, ", "")
    )
    return folder


def test_a_killed_training_ends_at_the_same_bits(tasks: Path, tmp_path: Path) -> None:
    undisturbed, training, dice = (
        Training(tasks, tmp_path / "undisturbed").finished(),
        Training(tasks, tmp_path / "killed"),
        random.Random(0),
    )
    assert sum(training.killed(dice) for _ in range(KILLS)) >= 2
    assert training.checkpoints()
    assert training.finished() == undisturbed
    assert "resumes from a checkpoint" in training.output
    assert training.checkpoints() == {}


# ---------------------------------------------------------------- what a writer of the bucket may try


def parse_checkpoint(stored: bytes) -> tuple[bytes, dict[str, torch.Tensor], str]:
    """What stands in front of the safetensors file, its tensors, and its state."""
    for start in (0, 32):
        with contextlib.suppress(SafetensorError):
            tensors = load(stored[start:])
            (length,) = struct.unpack("<Q", stored[start : start + 8])
            metadata = json.loads(stored[start + 8 : start + 8 + length])["__metadata__"]
            return stored[:start], tensors, metadata["state"]
    raise AssertionError("the checkpoint has another form than this attack knows")


def forge(stored: bytes, how: str) -> bytes:
    """The checkpoint with a foreign prompt as every member's best, under a hash that anybody can compute."""
    front, tensors, state = parse_checkpoint(stored)
    foreign = {
        name: torch.full_like(tensor, 0.25) if ".best." in name else tensor.clone() for name, tensor in tensors.items()
    }
    told = json.loads(state)
    for member in told["members"]:
        member |= {"best_dev": 1.0, "best_step": member["step"]}
    state = json.dumps(told)
    sha256 = hashlib.sha256(save(foreign, {"state": state})).hexdigest()
    body = save(foreign, {"state": state, "sha256": sha256})
    return {"hash": body, "old seal": front + body, "hash in its place": hashlib.sha256(body).digest() + body}[how]


class Attacked(NamedTuple):
    """A killed training that signs, its folder, and what an undisturbed one came to."""

    tasks: Path
    folder: Path
    undisturbed: dict[str, tuple[str, list[str]]]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    folder = tmp_path_factory.mktemp("attacked")
    tasks, key = long_tasks(folder), folder / "key.pem"
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    training = Training(tasks, folder / "killed", PTP_SIGNING_KEY=key)
    while not training.checkpoints():
        assert training.killed(random.Random(1)), "it ended before it was killed"
    return Attacked(tasks, folder / "killed", Training(tasks, folder / "undisturbed").finished())


@pytest.mark.parametrize("how", ["hash", "old seal", "hash in its place"])
def test_the_trainer_signs_no_prompt_that_a_writer_of_the_bucket_put_into_a_checkpoint(
    attacked: Attacked, tmp_path: Path, how: str
) -> None:
    training = Training(attacked.tasks, tmp_path / "again", PTP_SIGNING_KEY=attacked.folder.parent / "key.pem")
    shutil.copytree(attacked.folder, tmp_path / "again", dirs_exist_ok=True)
    (path,) = training.store.glob("checkpoints/*.safetensors")
    path.write_bytes(forge(path.read_bytes(), how))
    assert training.finished() == attacked.undisturbed
    assert "has no valid seal" in training.output
    signed = {path.parent.name for path in training.store.glob("prompts/*/*/signature-*.json")}
    assert signed == {digest for digest, _ in attacked.undisturbed.values()}
