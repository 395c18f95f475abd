"""Training order of one member: its own seed shuffles each epoch, and a batch has rows of similar length."""

from collections.abc import Iterator, Sequence

import torch

WINDOW = 16  # batches that are sorted by length together; their order is shuffled again


def sample_batches(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of row indexes without end; within an epoch every row comes exactly once.

    `lengths` are the rows' numbers of tokens. The last batch of an epoch may be smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from _shuffle_epoch(lengths, batch_size, generator)


def _shuffle_epoch(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), batch_size * WINDOW):
        window = sorted(order[start : start + batch_size * WINDOW], key=lambda row: lengths[row])
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
