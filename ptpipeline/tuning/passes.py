"""Loss and gradient of a gang: one shared prompt pass per step, then the members' rows in passes grouped by length.

Letters: B rows, T tokens, P virtual tokens, H width, K members. The prompt pass runs once; its keys and values are the
leaves of the rows' passes, whose gradients flow back through it at the end. So memory is bound by one pass of rows,
however large the gang.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptpipeline.data.batches import by_length
from ptpipeline.models.causal import Batch, CausalBase, PrefixCache, make_batch

TOKENS_PER_PASS = 1024  # padded tokens in one forward and backward pass


class Example(NamedTuple):
    """One row: text ids, label ids, the member it belongs to, and the weight of each of its label tokens in the loss."""

    ids: list[int]
    label: tuple[int, ...]
    member: int
    weight: float

    @property
    def inputs(self) -> list[int]:
        """What the model reads: the text and all label tokens but the last."""
        return self.ids + list(self.label[:-1])


def examples_of(batches: Sequence[Sequence[tuple[list[int], tuple[int, ...]]]]) -> list[Example]:
    """Rows of all members with the weights that make each member's loss the mean over its own label tokens."""
    examples = []
    for member, rows in enumerate(batches):
        weight = 1 / sum(len(label) for _, label in rows)
        examples += [Example(ids, label, member, weight) for ids, label in rows]
    return examples


def shared_backward(base: CausalBase, prompts: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
    """Mean loss of each member [K]; gradients are added to the prompts [P, H]. The way everything trains."""
    cache = base.prefix(prompts)
    produced = [*cache.keys, *cache.values]
    leaves = [tensor.detach().requires_grad_() for tensor in produced]
    layers = len(cache.keys)
    leaf_cache = PrefixCache(tuple(leaves[:layers]), tuple(leaves[layers:]), cache.lengths)
    losses = _backward(base, lambda batch: base.hidden(leaf_cache, batch), len(prompts), examples)
    torch.autograd.backward(produced, [leaf.grad for leaf in leaves])
    return losses


def concatenated_backward(base: CausalBase, prompts: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
    """The same by plain concatenation, row by row: the reference that every run is checked against."""
    return _backward(base, lambda batch: base.concatenated(prompts, batch), len(prompts), examples)


Backward = Callable[[CausalBase, Sequence[Tensor], Sequence[Example]], Tensor]


def _backward(base: CausalBase, hidden_of: Callable[[Batch], Tensor], members: int, examples: Sequence[Example]) -> Tensor:
    total = torch.zeros(members)
    for group in by_length(examples, lambda row: len(row.inputs), TOKENS_PER_PASS):
        hidden = hidden_of(make_batch([row.inputs for row in group], [row.member for row in group]))
        losses = _losses(base, hidden, group, members)
        torch.autograd.backward(losses.sum())
        total += losses.detach().cpu()
    return total


def _losses(base: CausalBase, hidden: Tensor, group: Sequence[Example], members: int) -> Tensor:
    """Each member's share of the loss [K]: cross entropy at the label positions only, over the whole vocabulary."""
    rows, columns, targets, owners, weights = [], [], [], [], []
    for index, row in enumerate(group):
        for step, token in enumerate(row.label):
            rows.append(index)
            columns.append(len(row.ids) - 1 + step)
            targets.append(token)
            owners.append(row.member)
            weights.append(row.weight)
    device = hidden.device
    logits = base.logits(hidden[torch.tensor(rows, device=device), torch.tensor(columns, device=device)])
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")
    weighted = losses * torch.tensor(weights, device=device)
    return torch.zeros(members, device=device).index_add(0, torch.tensor(owners, device=device), weighted)
