"""What layers keep for a backward pass: all that it needs while that fits for all of them, else the states before."""

from pathlib import Path

import pytest
import torch

from ptpipeline.models import memory
from ptpipeline.models.kept import Kept, Normed, Saved
from ptpipeline.models.operands import LayerKeyValues
from tests.models.test_memory import container


def saved(count: int) -> Saved:
    """What a layer keeps in so many bytes, 8 of them in its keys and values."""
    nothing = torch.zeros(0)
    norm = Normed(nothing, nothing)
    own = LayerKeyValues(torch.zeros(1), torch.zeros(1))
    queries = torch.zeros(count - 8, dtype=torch.uint8)
    return Saved(norm, None, None, queries, own, None, None, norm, nothing, None)


def again(index: int, states: torch.Tensor) -> Saved:
    return saved(8 + index)


@pytest.mark.parametrize(("layers", "count", "whole"), [(2, 1024, True), (2, 1025, False), (1, 2048, True)])
def test_all_is_kept_while_it_takes_half_of_the_free_memory_for_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, count: int, whole: bool
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", container(tmp_path, str(2**31 + 4096)))  # 4,096 bytes are free
    kept = Kept(layers, again)
    for _ in range(layers):
        kept.push(saved(count))
    assert kept.whole == whole
    for index in reversed(range(layers)):
        assert kept.pop(index).queries.nbytes == (count - 8 if whole else index)


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_pass_is_told_to_keep_it_keeps(whole: bool) -> None:
    kept = Kept(1, again, whole)
    kept.push(saved(99))
    assert kept.pop(0).queries.nbytes == (91 if whole else 0)
