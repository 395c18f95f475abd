"""A pass by hand as one launch: on a GPU its thousands of small kernels are recorded as CUDA graphs and replayed.

A pass of a small model waits for the processor that launches its kernels. So the second time that a pass sees tensors
of the same shapes, its forward and its backward pass are recorded; from then on each is one launch. Replays are
compared with the plain pass when they are recorded, and have to give the same bits: a training that is resumed meets
its shapes in another order.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from ptpipeline.models.passes import Pass

log = logging.getLogger(__name__)

MOST_GRAPHS = 64  # shapes of one pass; each holds its graphs and what they take and give
MOST_TOKENS = 16384  # of ids [B, T] or embeddings [K, P, H]; a larger pass keeps a GPU busy by itself

_Key = tuple[tuple[torch.Size, torch.dtype] | None, ...]
_Tensors = Sequence[Tensor | None]


class Recorded:
    """A pass that is recorded on a GPU, and on any other device is the plain pass."""

    def __init__(self, plain: Pass) -> None:
        self._plain = plain
        self._seen: set[_Key] = set()
        self._recordings: dict[_Key, _Recording] = {}
        self._pool: Any = None  # all recordings' memory, which they use in turn
        self._replay: ReferenceType[_Replay] | None = None  # the last one, until its backward pass
        self._exact = True

    def forward(self, tensors: _Tensors, keep: bool, whole: bool | None = None) -> tuple[tuple[Tensor, ...], Any]:
        """Return what the plain pass gives."""
        recording = self._find(tensors) if keep else None
        if recording is None:
            return self._plain.forward(tensors, keep, whole)
        replay = _Replay(recording)
        self._replay = ref(replay)
        return recording.forward(tensors), replay

    def backward(self, state: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients that the plain pass gives."""
        if not isinstance(state, _Replay):
            return self._plain.backward(state, grads)
        self._replay = None
        return state.recording.backward(grads)

    def _find(self, tensors: _Tensors) -> "_Recording | None":
        """Return the recording of these shapes, made now if they are seen the second time; None to run plainly."""
        tokens = max(tensor.shape[:2].numel() for tensor in tensors[:3] if tensor is not None)
        if not self._exact or tokens > MOST_TOKENS or not all(tensor is None or tensor.is_cuda for tensor in tensors):
            return None
        if self._replay is not None and self._replay() is not None:
            return None  # what a replay keeps lies in memory that another one would use
        key = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors)
        if key in self._recordings:
            return self._recordings[key]
        if key not in self._seen or len(self._recordings) == MOST_GRAPHS:
            self._seen.add(key)
            return None
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        recording = _Recording.make(self._plain, tensors, self._pool)
        self._exact = recording is not None and recording.repeats(self._plain, tensors)
        if recording is None or not self._exact:
            log.warning("this GPU does not repeat the passes' bits from a recording, so they run kernel by kernel")
            return None
        self._recordings[key] = recording
        return recording


class _Recording(NamedTuple):
    """The graphs of one pass for tensors of some shapes: where they take their tensors and leave their results."""

    taken: tuple[Tensor | None, ...]
    given: tuple[Tensor, ...]
    grads_taken: tuple[Tensor, ...]
    grads_given: tuple[Tensor | None, ...]
    forward_graph: Any
    backward_graph: Any

    @classmethod
    def make(cls, plain: Pass, tensors: _Tensors, pool: Any) -> "_Recording | None":
        """Record both ways of a pass that keeps all of its layers; None if that does not fit into memory."""
        _, state = plain.forward(tensors, True)  # warms up, and shows whether all fits
        if not state.kept.whole:
            return None
        del state
        forward_graph, backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        taken = tuple(None if tensor is None else tensor.detach().clone() for tensor in tensors)
        with torch.cuda.graph(forward_graph, pool=pool):
            given, state = plain.forward(taken, True, whole=True)
        grads_taken = tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in given)
        with torch.cuda.graph(backward_graph, pool=pool):
            grads_given = plain.backward(state, grads_taken)
        return cls(taken, given, grads_taken, grads_given, forward_graph, backward_graph)

    def forward(self, tensors: _Tensors) -> tuple[Tensor, ...]:
        """Return what the pass gives for these tensors, in memory of its own."""
        _copy(self.taken, tensors)
        self.forward_graph.replay()
        return tuple(tensor.clone() for tensor in self.given)

    def backward(self, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients behind the last forward pass, in memory of their own."""
        _copy(self.grads_taken, grads)
        self.backward_graph.replay()
        return tuple(None if tensor is None else tensor.clone() for tensor in self.grads_given)

    def repeats(self, plain: Pass, tensors: _Tensors) -> bool:
        """Return whether the graphs give the bits of the plain pass, there and back."""
        given, state = plain.forward(tensors, True, whole=True)
        grads = [tensor.detach() for tensor in given]  # any gradients do
        expected = (*given, *(grad for grad in plain.backward(state, grads) if grad is not None))
        replayed = (*self.forward(tensors), *(grad for grad in self.backward(grads) if grad is not None))
        return all(torch.equal(a, b) for a, b in zip(expected, replayed, strict=True))


class _Replay:
    """The state behind a forward pass that was replayed."""

    def __init__(self, recording: _Recording) -> None:
        self.recording = recording


def _copy(into: _Tensors, tensors: _Tensors) -> None:
    """Copy tensors into others of the same shapes."""
    pairs = [(a, b) for a, b in zip(into, tensors, strict=True) if a is not None and b is not None]
    torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
