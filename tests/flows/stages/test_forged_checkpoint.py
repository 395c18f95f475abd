"""Whoever may write to the bucket replaces the checkpoint of a killed training: the trainer neither resumes nor signs
it.
"""

import contextlib
import hashlib
import json
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import SafetensorError
from safetensors.torch import load, save

from flows.stages.context import Context
from flows.stages.ingest import ingest
from flows.stages.plan import plan
from flows.stages.train import train
from ptpipeline.records.prompts import TunedPrompt
from ptpipeline.signing import SigningKey
from ptpipeline.storage import FolderStore
from ptpipeline.storage.signed import SignedStore
from registry.registry import Registry
from tests.flows.conftest import NAME
from tests.flows.project import Project

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


class Killed(BaseException):
    """Ends a training as a signal would."""


class Dying(FolderStore):
    """A folder whose process dies when the sixth state of a checkpoint is stored."""

    left = 5

    def replace(self, key: str, body: bytes, etag: str) -> None:
        super().replace(key, body, etag)
        self.left -= key.startswith("checkpoints/")
        if self.left == 0:
            raise Killed


class Trained(NamedTuple):
    """What a training came to, what it said, and which prompts the trainer signed."""

    digest: str
    lines: list[str]
    signed: set[str]


def train_and_sign(project: Project, store: FolderStore | None = None) -> Trained:
    """Train the project's task, as a process that signs what it stores."""
    opened = project.stages.registry
    signing = SignedStore(store or FolderStore(project.folder / "store"), key=KEY)
    settings = project.settings.model_copy(update={"checkpoint_seconds": 1e-9})
    lines: list[str] = []
    context = Context(settings, Registry(opened.ledger, signing), lines.append)
    task = project.task()
    tuned = train(context, [plan(context, task, ingest(context, task))])[NAME]
    assert isinstance(tuned, TunedPrompt)
    signed = {path.parent.name for path in (project.folder / "store").glob("prompts/*/*/signature-*.json")}
    return Trained(tuned.digest, lines, signed)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose training was killed behind its sixth step. Copy it."""
    project = Project(tmp_path_factory.mktemp("killed"), (NAME,))
    with pytest.raises(Killed):
        train_and_sign(project, Dying(project.folder / "store"))
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of what the training comes to if nobody interferes."""
    return train_and_sign(Project(tmp_path_factory.mktemp("undisturbed"), (NAME,))).digest


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
    """The checkpoint with a foreign prompt as the member's best, under a hash that anybody can compute."""
    front, tensors, state = parse_checkpoint(stored)
    foreign = {
        name: torch.full_like(tensor, 0.25) if ".best." in name else tensor.clone() for name, tensor in tensors.items()
    }
    assert foreign.keys() & {"0.best.0"}
    told = json.loads(state)
    for member in told["members"]:
        member |= {"best_dev": 1.0, "best_step": member["step"]}
    state = json.dumps(told)
    sha256 = hashlib.sha256(save(foreign, {"state": state})).hexdigest()
    body = save(foreign, {"state": state, "sha256": sha256})
    return {"hash": body, "old seal": front + body, "hash in its place": hashlib.sha256(body).digest() + body}[how]


def test_a_killed_training_resumes_from_its_own_checkpoint(killed: Project, tmp_path: Path, undisturbed: str) -> None:
    resumed = train_and_sign(killed.copy(tmp_path))
    assert any("resumes from a checkpoint" in line for line in resumed.lines)
    assert (resumed.digest, resumed.signed) == (undisturbed, {undisturbed})


@pytest.mark.parametrize("how", ["hash", "old seal", "hash in its place"])
def test_the_trainer_signs_no_prompt_that_a_writer_of_the_bucket_put_into_a_checkpoint(
    killed: Project, tmp_path: Path, undisturbed: str, how: str
) -> None:
    project = killed.copy(tmp_path)
    (path,) = (project.folder / "store").glob("checkpoints/*.safetensors")
    path.write_bytes(forge(path.read_bytes(), how))
    again = train_and_sign(project)
    assert any("has no valid seal" in line for line in again.lines)
    assert (again.digest, again.signed) == (undisturbed, {undisturbed})
