"""What trains in place of a soft prompt: the prompt itself, or a network that yields it and is not stored.

Before the first step every parameterisation yields exactly the initial prompt: what its random network puts out then is
subtracted as a constant, so that it never drowns the recipe's initialisation.

Letters: P virtual tokens, H width, L layers, kv key/value heads, d a head's width, m the network's hidden width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ptpipeline.models.inputs import KeyValues, SoftPrompt, count_virtual_tokens, list_tensors, rebuild
from ptpipeline.task.recipe import Tune

RESIDUAL_WIDTH = 800  # m; Razdaibiedina et al. 2023, the bottleneck of their code
PREFIX_WIDTH = 512  # m; Li & Liang 2021, appendix A


class Parameterisation(nn.Module, ABC):
    """Yields a soft prompt from its parameters, with gradient."""

    @abstractmethod
    def build_prompt(self) -> SoftPrompt:
        """Return the prompt of this moment."""


def parameterise(tune: Tune, initial: SoftPrompt, shared: nn.Parameter | None = None) -> Parameterisation:
    """Return the recipe's parameterisation, which yields `initial`; the recipe's seed decides the network's weights.

    `shared` is the prompt that a multitask member learns together with others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tune.seed)
        if isinstance(initial, KeyValues):
            return ReparameterisedPrefix(initial, tune.encoder_width or PREFIX_WIDTH)
        if tune.method == "multitask":
            return RankOne(shared if shared is not None else nn.Parameter(initial.clone()))
        if tune.method == "residual":
            return Folded(initial, Bottleneck(initial.shape[1], tune.encoder_width or RESIDUAL_WIDTH))
        if tune.method == "p_tuning":
            build: Callable[[int, int], nn.Module] = LSTMEncoder if tune.encoder == "lstm" else MLPEncoder
            return Folded(initial, build(initial.shape[1], tune.encoder_width or initial.shape[1]), skip=False)
    return Direct(initial)


class Direct(Parameterisation):
    """The prompt itself, of either kind."""

    def __init__(self, initial: SoftPrompt) -> None:
        super().__init__()
        self.tensors = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in list_tensors(initial)])
        self._kind = initial

    def build_prompt(self) -> SoftPrompt:
        return rebuild(self._kind, list(self.tensors))


class RankOne(Parameterisation):
    """The shared prompt [P, H] times a task's own rank-one matrix, `shared * (u v^T)` (Wang et al. 2023, section 3.1).

    Both factors, u [P] and v [H], start at one, so the prompt starts at the shared one.
    """

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        self.shared = shared
        self.u = nn.Parameter(torch.ones(shared.shape[0], dtype=shared.dtype))
        self.v = nn.Parameter(torch.ones(shared.shape[1], dtype=shared.dtype))

    def build_prompt(self) -> SoftPrompt:
        return self.shared * torch.outer(self.u, self.v)


class Folded(Parameterisation):
    """A prompt [P, H] through a network: `tokens + network(tokens)` with `skip`, else `network(tokens)` alone."""

    offset: Tensor

    def __init__(self, initial: Tensor, network: nn.Module, skip: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Parameter(initial.clone())
        self.network = network.to(initial.dtype)
        self.skip = skip
        self.register_buffer("offset", initial - self._compute_output().detach())

    def build_prompt(self) -> SoftPrompt:
        return self._compute_output() + self.offset

    def _compute_output(self) -> Tensor:
        encoded: Tensor = self.network(self.tokens)
        return self.tokens + encoded if self.skip else encoded


class Bottleneck(nn.Sequential):
    """[P, H] -> m -> ReLU -> H -> LayerNorm, the same for all tokens (Razdaibiedina et al. 2023, section 3)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.LayerNorm(width))


class LSTMEncoder(nn.Module):
    """A bidirectional LSTM over the virtual tokens, then a two-layer MLP: [P, H] -> [P, H] (Liu et al. 2021, 3.2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(tokens[None])  # [1, P, 2 m]
        encoded: Tensor = self.mlp(states)[0]  # [P, H]
        return encoded


class MLPEncoder(nn.Sequential):
    """The MLP form of the prompt encoder: [P, H] -> m -> ReLU -> m -> ReLU -> H."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )


class ReparameterisedPrefix(Parameterisation):
    """Keys and values of every layer [L, kv, P, d] from one vector [m] per virtual token (Li & Liang 2021, 4.3).

    The vectors start with unit variance: they are the network's input, never embeddings.
    """

    offset: Tensor

    def __init__(self, initial: KeyValues, hidden: int) -> None:
        super().__init__()
        layers, heads, _, width = initial.key.shape
        self.shape = (2, layers, heads, width)
        self.tokens = nn.Parameter((torch.rand(count_virtual_tokens(initial), hidden) * 2 - 1) * 3**0.5)
        self.network = nn.Sequential(
            nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * layers * heads * width)
        )
        self.register_buffer("offset", torch.stack(list(initial)) - self._compute_output().detach())

    def build_prompt(self) -> SoftPrompt:
        return KeyValues(*(self._compute_output() + self.offset).unbind(0))

    def _compute_output(self) -> Tensor:
        """Return keys and values as one [2, L, kv, P, d]."""
        flat: Tensor = self.network(self.tokens)  # [P, 2 L kv d]
        return flat.view(-1, *self.shape).permute(1, 2, 3, 0, 4)
