"""Data parallel training: several processes, the ranks, take every step together, each on its share of the rows.

Each rank holds the base and all members of the gang, and takes the same optimizer steps. What they exchange is what
comes out of rows: losses, the gradients of the prompts, and answers to dev rows. Gradients are summed on the CPU, where
the prompts' parameters lie on a GPU too, by gloo. All that is sent are tensors of numbers and JSON, never pickles. A
rank alone decides nothing: an error of one is the error of all, and prompts that differ end the training.

Letters: K prompts.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from ptpipeline.errors import RankLost, SettingsError, TrainingError
from ptpipeline.foreign import parse_json
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import SoftPrompt, list_tensors
from ptpipeline.tuning.passes import FAILURES, Backward, Example, Teachers, describe_failure

# A rank waits while the first one evaluates and registers. Of a process that died the others hear at once
# by its closed sockets, and of a machine that is gone by torchrun's agent.
PATIENCE = timedelta(days=7)

Request = TypeVar("Request")


class Traffic(NamedTuple):
    """Bytes that each rank gave into the last step: of the prompts' gradients, and of losses and agreement."""

    gradients: int
    agreement: int


class Ranks:
    """This process among those that train together: `rank` of `size`. Alone, all is as without it."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.traffic = Traffic(0, 0)
        self._busy = False  # the first one: whether the others train

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, tracks and reports."""
        return self.rank == 0

    def divide(self, backward: Backward) -> Backward:
        """Return the same loss and gradients from all ranks together: each computes its share of the examples.

        Rows of one length are dealt out in turns, so that all have about as many tokens. Raises TrainingError on all
        ranks if one fails, RankLost if one is gone or has other prompts.
        """
        if self.size == 1:
            return backward

        def compute_share(
            base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
        ) -> Tensor:
            own = sorted(examples, key=lambda row: row.input.length)[self.rank :: self.size]
            reason, losses = None, torch.zeros(len(prompts))  # [K]
            try:
                if own:
                    losses = backward(base, prompts, own, teachers)
            except FAILURES as error:
                reason = describe_failure(error)
            return self._sum(prompts, losses, reason)

        return compute_share

    def _sum(self, prompts: Sequence[SoftPrompt], losses: Tensor, reason: str | None) -> Tensor:
        """Return the sum of all ranks' losses [K], and sum the gradients on the prompts."""
        tensors = [tensor for prompt in prompts for tensor in list_tensors(prompt)]
        own = float(_digest(tensors))
        head = torch.tensor([float(reason is not None), own], dtype=torch.float64)
        status = torch.cat([head, losses.double()])  # [2 + K]
        self._reduce(status)
        if status[0]:
            reasons = self._gather([reason])
            raise TrainingError(next(text for (text,) in reasons if text is not None))
        if status[1] != self.size * own:
            raise RankLost(
                "the processes of this training hold different prompts, so their processors or libraries round "
                "otherwise; use machines of one kind, and run the same command again"
            )
        grads = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
        flat = torch.cat([grad.flatten().cpu() for grad in grads])
        self._reduce(flat)
        self.traffic = Traffic(flat.nbytes, status.nbytes)
        for tensor, part in zip(tensors, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            tensor.grad = part.view_as(tensor).to(tensor)
        return status[2:].to(losses.dtype)

    def divide_requests(self, requests: Sequence[Request], work: Callable[[Sequence[Request]], list[str]]) -> list[str]:
        """Return what `work` answers to all requests, each rank to its share.

        Raises TrainingError on all ranks if one fails, RankLost if one is gone.
        """
        if self.size == 1:
            return work(requests)
        reason, answers = None, list[str]()
        try:
            answers = work(requests[self.rank :: self.size])
        except FAILURES as error:
            reason = describe_failure(error)
        parts = self._gather([reason, *answers])
        failed = [part[0] for part in parts if part[0] is not None]
        if failed:
            raise TrainingError(failed[0])
        whole = [""] * len(requests)
        for rank, (_, *part) in enumerate(parts):
            whole[rank :: self.size] = map(str, part)
        return whole

    def agree(self, what: str) -> None:
        """Raise SettingsError on all ranks unless `what` is the same on all."""
        if self.size > 1 and len({text for (text,) in self._gather([what])}) > 1:
            raise SettingsError(
                "the processes of this training start from different tasks, rows, first prompts, base models or "
                "types; give all the same PTP_* settings, files and versions, and run the same command again"
            )

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return flag if self.size == 1 else any(text is not None for (text,) in self._gather(["" if flag else None]))

    def send(self, body: bytes) -> bytes:
        """Return the first rank's bytes on all ranks; what the others give does not matter."""
        if self.size == 1:
            return body
        count = torch.tensor([len(body)])
        with _peers():
            distributed.broadcast(count, 0)
            sent = torch.frombuffer(bytearray(body), dtype=torch.uint8) if body and self.first else None
            buffer = torch.zeros(int(count), dtype=torch.uint8) if sent is None else sent
            if len(buffer):
                distributed.broadcast(buffer, 0)
        return buffer.numpy().tobytes()

    @contextmanager
    def together(self, announced: bytes) -> Iterator[None]:
        """Let the others know by these bytes what all do inside."""
        self.send(announced)
        self._busy = True  # and stays so after an error: then the others wait for something else
        yield
        self._busy = False

    def receive(self) -> bytes:
        """Return what the first rank announces next; nothing if that was all."""
        return self.send(b"")

    def close(self) -> None:
        """Leave the others; the first rank lets them go, unless something failed while they train."""
        if self.size == 1:
            return
        if self.first and not self._busy:
            with suppress(RankLost):
                self.send(b"")
        if not self._busy:
            distributed.destroy_process_group()

    def _reduce(self, tensor: Tensor) -> None:
        with _peers():
            distributed.all_reduce(tensor)

    def _gather(self, texts: Sequence[str | None]) -> list[list[str | None]]:
        """Return the texts of each rank in order, on all ranks."""
        body = torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _peers():
            distributed.all_gather(counts, torch.tensor([len(body)]))
            longest = int(max(counts))
            parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
            distributed.all_gather(parts, torch.nn.functional.pad(body, (0, longest - len(body))))
        bodies = [part[: int(count)].numpy().tobytes() for part, count in zip(parts, counts, strict=True)]
        return [parse_json(body, f"rank {rank}", "it runs another ptpipeline") for rank, body in enumerate(bodies)]


ALONE = Ranks()


def open_ranks() -> Ranks:
    """Return this process's place among those that torchrun started together; alone without torchrun.

    Each takes a GPU of its own if there are any. Raises SettingsError if torchrun's variables are not whole or
    there are fewer GPUs than processes, RankLost if the others cannot be reached.
    """
    try:
        size, _ = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    except ValueError:
        size = 0
    if size == 1:
        return ALONE
    if size < 1 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise SettingsError(
            "WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT are for torchrun to set: start `torchrun --nproc-per-node N "
            "-m flows.parallel TASK`, or remove WORLD_SIZE to train alone"
        )
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpus and local >= gpus:
        raise SettingsError(f"this machine has {gpus} GPUs for more processes: start torchrun --nproc-per-node {gpus}")
    if gpus:
        torch.cuda.set_device(local)
    with _peers():
        distributed.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(distributed.get_rank(), size)


@contextmanager
def _peers() -> Iterator[None]:
    """Say plainly that another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            "another process of this training ended, so this one ends too; run the same command again: it goes on "
            "from the last checkpoint"
        ) from error


def _digest(tensors: Sequence[Tensor]) -> int:
    """Return a checksum of the tensors' bytes, of 32 bits: a sum over ranks is exact in float64."""
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, checksum)
    return checksum
