"""What the layers of a pass by hand keep for its backward pass: all that it needs, or the states before them alone.

Letters: B rows, T tokens of a row, H width, I width of the MLP, d a head's width, kv key/value heads with g query heads
each, S keys of a row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ptpipeline.models.memory import count_free_bytes
from ptpipeline.models.operands import LayerKeyValues
from ptpipeline.models.scores import Weights

KEPT_SHARE = 0.5  # of the free memory, which the states of all layers may take


class Normed(NamedTuple):
    """What the backward pass of a norm needs: its input [..., H], and 1 / root mean square [..., 1]."""

    states: Tensor
    scale: Tensor


class Saved(NamedTuple):
    """What a layer's backward pass needs of its forward pass.

    `before` enters the layer, `between` stands between attention and MLP; `out` and `down` are what the two add to the
    states, if a norm stands behind them; queries and keys as mapped, if norms stand behind these.
    """

    before: Normed  # [B T, H]
    mapped_queries: Normed | None  # [B T, heads, width of the norm]
    mapped_keys: Normed | None
    queries: Tensor  # [kv, B, g T, d]
    own: LayerKeyValues  # [kv, B, S, d]
    weights: Weights | None  # [kv, B, g T, S]
    out: Normed | None  # [B T, H]
    between: Normed  # [B T, H]
    gate_up: Tensor  # [B T, 2 I]
    down: Normed | None  # [B T, H]


class Kept:
    """What the layers keep for the backward pass: all that it needs, or the states before each alone."""

    def __init__(self, layers: int, again: Callable[[int, Tensor], Saved], whole: bool | None = None) -> None:
        """`again` returns what a layer keeps, from its index and the states before it.

        `whole` says which of both it is; without it the first layer shows what all would keep.
        """
        self._layers, self._again = layers, again
        self._saved: list[Saved | Tensor] = []
        self.whole = whole

    def push(self, saved: Saved) -> None:
        """Keep a layer's; the first decides whether those of all fit."""
        if self.whole is None:
            needed = self._layers * _count_bytes(saved)
            self.whole = needed <= KEPT_SHARE * count_free_bytes(saved.queries.device)
        self._saved.append(saved if self.whole else saved.before.states)

    def pop(self, index: int) -> Saved:
        """Return what the layer of that index, the last that is left, kept, or what it keeps if it runs again."""
        saved = self._saved.pop()
        return saved if isinstance(saved, Saved) else self._again(index, saved)


def _count_bytes(saved: Any) -> int:
    """Return the bytes of all tensors in a record."""
    if isinstance(saved, Tensor):
        return saved.nbytes
    return sum(_count_bytes(part) for part in saved) if isinstance(saved, tuple) else 0
