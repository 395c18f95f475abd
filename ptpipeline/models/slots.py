"""Keys and values of rows that are generated together, in tensors that grow in chunks and are written in place.

All rows end at the same slot, so one more token of every row is one more slot; what stands left of a shorter row is
padding. So distances between slots are distances between positions, on which sliding windows and T5's biases rest.

Letters: B rows, S slots, L layers, kv key/value heads, d a head's width.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.models.inputs import PrefixCache

CHUNK = 64  # tokens of every row for which there is room after the rows were moved once


class Begun(NamedTuple):
    """The state [B, H] that predicts the first token of each of B texts, and caches of B entries for later tokens.

    A causal model has one cache: each text behind its prompt. An encoder-decoder has two: what its decoder read, and
    the keys and values of what its encoder did.
    """

    states: Tensor
    caches: tuple[PrefixCache, ...]


class Slots:
    """The keys and values of B rows, which join and leave: tensors [rows, kv, slots, d], one per layer and kind.

    Pads are finite numbers: what a row with other numbers leaves behind never reaches another row.
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._lengths: list[int] = []
        self._end = 0  # the slot behind each row's last token

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def width(self) -> int:
        """Length of the longest row."""
        return max(self._lengths, default=0)

    @property
    def layer_count(self) -> int:
        """L."""
        return len(self._tensors) // 2

    @property
    def lengths(self) -> Tensor:
        """The rows' lengths [B], on the tensors' device."""
        return torch.tensor(self._lengths, device=self._tensors[0].device)

    def mask(self, more: int) -> Tensor:
        """Return which of the slots of the longest row, and of `more` behind it, hold tokens of each row [B, S]."""
        slots = torch.arange(self.width + more, device=self._tensors[0].device)
        return slots[None] >= (self.width - self.lengths)[:, None]

    def add(self, own: PrefixCache) -> None:
        """Let the entries of a cache, which is padded left, join behind the rows that are here."""
        count, longest = len(own.lengths), int(own.lengths.max())
        if not self._tensors:
            self._tensors = [tensor.new_zeros(0, tensor.shape[1], 0, tensor.shape[3]) for tensor in own.tensors]
        rows, end = len(self) + count, max(self._end, longest)
        if rows > len(self._tensors[0]) or end > self._end:
            end = self._move(rows, max(self.width, longest))
        for tensor, source in zip(self._tensors, own.tensors, strict=True):
            tensor[len(self) : rows, :, : end - longest] = 0
            tensor[len(self) : rows, :, end - longest : end] = source[:, :, own.width - longest :]
        self._lengths += own.lengths.tolist()

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place. Without rows, no memory is held."""
        last = len(self) - 1
        if row != last:
            for tensor in self._tensors:
                tensor[row, :, : self._end] = tensor[last, :, : self._end]
            self._lengths[row] = self._lengths[last]
        self._lengths.pop()
        if not self._lengths:
            self._tensors, self._end = [], 0

    def reserve(self) -> None:
        """Make room for one more token of every row."""
        if self._end == self._tensors[0].shape[2]:
            self._move(len(self), self.width)

    def read(self, layer: int, more: int = 0) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values [B, kv, S, d], views of what is here and of `more` slots behind it."""
        low, high = self._end - self.width, self._end + more
        keys, values = self._tensors[layer], self._tensors[self.layer_count + layer]
        return keys[: len(self), :, low:high], values[: len(self), :, low:high]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put a layer's keys and values [B, kv, d] of every row's next token behind the others, and return all."""
        self._tensors[layer][: len(self), :, self._end] = keys
        self._tensors[self.layer_count + layer][: len(self), :, self._end] = values
        return self.read(layer, 1)

    def advance(self) -> None:
        """Count the token that was written in every layer."""
        self._end += 1
        self._lengths = [length + 1 for length in self._lengths]

    def _move(self, rows: int, width: int) -> int:
        """Move the rows into tensors with room for so many, of that width and a chunk more; return where they end.

        Room that the tensors had for more or for longer rows is given back.
        """
        own, count = self.width, len(self)
        for index, tensor in enumerate(self._tensors):
            moved = tensor.new_zeros(rows + rows // 4, tensor.shape[1], width + CHUNK, tensor.shape[3])
            moved[:count, :, width - own : width] = tensor[:count, :, self._end - own : self._end]
            self._tensors[index] = moved
        self._end = width
        return width


def align_right(tensors: Sequence[Tensor], pads: Tensor) -> tuple[Tensor, ...]:
    """Return keys and values [B, kv, S, d] with each row's pads [B] moved from behind its text to the left of its
    prompt: inside, they widen a sliding window.
    """
    if not pads.any():
        return tuple(tensors)
    slots = tensors[0].shape[2]
    order = (torch.arange(slots, device=pads.device)[None] - pads[:, None]) % slots  # [B, S]
    return tuple(tensor.gather(2, order[:, None, :, None].expand_as(tensor)) for tensor in tensors)


def show_to_model(slots: Slots) -> Any:
    """Return the slots as a cache that transformers' own layers read, and write their next token into."""
    from transformers import DynamicCache

    shown, layer_type = DynamicCache(), _define_layer()
    shown.layers.extend(layer_type(slots, index) for index in range(slots.layer_count))
    return shown


@cache
def _define_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class SlotLayer(DynamicLayer):  # type: ignore[misc]
        """One layer of the slots; transformers' own would copy all of it for each token."""

        def __init__(self, slots: Slots, index: int) -> None:
            super().__init__()
            self._slots, self._index = slots, index
            self.keys, self.values = slots.read(index)
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return self._slots.write(self._index, key_states[:, :, 0], value_states[:, :, 0])

    return SlotLayer
