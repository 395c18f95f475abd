"""Training order: every row once per epoch, batches of similar length, the same for the same seed."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from ptpipeline.tuning.sampler import sample_batches


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 17), st.integers(0, 5))
def test_an_epoch_holds_every_row_once(lengths: list[int], size: int, seed: int) -> None:
    epoch: list[int] = []
    for batch in sample_batches(lengths, size, seed):
        assert 1 <= len(batch) <= size
        epoch += batch
        if len(epoch) >= len(lengths):
            break
    assert sorted(epoch) == list(range(len(lengths)))


def test_equal_seeds_give_equal_orders() -> None:
    lengths = list(range(100))
    assert list(islice(sample_batches(lengths, 8, 3), 30)) == list(islice(sample_batches(lengths, 8, 3), 30))
    assert list(islice(sample_batches(lengths, 8, 3), 30)) != list(islice(sample_batches(lengths, 8, 4), 30))


def test_batches_are_of_similar_length() -> None:
    lengths = [i % 50 + 1 for i in range(1600)]
    spread = [
        max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in islice(sample_batches(lengths, 16, 0), 100)
    ]
    assert sum(spread) / len(spread) < 8
