"""What the kernels of a layer take and give, by name.

Letters: H width, B rows, T tokens of a row, kv key/value heads with g query heads each, d a head's width.
"""

from typing import NamedTuple

from torch import Tensor


class Heads(NamedTuple):
    """How a flat tensor splits into heads: B rows, kv key/value heads, g query heads of each, a head's width d."""

    rows: int
    groups: int
    shared: int
    width: int


class Norm(NamedTuple):
    """An RMSNorm: its weight [H], to which nothing is added any more, and its epsilon."""

    weight: Tensor
    epsilon: float


class Rotation(NamedTuple):
    """Cosine and sine [B, T, r / 2] of the tokens' positions, for rotary embeddings (Su et al. 2021, section 3.4).

    The first r of a head's d elements are rotated; `scale` is in cosine and sine, and multiplies the others.
    """

    cos: Tensor
    sin: Tensor
    scale: float = 1.0

    def invert(self) -> "Rotation":
        """Return the rotation by the opposite angles: the backward pass of this one."""
        return Rotation(self.cos, -self.sin, self.scale)


class LayerKeyValues(NamedTuple):
    """Keys and values of one layer, [kv, B, tokens, d] each."""

    keys: Tensor
    values: Tensor


class HeadGradients(NamedTuple):
    """Gradients of one layer's queries [kv, B, g T, d], keys [kv, B, T, d] and values [kv, B, T, d]."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class AttentionGradients(NamedTuple):
    """Gradients of the states between attention and MLP [B T, H], and of the layer's heads."""

    between: Tensor
    heads: HeadGradients
