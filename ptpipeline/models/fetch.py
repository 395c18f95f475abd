"""How a layer gets its weights for its turn, if they do not lie on the device that computes (`offload`).

accelerate's hooks fetch a module's weights around its forward pass. What reads weights by itself (the passes by hand,
the digest of all weights, the backward pass of transformers' layers) fetches them here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def is_away(module: nn.Module) -> bool:
    """Whether some weights of the module are outside of the device."""
    return any(parameter.is_meta for parameter in module.parameters())


def read_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights by name in order, those outside of the device too, one at a time."""
    for name, tensor in sorted(model.state_dict().items()):
        yield name, _fetch(model, name) if tensor.is_meta else tensor


@contextmanager
def fetched(module: nn.Module) -> Iterator[None]:
    """Give the module all its weights while this is open; what was read of it then may be kept."""
    away = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    empty = {}
    for name in away:
        owner, _, own = name.rpartition(".")
        parameters = module.get_submodule(owner)._parameters
        empty[name] = parameters, own, parameters[own]
        parameters[own] = nn.Parameter(_fetch(module, name), requires_grad=False)
    try:
        yield
    finally:
        for parameters, own, parameter in empty.values():
            parameters[own] = parameter


def _fetch(module: nn.Module, name: str) -> Tensor:
    """Return a weight of the module on the device that computes."""
    owner, _, own = name.rpartition(".")
    hook: Any = module.get_submodule(owner)._hf_hook
    weight: Tensor = hook.weights_map[own].to(hook.execution_device)
    return weight


def keep_names(layer: nn.Module) -> None:
    """Let autograd keep no weight of the layer until the backward pass, but fetch it once more: all layers' weights
    together would fill the device.
    """
    keeper = _Keeper(layer)
    layer.register_forward_pre_hook(keeper.open)
    layer.register_forward_hook(keeper.close, always_call=True)


class _Kept(NamedTuple):
    """A weight that autograd asked to keep: its name and how it was viewed."""

    name: str
    shape: torch.Size
    stride: tuple[int, ...]


class _Keeper:
    """Keeps the names of a layer's weights for the backward pass instead of the weights."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._hooks: list[Any] = []

    def open(self, _module: nn.Module, _inputs: Any) -> None:
        """Keep names from now on."""
        self._hooks.append(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        self._hooks[-1].__enter__()

    def close(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        """Keep tensors again."""
        self._hooks.pop().__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        for name, parameter in self._layer.named_parameters():
            if not parameter.is_meta and parameter.data_ptr() == tensor.data_ptr():
                return _Kept(name, tensor.shape, tensor.stride())
        return tensor

    def _unpack(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return _fetch(self._layer, kept.name).as_strided(kept.shape, kept.stride)
