"""Training order of one member: epochs shuffled by its own seed, batches of rows of similar length."""

from collections.abc import Iterator, Sequence

import torch

WINDOW = 16  # batches that are sorted by length together; their order is shuffled again


def sample_batches(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of row indexes; within an epoch every row comes exactly once."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from _epoch(lengths, batch_size, generator)


def _epoch(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(len(lengths), generator=generator).tolist()
    formed = []
    for start in range(0, len(order), batch_size * WINDOW):
        window = sorted(order[start : start + batch_size * WINDOW], key=lambda row: lengths[row])
        formed += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [formed[i] for i in torch.randperm(len(formed), generator=generator).tolist()]
