"""Free memory of a device, inside the limits of a container."""

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def count_free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device; on a CPU no more than its container allows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available: int = psutil.virtual_memory().available
    return min(available, _count_container_bytes(available))


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
