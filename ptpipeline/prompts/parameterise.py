"""What trains in place of a soft prompt: the prompt itself, or a network that yields it and is folded away.

Every parameterisation yields exactly the initial prompt before the first step: what its random network puts out then
is subtracted as a constant, so the recipe's initialisation is never drowned by it.

Letters: P virtual tokens, H width, L layers, m the network's hidden width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ptpipeline.models.frozen import KeyValues, SoftPrompt, count_virtual_tokens, list_tensors, rebuild
from ptpipeline.task.recipe import Tune

RESIDUAL_WIDTH = 800  # Razdaibiedina et al. 2023, the bottleneck of their code
PREFIX_WIDTH = 512  # Li & Liang 2021, appendix A


class Parameterisation(nn.Module):
    """Yields a soft prompt out of its parameters, with gradient."""

    def prompt(self) -> SoftPrompt:
        """The prompt of this moment."""
        raise NotImplementedError


def parameterise(tune: Tune, initial: SoftPrompt, shared: nn.Parameter | None = None) -> Parameterisation:
    """The recipe's parameterisation, at `initial`; the network's weights come from the recipe's seed.

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
    """The prompt itself, [P, H]."""

    def __init__(self, initial: SoftPrompt) -> None:
        super().__init__()
        self.tensors = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in list_tensors(initial)])
        self._kind = initial

    def prompt(self) -> SoftPrompt:
        return rebuild(self._kind, list(self.tensors))


class RankOne(Parameterisation):
    """Wang et al. 2023, section 3.1: the shared prompt times a task's own rank-one matrix, `shared * (u v^T)`.

    Both factors start at one, so that the prompt starts at the shared one.
    """

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        self.shared = shared
        self.u = nn.Parameter(torch.ones(shared.shape[0], dtype=shared.dtype))
        self.v = nn.Parameter(torch.ones(shared.shape[1], dtype=shared.dtype))

    def prompt(self) -> SoftPrompt:
        return self.shared * torch.outer(self.u, self.v)


class Folded(Parameterisation):
    """A prompt [P, H] through a network of its own virtual tokens: `tokens + network(tokens)` with `skip`, else the
    network alone.
    """

    offset: Tensor

    def __init__(self, initial: Tensor, network: nn.Module, skip: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Parameter(initial.clone())
        self.network = network.to(initial.dtype)
        self.skip = skip
        self.register_buffer("offset", initial - self._output().detach())

    def prompt(self) -> SoftPrompt:
        return self._output() + self.offset

    def _output(self) -> Tensor:
        encoded: Tensor = self.network(self.tokens)
        return self.tokens + encoded if self.skip else encoded


class Bottleneck(nn.Sequential):
    """Razdaibiedina et al. 2023, section 3: [P, H] -> m -> ReLU -> H -> LayerNorm, shared by all tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.LayerNorm(width))


class LSTMEncoder(nn.Module):
    """Liu et al. 2021, section 3.2: a bidirectional LSTM over the virtual tokens, then a two-layer MLP; [P, H] -> [P,
    H].
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        encoded: Tensor = self.mlp(self.lstm(tokens[None])[0])[0]
        return encoded


class MLPEncoder(nn.Sequential):
    """The MLP form of the prompt encoder: [P, H] -> m -> ReLU -> m -> ReLU -> H."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )


class ReparameterisedPrefix(Parameterisation):
    """Li & Liang 2021, section 4.3: keys and values of every layer [L, heads_kv, P, d] out of one vector [m] per
    virtual token.

    The vectors start with unit variance: they are the network's input, never embeddings.
    """

    offset: Tensor

    def __init__(self, initial: KeyValues, hidden: int) -> None:
        super().__init__()
        layers, heads, _, size = initial.key.shape
        self.shape = (2, layers, heads, size)
        self.tokens = nn.Parameter((torch.rand(count_virtual_tokens(initial), hidden) * 2 - 1) * 3**0.5)
        self.network = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * layers * heads * size))
        self.register_buffer("offset", torch.stack(list(initial)) - self._output().detach())

    def prompt(self) -> SoftPrompt:
        return KeyValues(*(self._output() + self.offset).unbind(0))

    def _output(self) -> Tensor:
        """[2, L, heads_kv, P, d]"""
        flat: Tensor = self.network(self.tokens)
        return flat.view(-1, *self.shape).permute(1, 2, 3, 0, 4)
