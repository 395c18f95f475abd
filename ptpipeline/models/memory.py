"""Memory of a device: what is free inside the limits of a container, and how many tokens fill a pass."""

from pathlib import Path
from typing import Any

import psutil
import torch

CPU_TOKENS = 1024  # a CPU multiplies no faster beyond
MOST_TOKENS = 65536
PASS_SHARE = 0.5  # of the memory that a GPU's weights leave

_CGROUP = Path("/sys/fs/cgroup")


def count_free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device; on a CPU no more than its container allows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available: int = psutil.virtual_memory().available
    return min(available, _count_container_bytes(available))


def count_total_bytes(device: torch.device) -> int:
    """Return the bytes of a device's memory; of a CPU's no more than its container may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total: int = psutil.virtual_memory().total
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def _count_container_bytes(unlimited: int) -> int:
    """Return what the container's limit (cgroup version 2) leaves; `unlimited` if there is none."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        figures = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return unlimited
    reclaimable = int(figures.get("inactive_file", 0))  # cached files, which make room
    return unlimited if limit == "max" else max(0, int(limit) - used + reclaimable)


def choose_pass_tokens(model: Any) -> int:
    """Return how many padded tokens one training pass holds: as many as fill the device, a power of two.

    It depends on the device's whole memory and not on what is free, since other passes sum in another order: a resumed
    training has to repeat its bits.
    """
    device: torch.device = model.device
    if device.type != "cuda":
        return CPU_TOKENS
    weights = sum(parameter.nbytes for parameter in model.parameters() if parameter.device == device)
    room = PASS_SHARE * (count_total_bytes(device) - weights)
    return fit_pass_tokens(room, count_token_bytes(model))


def choose_prompt_tokens(pass_tokens: int) -> int:
    """Return how many padded virtual tokens the prompts of one step have together at most, from the tokens of a pass.

    The prompt pass keeps its states until the step ends; of the rows, only one pass at a time does. So on a CPU, where
    a pass is small, both are equal; on a GPU, whose memory a pass fills by half, the prompts fill another quarter.
    """
    return max(CPU_TOKENS, pass_tokens // 2)


def fit_pass_tokens(room: float, token_bytes: int) -> int:
    """Return the largest power of two of tokens that fit into `room` bytes, at least CPU_TOKENS."""
    tokens = CPU_TOKENS
    while tokens < MOST_TOKENS and 2 * tokens * token_bytes <= room:
        tokens *= 2
    return tokens


def count_token_bytes(model: Any) -> int:
    """Return the bytes that a pass keeps of one token: twice the outputs of all linear maps in the layers."""
    outputs = sum(
        parameter.shape[0]
        for name, parameter in model.base_model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    )
    return 2 * int(outputs) * int(model.dtype.itemsize)
