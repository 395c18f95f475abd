"""Where the rows of a fused pass stand: their positions, what each token may attend to, and which states are read.

Letters: B rows, T tokens of a row (padded), K prompts, P virtual tokens (padded), d a head's width, kv key/value heads,
S = P + T keys, N states that are read, C states read of one row at most.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.operands import Heads, Rotation
from ptpipeline.models.traits import Kind

SPAN = 128  # queries of a row whose scores are in memory at once
READ_STEP = 64  # reads of a pass on a GPU, if rows have several


class Reads(NamedTuple):
    """Which states a pass returns: columns [B, C] that are read of each row, and the flat place [N] of each in them.

    A row with fewer reads than C has its column 0 in the places left over.
    """

    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, firsts: Sequence[int], counts: Sequence[int], device: torch.device) -> "Reads":
        """Read of each row `counts` columns, one behind another from its first, rows in order.

        On a GPU sizes are rounded up, so that few sizes recur; then the places behind the last of N say nothing.
        """
        widest, total = max(counts), sum(counts)
        if device.type == "cuda" and widest > 1:
            widest, total = 1 << (widest - 1).bit_length(), -(-total // READ_STEP) * READ_STEP
        columns = [
            [*range(first, first + count), *[0] * (widest - count)] for first, count in zip(firsts, counts, strict=True)
        ]
        places = [row * widest + step for row, count in enumerate(counts) for step in range(count)]
        places += [0] * (total - len(places))
        return cls(torch.tensor(columns, device=device), torch.tensor(places, device=device))

    def take(self, states: Tensor) -> Tensor:
        """Return what is read [N, H] of all states [B, T, H]."""
        width = self.columns.shape[1]
        return states[self.places // width, self.columns.flatten()[self.places]]


class RowPrompts(NamedTuple):
    """The prompt that each row follows: its index in the cache [B], and its length [B]."""

    indexes: Tensor
    lengths: Tensor


class Rotations(NamedTuple):
    """The tokens' rotation of keys, and of queries, which bears the scale of the scores."""

    keys: Rotation
    queries: Rotation


class Span(NamedTuple):
    """Queries [first, last) of each row, which attend to no key outside [low, high)."""

    first: int
    last: int
    low: int
    high: int


class Layout(NamedTuple):
    """How a layer sees its tokens: heads and rows, rotations, and the mask [B, 1, T, S] added to the scores.

    Its attention is computed span by span. A last layer also has the flat token [B C] of each query, and in `reads` the
    query [N] of each state that is read.
    """

    heads: Heads
    rotations: Rotations
    mask: Tensor
    spans: tuple[Span, ...]
    tokens: Tensor | None = None
    reads: Tensor | None = None


class RowLayouts(NamedTuple):
    """The layouts of all layers but the last, by kind, and that of the last, whose queries are only those read."""

    inner: tuple[Layout, ...]
    last: Layout


class StepLayout(NamedTuple):
    """How a layer sees one more token of each row: its rotations [B, 1, r / 2], and the mask [B, 1, 1, S] over the
    row's slots and the token itself, added to the scores.
    """

    rotations: Rotations
    mask: Tensor


class Geometry(NamedTuple):
    """What of a model decides the layout: heads (without rows), rotary module, kinds of layers, scale of scores, type.

    `last` is the last layer's kind.
    """

    heads: Heads
    rotary: Any
    kinds: tuple[Kind, ...]
    last: int
    score_scale: float
    dtype: torch.dtype

    def compute_rotations(self, positions: Tensor, kind: Kind) -> Rotations:
        """Return the model's rotations at positions [B, T], in the type that rotations are computed in."""
        like = torch.empty((), dtype=kernels.accumulation_dtype(self.dtype), device=positions.device)
        if kind.rope is None:
            cos = sin = like.expand(*positions.shape, 0)
        else:
            tables = self.rotary(like, positions, *[kind.rope] if kind.rope else [])
            cos, sin = (table[..., : table.shape[-1] // 2].to(like.dtype).contiguous() for table in tables)
        scale = self.score_scale
        return Rotations(Rotation(cos, sin), Rotation(cos * scale, sin * scale, scale))

    def lay_out_prompts(self, width: int, lengths: Tensor) -> tuple[Layout, ...]:
        """Return each kind's layout of K prompts, padded left to `width`, of these lengths [K]: each is causal in
        itself.
        """
        slots = torch.arange(width, device=lengths.device)  # [P]
        pads = (width - lengths)[:, None]  # [K, 1]
        heads, positions = self.heads._replace(rows=len(lengths)), (slots - pads).clamp(min=0)  # [K, P]
        layouts = []
        for kind in self.kinds:
            near, own = _see(slots, slots, kind.window), slots == slots[:, None]  # [P, P]
            visible = (slots >= pads)[:, None, :] & near | own  # [K, P, P]
            rotations, spans = self.compute_rotations(positions, kind), _span(width, 0, kind.window)
            layouts.append(Layout(heads, rotations, _additive(visible, self.dtype), spans))
        return tuple(layouts)

    def lay_out_rows(self, ids: Tensor, prompts: RowPrompts | None, width: int, reads: Reads) -> RowLayouts:
        """Return the layouts of rows [B, T], padded right, behind prompts that are padded left to `width` (0: none)."""
        rows, tokens = ids.shape
        slots = torch.arange(width + tokens, device=ids.device)  # [S]
        lengths = slots.new_zeros(rows, 1) if prompts is None else prompts.lengths[:, None]  # [B, 1]
        filled = (slots >= width - lengths)[:, None]  # [B, 1, S]
        positions, heads = lengths + slots[:tokens], self.heads._replace(rows=rows)  # [B, T]
        inner, seen = [], []
        for kind in self.kinds:
            seen.append(filled & _see(slots[width:], slots, kind.window))  # [B, T, S]
            rotations, spans = self.compute_rotations(positions, kind), _span(tokens, width, kind.window)
            inner.append(Layout(heads, rotations, _additive(seen[-1], self.dtype), spans))
        row_index, columns = torch.arange(rows, device=ids.device)[:, None], reads.columns  # [B, 1], [B, C]
        last = inner[self.last]
        cos, sin, scale = last.rotations.queries
        chosen = Rotation(cos[row_index, columns], sin[row_index, columns], scale)
        last = last._replace(
            rotations=last.rotations._replace(queries=chosen),
            mask=_additive(seen[self.last][row_index, columns], self.dtype),
            spans=_span_all(columns.shape[1], width + tokens),
            tokens=(columns + tokens * row_index).flatten(),  # [B C]
            reads=reads.places,
        )
        return RowLayouts(tuple(inner), last)

    def lay_out_step(self, lengths: Tensor, width: int) -> tuple[StepLayout, ...]:
        """Return each kind's layout of one more token behind rows of these lengths [B], padded left to `width`."""
        slots = torch.arange(width + 1, device=lengths.device)  # [S]
        filled, layouts = slots >= (width - lengths)[:, None], []  # [B, S]
        for kind in self.kinds:
            visible = filled & _see(slots[width:], slots, kind.window)  # [B, S]
            mask = _additive(visible[:, None], self.dtype)  # [B, 1, 1, S]
            layouts.append(StepLayout(self.compute_rotations(lengths[:, None], kind), mask))
        return tuple(layouts)


def _see(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return which of the slots `keys` [S] each of the slots `queries` [T] sees [T, S].

    Slots are as far apart as positions, since pads stand outside of prompt and text.
    """
    distance = queries[:, None] - keys  # [T, S]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _span(tokens: int, before: int, window: int | None) -> tuple[Span, ...]:
    """Return the spans of T causal queries behind `before` keys."""
    spans = []
    for first in range(0, tokens, SPAN):
        last = min(first + SPAN, tokens)
        low = 0 if window is None else max(0, before + first - window + 1)
        spans.append(Span(first, last, low, before + last))
    return tuple(spans)


def _span_all(queries: int, keys: int) -> tuple[Span, ...]:
    return tuple(Span(first, min(first + SPAN, queries), 0, keys) for first in range(0, queries, SPAN))


def expand_to_rows(prefix: Tensor, prompts: Tensor) -> Tensor:
    """Return each row's own prompt, [kv, B, P, d] of [K, kv, P, d]; `prompts` [B] are their indexes."""
    turned = prefix.transpose(0, 1)  # [kv, K, P, d]
    if len(prefix) == 1:
        return turned.expand(-1, len(prompts), -1, -1)
    return turned.index_select(1, prompts)


def sum_over_rows(grad: Tensor, prompts: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient [K, kv, P, d] (`shape`) of the prompts, from that of keys or values [kv, B, S, d]."""
    part = grad[:, :, : shape[2]]  # [kv, B, P, d]
    if shape[0] == 1:
        return part.sum(1)[None]
    if (
        part.is_cuda
    ):  # a sum by a product: a GPU's index_add has no order, and a resumed training has to repeat its bits
        chosen = (prompts == torch.arange(shape[0], device=prompts.device)[:, None]).to(part.dtype)  # [K, B]
        return torch.matmul(chosen, part.flatten(2)).view(shape[1], *shape[:1], *shape[2:]).transpose(0, 1)
    return part.new_zeros(shape[1], shape[0], *shape[2:]).index_add_(1, prompts, part).transpose(0, 1)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [B, 1, T, S] of what each token may attend to [B, T, S]: 0 there, -inf elsewhere.

    It has the type that softmax adds it in: on a GPU that of the scores.
    """
    own = dtype if visible.is_cuda else kernels.accumulation_dtype(dtype)
    mask = torch.zeros(visible.shape, dtype=own, device=visible.device)  # [B, T, S]
    return mask.masked_fill_(~visible, float("-inf"))[:, None]
