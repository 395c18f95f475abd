"""Data parallel training: two real processes train the prompts that one process trains, and agree on every error."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptpipeline.errors import PtpError, RankLost, SettingsError
from ptpipeline.models.causal import CausalBase
from ptpipeline.models.inputs import list_tensors
from ptpipeline.storage import FolderStore
from ptpipeline.tuning.checkpoint import Checkpoints
from ptpipeline.tuning.loop import run_gang
from ptpipeline.tuning.member import Job, Member
from ptpipeline.tuning.ranks import ALONE, _digest, open_ranks
from ptpipeline.tuning.tracker import NoTracker, RunStatus
from tests import processes
from tests.models.families import family
from tests.tuning.jobs import SECRET, job, text_job, words

SIZE = 2


def three_methods(base: CausalBase) -> list[Job]:
    """P, batch sizes, rates and methods mixed; the batch of one row leaves one rank without any."""
    return [
        job(base, "prompt", batch_size=1),
        job(base, "prefix", 1, num_virtual_tokens=5, method="prefix", encoder_width=8, batch_size=5),
        job(base, "p-tuning", 2, num_virtual_tokens=2, method="p_tuning", encoder_width=8, learning_rate=0.05),
    ]


def with_free_text(base: CausalBase) -> list[Job]:
    return [job(base, "labels"), text_job(base, "text", 1)]


def diverging(base: CausalBase) -> list[Job]:
    return [job(base, "healthy"), job(base, "broken", 1, learning_rate=1e300)]


def failing(base: CausalBase) -> list[Job]:
    """One row of the second job has a token beyond the vocabulary, which one rank alone reads."""
    broken = job(base, "broken", 5)
    rows = [row._replace(ids=[999999]) if index == 7 else row for index, row in enumerate(broken.train)]
    return [job(base, "healthy"), broken._replace(train=rows)]


def failing_dev(base: CausalBase) -> list[Job]:
    broken = job(base, "broken", 5)
    return [job(base, "healthy"), broken._replace(dev=[broken.dev[0]._replace(ids=[999999]), *broken.dev[1:]])]


def long(base: CausalBase) -> list[Job]:
    return [
        one._replace(tune=one.tune.model_copy(update={"steps": 120, "patience": 900})) for one in three_methods(base)
    ]


def differing(base: CausalBase) -> list[Job]:
    """Another first prompt on each rank, as if a champion had moved meanwhile."""
    return [job(base, "one", seed=int(os.environ.get("RANK", "0")))]


GANGS: dict[str, Callable[[CausalBase], list[Job]]] = {
    function.__name__: function
    for function in (three_methods, with_free_text, diverging, failing, failing_dev, long, differing)
}


class Told(NoTracker):
    """Writes a line for each run that begins or ends."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"tracked-{rank}"

    def start(self, task: str, params: object, tags: object, run: str | None) -> str | None:
        self._write(f"{task} begins")
        return task

    def finish(self, run: str | None, status: RunStatus) -> None:
        self._write(f"{run} {status}")

    def _write(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")


def train(folder: Path, rank: int, port: int, gang: str, dtype: torch.dtype, strange: bool) -> None:
    """What a rank does: what it ends with stands in files of its own. The last one may be on a strange machine."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if strange and rank:
        round_otherwise()
    log = (folder / f"log-{rank}").open("a")
    sys.stderr = log
    try:
        base, ranks = words(family("llama", dtype)), open_ranks()
        checkpoints = Checkpoints(FolderStore(folder / f"store-{rank}"), 0.05, SECRET)
        members = run_gang(
            base,
            GANGS[gang](base),
            Told(folder, rank),
            lambda line: print(line, file=log, flush=True),
            checkpoints,
            ranks,
        ).members
        ranks.close()
    except PtpError as error:
        print(f"error: {error}", file=log, flush=True)
        os._exit(3)
    save_file(dict(enumerate_prompts(members)), folder / f"prompts-{rank}.safetensors")
    (folder / f"members-{rank}.json").write_text(json.dumps([describe(member) for member in members]))


def enumerate_prompts(members: Sequence[Member]) -> list[tuple[str, Tensor]]:
    with torch.no_grad():
        return [
            (f"{member.job.name}.{index}", tensor.detach().clone().contiguous())
            for member in members
            for index, tensor in enumerate(list_tensors(member.parameterisation.build_prompt()))
        ]


def describe(member: Member) -> list[Any]:
    return [member.step, member.best_step, member.best_dev, member.error and str(member.error)]


def start(folder: Path, gang: str, dtype: torch.dtype = torch.float64, strange: bool = False) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [processes.copy(train, folder, rank, port, gang, dtype, strange) for rank in range(SIZE)]


def run(folder: Path, gang: str, dtype: torch.dtype = torch.float64) -> list[Member]:
    """Train on two ranks; return what one process trains."""
    ranks = start(folder, gang, dtype)
    base = words(family("llama", dtype))
    alone = run_gang(base, GANGS[gang](base), NoTracker(), lambda line: None).members
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0], (folder / "log-0").read_text()
    return alone


def read_members(folder: Path, rank: int) -> list[list[Any]]:
    found: list[list[Any]] = json.loads((folder / f"members-{rank}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("gang", "dtype"),
    [("three_methods", torch.float64), ("three_methods", torch.float32), ("with_free_text", torch.float32)],
)
def test_two_processes_train_the_prompts_of_one(gang: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """To 1e-9 in float64; a prefix trains in float32 on every base."""
    expected = run(tmp_path, gang, dtype)
    found = [load_file(tmp_path / f"prompts-{rank}.safetensors") for rank in range(SIZE)]
    for name, tensor in enumerate_prompts(expected):
        close = 1e-9 if tensor.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found[0][name], tensor, rtol=close, atol=close)
        assert torch.equal(found[0][name], found[1][name])
    assert read_members(tmp_path, 0) == read_members(tmp_path, 1) == [describe(member) for member in expected]


def test_the_gradients_of_the_prompts_alone_are_exchanged_and_the_first_process_alone_writes(tmp_path: Path) -> None:
    expected = sum(tensor.nbytes for _, tensor in enumerate_prompts(run(tmp_path, "three_methods", torch.float32)))
    last = (tmp_path / "log-0").read_text().splitlines()[-1]
    assert last == (
        f"2 processes trained together: each gave {expected:,} bytes of prompt gradients into the last step, and 40 of "
        "losses"
    )
    assert len(list((tmp_path / "store-0").rglob("*.safetensors"))) == 1
    assert not (tmp_path / "store-1").exists()


@pytest.mark.parametrize("gang", ["diverging", "failing", "failing_dev"])
def test_an_error_of_one_member_is_agreed_by_all_processes(gang: str, tmp_path: Path) -> None:
    expected = [describe(member) for member in run(tmp_path, gang)]
    assert read_members(tmp_path, 0) == read_members(tmp_path, 1) == expected
    assert [error is None for *_, error in expected] == [True, False]


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_process_that_is_killed_ends_the_other_and_the_run_again_resumes(killed: int, tmp_path: Path) -> None:
    ranks = start(tmp_path, "long")
    while not list((tmp_path / "store-0").rglob("*.safetensors")):
        time.sleep(0.01)
        assert ranks[0].is_alive()
    os.kill(int(ranks[killed].pid or 0), signal.SIGKILL)
    at = time.monotonic()
    other = ranks[1 - killed]
    other.join(20)
    assert other.exitcode == 3
    assert time.monotonic() - at < 10
    assert (tmp_path / f"log-{1 - killed}").read_text().splitlines()[-1] == (
        "error: another process of this training ended, so this one ends too; run the same command again: it goes on "
        "from the last checkpoint"
    )
    ranks[killed].join()
    if killed:  # the first one, which was not killed, has ended the runs that it began
        assert (tmp_path / "tracked-0").read_text().splitlines()[-3:] == [
            f"{name} KILLED" for name in ("prompt", "prefix", "p-tuning")
        ]
    (undisturbed := tmp_path / "undisturbed").mkdir()
    for process in (again := [*start(tmp_path, "long"), *start(undisturbed, "long")]):
        process.join(60)
    assert [process.exitcode for process in again] == [0] * 4
    assert "resumes from a checkpoint: prompt at step" in (tmp_path / "log-0").read_text()
    assert read_members(tmp_path, 1) == read_members(undisturbed, 0)
    resumed, whole = (load_file(folder / "prompts-1.safetensors") for folder in (tmp_path, undisturbed))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def round_otherwise() -> None:
    """Let torch's optimizer give other last bits, as another processor may."""
    step = torch.optim.AdamW.step

    def rounded(self: torch.optim.AdamW, closure: None = None) -> None:
        step(self, closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].mul_(1 + 1e-12)

    torch.optim.AdamW.step = rounded  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize(
    ("gang", "sentence"),
    [
        ("differing", "start from different tasks, rows, first prompts, base models or types"),
        ("three_methods", "hold different prompts, so their processors or libraries round otherwise"),
    ],
)
def test_processes_that_would_drift_apart_end_with_a_sentence(gang: str, sentence: str, tmp_path: Path) -> None:
    for process in (ranks := start(tmp_path, gang, strange=gang == "three_methods")):
        process.join(60)
    assert [process.exitcode for process in ranks] == [3, 3]
    for rank in range(SIZE):
        assert sentence in (tmp_path / f"log-{rank}").read_text().splitlines()[-1]


def test_one_process_exchanges_nothing() -> None:
    assert open_ranks() is ALONE


@pytest.mark.parametrize("size", ["2", "two", "0"])
def test_variables_that_torchrun_did_not_set_are_told(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(SettingsError, match="for torchrun to set: start `torchrun"):
        open_ranks()
    assert ALONE.send(b"body") == b"body"
    assert [ALONE.any(flag) for flag in (True, False)] == [True, False]


TORCHRUN = {"WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes are not there."""

    def connect(*_: object, **__: object) -> None:
        raise RuntimeError("nobody connects")

    monkeypatch.setattr(torch.distributed, "init_process_group", connect)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "change", [{"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-2"}, {"RANK": None}, {"MASTER_ADDR": None}, {"MASTER_PORT": None}]
)
def test_each_of_torchruns_variables_is_needed(monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None]) -> None:
    for name, value in (TORCHRUN | change).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="for torchrun to set"):
        open_ranks()


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_each_process_takes_a_gpu_of_its_own_if_there_are_any(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    devices = list[int]()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    with pytest.raises(SettingsError if gpus == 1 else RankLost):  # the second of its machine
        open_ranks()
    assert devices == ([1] if gpus == 2 else [])


def test_the_checksum_of_prompts_is_of_every_tensor_and_32_bits_long() -> None:
    one, other = torch.arange(6.0).reshape(2, 3), torch.ones(4)
    checksums = [_digest(tensors) for tensors in ([one, other], [one + 1, other], [one, other + 1], [other, one])]
    assert len(set(checksums)) == 4
    assert max(checksums) < 2**32
    assert _digest([one.T]) != _digest([one])
