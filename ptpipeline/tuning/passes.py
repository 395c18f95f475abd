"""Loss and gradient of a gang: one shared prompt pass per step, then the members' rows in passes grouped by length.

The prompt pass runs once; what it yields are the leaves of the rows' passes, whose gradients flow back through it at
the end. So memory is bound by one pass of rows, however large the gang.

Letters: K prompts, N target tokens of a pass, H width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ptpipeline.data.batches import group_by_length
from ptpipeline.errors import PtpError, Terminal, place_of
from ptpipeline.models.frozen import FrozenBase
from ptpipeline.models.inputs import Input, PrefixCache, SoftPrompt

FAILURES = (RuntimeError, ValueError, IndexError, Terminal)  # of one member: they end that member alone
DISTILLATION = 0.9  # weight of a teacher beside the targets

Teachers = Sequence[SoftPrompt | None]


class Example(NamedTuple):
    """One row of a pass: text ids, target ids, the index of its prompt, and the weight of each target token's loss."""

    ids: Sequence[int]
    target: Sequence[int]
    prompt: int
    weight: float

    @property
    def input(self) -> Input:
        """What the model reads: the text and all target tokens but the last."""
        return Input(self.ids, self.target[:-1], self.prompt)


def build_examples(batches: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]]) -> list[Example]:
    """Return the rows (text ids, target ids) of each prompt; a prompt's loss is the mean over its target tokens."""
    examples = []
    for prompt, rows in enumerate(batches):
        weight = 1 / sum(len(target) for _, target in rows)
        examples += [Example(ids, target, prompt, weight) for ids, target in rows]
    return examples


def describe_failure(error: Exception) -> str:
    """Return what may be printed of an error: our own sentences, and torch's on sizes and devices.

    Others may quote a row, so only their kind and place are printed.
    """
    return str(error) if isinstance(error, (PtpError, RuntimeError)) else place_of(error)


class Backward(Protocol):
    """Return the mean loss of each of K prompts [K] in nats, and add the gradients to the prompts.

    `teachers`, if given, are distilled into the prompts at the same place.
    """

    def __call__(
        self, base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
    ) -> Tensor: ...


def shared_backward(
    base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
) -> Tensor:
    """Return each prompt's mean loss [K] and add the gradients, by one shared prompt pass: how every run trains."""
    cache = base.compute_prefix(prompts)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in cache.tensors)
    behind = PrefixCache(leaves, cache.lengths)
    loss = _Loss(base, len(prompts), teachers)
    losses = _backward_rows(lambda rows: base.compute_states(behind, rows), examples, loss)  # [K]
    torch.autograd.backward(cache.tensors, [leaf.grad for leaf in leaves])
    return losses


def concatenated_backward(
    base: FrozenBase, prompts: Sequence[SoftPrompt], examples: Sequence[Example], teachers: Teachers = ()
) -> Tensor:
    """Return and add the same by plain concatenation, row by row: the reference that every run is checked against."""
    loss = _Loss(base, len(prompts), teachers)
    return _backward_rows(lambda rows: base.concatenate(prompts, rows), examples, loss)


def _backward_rows(
    compute_states: Callable[[list[Input]], Tensor], examples: Sequence[Example], loss: "_Loss"
) -> Tensor:
    total = torch.zeros(loss.count)  # [K]
    for group in group_by_length(examples, lambda row: row.input.length, loss.base.tokens_per_pass):
        losses = loss.compute(compute_states([row.input for row in group]), group)  # [N]
        torch.autograd.backward(losses.sum())
        owners = torch.tensor([row.prompt for row in group for _ in row.target])  # [N]
        total += torch.zeros(loss.count).index_add(0, owners, losses.detach().cpu())  # on a GPU sums have no order
    return total


class _Loss:
    """Cross entropy of the target tokens over the whole vocabulary, plus a prompt's distance to its teacher, if any.

    The distance has weight .9 (Wang et al. 2023, section 3.2): the divergence of the teacher's next tokens, and the
    squared distance of the hidden states. Here these are the last ones that predict a target token, averaged over H.
    """

    def __init__(self, base: FrozenBase, count: int, teachers: Teachers) -> None:
        self.base, self.count = base, count
        self.taught = [index for index, teacher in enumerate(teachers) if teacher is not None]
        given = [teacher for teacher in teachers if teacher is not None]
        with torch.no_grad():
            self.cache = base.compute_prefix(given) if given else None

    def compute(self, states: Tensor, group: Sequence[Example]) -> Tensor:
        """Return each target token's weighted loss [N], from the states [N, H] that predict the group's targets."""
        tokens = [(token, row.weight) for row in group for token in row.target]
        targets, weights = (torch.tensor(part, device=states.device) for part in zip(*tokens, strict=True))
        logits = self.base.compute_logits(states)  # [N, V]
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")  # [N]
        if self.cache is not None:
            losses = losses + DISTILLATION * self._measure_distances(states, logits, group)  # [N]
        return losses * weights

    def _measure_distances(self, states: Tensor, logits: Tensor, group: Sequence[Example]) -> Tensor:
        """Return each target token's distance to the teacher [N], zero without one, from [N, H] and [N, V]."""
        rows = [row.input._replace(prompt=self.taught.index(row.prompt)) for row in group if row.prompt in self.taught]
        taught = torch.tensor([row.prompt in self.taught for row in group for _ in row.target], device=states.device)
        distances = torch.zeros(len(states), device=states.device)  # [N]
        if not rows:
            return distances
        with torch.no_grad():
            aims = self.base.compute_states(self.cache, rows)  # [taught, H]
            log_aims = self.base.compute_logits(aims).log_softmax(-1)  # [taught, V]
        log_probs = logits[taught].log_softmax(-1)  # [taught, V]
        divergence = (log_aims.exp() * (log_aims - log_probs)).sum(-1)  # [taught]
        apart = (states[taught].float() - aims.float()).pow(2).mean(-1)  # [taught]
        return distances.masked_scatter(taught, divergence + apart)
