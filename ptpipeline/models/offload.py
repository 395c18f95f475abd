"""Bases that do not fit into the memory of their device: which layers' weights stay elsewhere.

Where weights lie changes no number, so no task and no setting says it: what fits is placed as before, and of what does
not, the first layers fill the device, the next ones the machine's memory (if the device is a GPU), and the rest stay in
the base's own files. All else (embeddings, norms, head) is on the device. `fetch` says how a layer gets them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptpipeline.errors import BaseModelError
from ptpipeline.foreign import parsing
from ptpipeline.models.fetch import is_away, keep_names
from ptpipeline.models.files import BaseFiles
from ptpipeline.models.memory import count_total_bytes
from ptpipeline.models.weights import FETCH_AGAIN, read_headers

WEIGHTS_SHARE = 0.8  # of a device's memory, which weights may fill; the rest is for what passes compute

Placement = dict[str, str]  # a device, "cpu" or "disk" by name of module


class Rooms(NamedTuple):
    """Bytes that weights may take: on the device that computes, and in the machine's memory beside a GPU."""

    device: float
    memory: float = 0.0


def measure_rooms(device: torch.device) -> Rooms:
    """Return the rooms of this machine, by whole memories and not by what is free, so that a rerun places alike."""
    memory = WEIGHTS_SHARE * count_total_bytes(torch.device("cpu"))
    return Rooms(memory) if device.type == "cpu" else Rooms(WEIGHTS_SHARE * count_total_bytes(device), memory)


def count_weight_bytes(files: BaseFiles, dtype: torch.dtype) -> int:
    """Return the bytes of the stored weights in the type to compute in."""
    return sum(math.prod(tensor.shape) for tensor in read_headers(files.weights).values()) * dtype.itemsize


def place_layers(name: str, empty: Any, device: torch.device, rooms: Rooms) -> Placement:
    """Return where each part of a model lies that does not fit: `empty` is the model without weights, in its type.

    Raises BaseModelError if the model has no layers to tell apart, or if what is no layer does not fit.
    """
    kinds = set(getattr(empty, "_no_split_modules", None) or ())
    layers = {path: module for path, module in empty.named_modules() if type(module).__name__ in kinds}
    if not layers:
        raise BaseModelError(
            f"base model {name}: its weights do not fit into the memory of {device}, and transformers names no layers "
            f"of {type(empty).__name__} that could stay outside; take a larger machine or a smaller base"
        )
    inside = {id(part) for layer in layers.values() for part in layer.modules()}
    placement = {
        path: str(device)
        for path, module in empty.named_modules()
        if id(module) not in inside
        and any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))
    }
    sizes = {path: _count_bytes(layer) for path, layer in layers.items()}
    outside = _count_bytes(empty) - sum(sizes.values())
    left = rooms.device - outside - 2 * max(sizes.values())  # a fetched layer, and the one whose place it takes
    if left < 0:
        raise BaseModelError(
            f"base model {name}: its embeddings and head alone do not fit into the memory of {device}; take a larger "
            "machine or a smaller base"
        )
    memory, places = rooms.memory, [str(device), "cpu", "disk"]
    for path, size in sizes.items():  # each place is filled before the next one
        while places[0] != "disk" and size > (left if places[0] == str(device) else memory):
            places.pop(0)
        placement[path] = places[0]
        left, memory = (left - size, memory) if places[0] == str(device) else (left, memory - size)
    return placement


def _count_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def describe_placement(placement: Placement, device: torch.device) -> str:
    """Return in a few words how many layers lie outside of the device."""
    places = list(placement.values())
    counts = {"in memory": places.count("cpu") if device.type != "cpu" else 0, "in their files": places.count("disk")}
    outside = " and ".join(f"{count} {place}" for place, count in counts.items() if count)
    return f"its weights do not fit into the memory of {device}; of its layers, {outside} stay outside"


class HeldWeights(Mapping[str, Tensor]):
    """The weights outside of the device by name: copies in memory, or views of the base's files.

    Files are read again in every pass, so each read looks whether they are still those that were hashed. Raises
    BaseModelError if not.
    """

    def __init__(self, files: BaseFiles, loader: Any) -> None:
        """`loader` is what accelerate reads them by."""
        self._files, self._loader = files, loader
        for name, tensor in loader.state_dict.items():
            loader.state_dict[name] = tensor.clone()  # out of the file, onto which transformers maps them
        paths = {path.name: str(path.resolve()) for path in files.weights}  # the view is gone soon
        for entry in loader.index.values():
            entry["safetensors_file"] = paths[entry["safetensors_file"].rpartition("/")[2]]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._loader.index:
            self._files.check_unchanged()
        with parsing(f"{self._files.folder}: {name}", FETCH_AGAIN, BaseModelError):
            weight: Tensor = self._loader[name]
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


def hold_weights(model: Any, files: BaseFiles) -> None:
    """Let a model that accelerate placed read its weights outside of the device by `HeldWeights`."""
    held: HeldWeights | None = None
    layers = set(model._no_split_modules)
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        if getattr(hook, "offload", False):
            held = held or HeldWeights(files, hook.weights_map.dataset)
            hook.weights_map.dataset = held
    for module in model.modules():
        if type(module).__name__ in layers and is_away(module):
            keep_names(module)
