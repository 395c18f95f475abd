"""Loss and gradient of a gang: one shared prompt pass per step, then the members' rows in passes grouped by length.

The prompt pass runs once; what it yields are the leaves of the rows' passes, whose gradients flow back through it at
the end. So memory is bound by one pass of rows, however large the gang.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ptpipeline.data.batches import by_length
from ptpipeline.models.frozen import FrozenBase, Input, PrefixCache, SoftPrompt

TOKENS_PER_PASS = 1024  # padded tokens in one forward and backward pass
DISTILLATION = 0.9  # weight of a teacher beside the targets

Teachers = Sequence[SoftPrompt | None]


class Example(NamedTuple):
    """One row: text ids, target ids, the prompt it stands behind, and the weight of each of its target tokens in the
    loss.
    """

    ids: Sequence[int]
    target: Sequence[int]
    member: int
    weight: float

    @property
    def input(self) -> Input:
        """What the model reads: the text and all target tokens but the last."""
        return Input(self.ids, self.target[:-1], self.member)


def examples_of(batches: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]]) -> list[Example]:
    """Rows (text ids, target ids) of each prompt, weighted so that a prompt's loss is the mean over its target
    tokens.
    """
    examples = []
    for member, rows in enumerate(batches):
        weight = 1 / sum(len(target) for _, target in rows)
        examples += [Example(ids, target, member, weight) for ids, target in rows]
    return examples


def shared_backward(
    base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
) -> Tensor:
    """Mean loss of each prompt [K]; gradients are added to the prompts. The way everything trains."""
    cache = base.prefix(prompts)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in cache.tensors)
    losses = _backward(
        base,
        lambda rows: base.states(PrefixCache(leaves, cache.lengths), rows),
        examples,
        _Loss(base, len(prompts), teachers),
    )
    torch.autograd.backward(cache.tensors, [leaf.grad for leaf in leaves])
    return losses


def concatenated_backward(
    base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
) -> Tensor:
    """The same by plain concatenation, row by row: the reference that every run is checked against."""
    return _backward(base, lambda rows: base.concatenated(prompts, rows), examples, _Loss(base, len(prompts), teachers))


class Backward(Protocol):
    """Loss and gradient of K prompts over their examples; `teachers` are distilled into the prompts at their place."""

    def __call__(
        self, base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
    ) -> Tensor: ...


def _backward(
    base: FrozenBase, states_of: Callable[[list[Input]], Tensor], examples: Sequence[Example], loss: "_Loss"
) -> Tensor:
    total = torch.zeros(loss.prompts)
    for group in by_length(examples, lambda row: row.input.length, TOKENS_PER_PASS):
        losses = loss.of(states_of([row.input for row in group]), group)
        torch.autograd.backward(losses.sum())
        total += losses.detach().cpu()
    return total


class _Loss:
    """Cross entropy of the target tokens over the whole vocabulary; where a prompt has a teacher, also the distance to
    it.

    Wang et al. 2023, section 3.2: with weight .9, the divergence of the teacher's next tokens and the squared distance
    of the hidden states, here the last ones that predict a target token, averaged over their width.
    """

    def __init__(self, base: FrozenBase, prompts: int, teachers: Teachers) -> None:
        self.base, self.prompts = base, prompts
        self.taught = [index for index, teacher in enumerate(teachers) if teacher is not None]
        with torch.no_grad():
            self.cache = base.prefix([teacher for teacher in teachers if teacher is not None]) if self.taught else None

    def of(self, states: Tensor, group: Sequence[Example]) -> Tensor:
        """Each prompt's share of the loss [K] from the states [N, H] that predict the group's target tokens."""
        targets, owners, weights = zip(
            *((token, row.member, row.weight) for row in group for token in row.target), strict=True
        )
        logits = self.base.logits(states)
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(targets, device=states.device), reduction="none"
        )
        if self.cache is not None:
            losses = losses + DISTILLATION * self._distances(states, logits, group)
        weighted = losses * torch.tensor(weights, device=states.device)
        return torch.zeros(self.prompts, device=states.device).index_add(
            0, torch.tensor(owners, device=states.device), weighted
        )

    def _distances(self, states: Tensor, logits: Tensor, group: Sequence[Example]) -> Tensor:
        """How far each target token is from its teacher's [N]; zero where there is none."""
        rows = [row.input._replace(member=self.taught.index(row.member)) for row in group if row.member in self.taught]
        places = torch.tensor([row.member in self.taught for row in group for _ in row.target], device=states.device)
        distances = torch.zeros(len(states), device=states.device)
        if not rows:
            return distances
        with torch.no_grad():
            aims = self.base.states(self.cache, rows)
            likely = self.base.logits(aims).log_softmax(-1)
        found = logits[places].log_softmax(-1)
        divergence = (likely.exp() * (likely - found)).sum(-1)
        apart = (states[places].float() - aims.float()).pow(2).mean(-1)
        return distances.masked_scatter(places, divergence + apart)
