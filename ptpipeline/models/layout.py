"""Where the rows of a fused pass stand: their positions, what each token may attend to, and which states are read.

Letters: B rows, T tokens of a row (padded), K prompts, P virtual tokens (padded), d a head's width, kv key/value heads,
S = P + T keys, N states that are read, C states read of one row at most.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptpipeline.models import kernels
from ptpipeline.models.kernels import Heads, Rotation


class Reads(NamedTuple):
    """Which states a pass returns: row [N] and column [N] of each."""

    rows: Tensor
    columns: Tensor


class RowPrompts(NamedTuple):
    """The prompt that each row follows: its index in the cache [B], and its length [B]."""

    indexes: Tensor
    lengths: Tensor


class Rotations(NamedTuple):
    """The tokens' rotation of keys, and of queries, which bears the scale of the scores."""

    keys: Rotation
    queries: Rotation


class Layout(NamedTuple):
    """How a layer sees its tokens: heads and rows, rotations, and the mask [B, 1, T, S] added to the scores.

    A last layer also has the flat token [B C] of each query, and in `reads` the query [N] of each state that is read.
    """

    heads: Heads
    rotations: Rotations
    mask: Tensor
    tokens: Tensor | None = None
    reads: Tensor | None = None


class RowLayouts(NamedTuple):
    """The layout of all layers but the last, and of the last, whose queries are only those that are read."""

    inner: Layout
    last: Layout


class Geometry(NamedTuple):
    """What of a model decides the layout: its heads (without rows), its rotary module and its type."""

    heads: Heads
    rotary: Any
    dtype: torch.dtype

    def compute_rotations(self, positions: Tensor) -> Rotations:
        """Return the model's rotations at positions [B, T], in the type that rotations are computed in."""
        like = torch.empty((), dtype=kernels.accumulation_dtype(self.dtype), device=positions.device)
        cos, sin = (table[..., : table.shape[-1] // 2].contiguous() for table in self.rotary(like, positions))
        scale = self.heads.width**-0.5
        return Rotations(Rotation(cos, sin), Rotation(cos * scale, sin * scale))

    def lay_out_prompts(self, width: int, lengths: Tensor) -> Layout:
        """Return the layout of K prompts, padded left to `width`, of these lengths [K]: each is causal in itself."""
        slots = torch.arange(width, device=lengths.device)  # [P]
        pads = (width - lengths)[:, None]  # [K, 1]
        causal, own = slots <= slots[:, None], slots == slots[:, None]  # [P, P]
        visible = (slots >= pads)[:, None, :] & causal | own  # [K, P, P]
        heads = self.heads._replace(rows=len(lengths))
        return Layout(heads, self.compute_rotations((slots - pads).clamp(min=0)), _additive(visible, self.dtype))

    def lay_out_rows(self, ids: Tensor, prompts: RowPrompts | None, width: int, reads: Reads) -> RowLayouts:
        """Return the layouts of rows [B, T], padded right, behind prompts that are padded left to `width` (0: none)."""
        rows, tokens = ids.shape
        slots = torch.arange(tokens, device=ids.device)  # [T]
        offsets = slots.new_zeros(rows, 1) if prompts is None else prompts.lengths[:, None]  # [B, 1]
        prompt = torch.arange(width, device=ids.device) >= width - offsets  # [B, P]
        text = (slots <= slots[:, None]).expand(rows, -1, -1)  # [B, T, T]
        visible = torch.cat([prompt[:, None].expand(-1, tokens, -1), text], 2)  # [B, T, S]
        heads, rotations = self.heads._replace(rows=rows), self.compute_rotations(offsets + slots)
        columns, flat_reads = _grid(reads, rows)  # [B, C], [N]
        row_index = torch.arange(rows, device=ids.device)[:, None]  # [B, 1]
        flat_tokens = (columns + tokens * row_index).flatten()  # [B C]
        chosen = Rotation(*(table[row_index, columns] for table in rotations.queries))
        return RowLayouts(
            Layout(heads, rotations, _additive(visible, self.dtype)),
            Layout(
                heads,
                Rotations(rotations.keys, chosen),
                _additive(visible[row_index, columns], self.dtype),
                flat_tokens,
                flat_reads,
            ),
        )


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
    return part.new_zeros(shape[1], shape[0], *shape[2:]).index_add_(1, prompts, part).transpose(0, 1)


def _grid(reads: Reads, rows: int) -> tuple[Tensor, Tensor]:
    """Return the columns [B, C] that are read of each row, and the flat place [N] of each read in them.

    A row with fewer reads than C has its first column in the places left over.
    """
    counts = torch.bincount(reads.rows, minlength=rows)  # [B]
    order = torch.argsort(reads.rows, stable=True)  # [N]
    starts = counts.cumsum(0) - counts  # [B]
    ranks = torch.empty_like(order)  # [N]
    ranks[order] = torch.arange(len(order), device=order.device) - starts[reads.rows[order]]
    width = int(counts.max())
    columns = reads.columns.new_zeros(rows, width)  # [B, C]
    columns[reads.rows, ranks] = reads.columns
    return columns, reads.rows * width + ranks


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask [B, 1, T, S] of what each token may attend to [B, T, S]: 0 there, -inf elsewhere."""
    mask = torch.zeros(visible.shape, dtype=kernels.accumulation_dtype(dtype), device=visible.device)  # [B, T, S]
    return mask.masked_fill_(~visible, float("-inf"))[:, None]
