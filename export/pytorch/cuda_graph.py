"""Calls of a network as CUDA graphs: recorded once per shape, then played back without the host's work.

A graph reads and writes the same memory each time. So inputs are copied to tensors of its own, but for those
that are there already: most of a call are caches, which change once per chunk and not with every step.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor

Inputs = Sequence[Tensor | None]
_WARM_UP_RUNS: Final = 2  # libraries choose their kernels and allocate their workspaces in the first ones


class Recorder(Protocol):
    """Records a function once, to be played back on the same memory."""

    def record(self, function: Callable[[], Sequence[Tensor]]) -> "Recording":
        """The function has no arguments; it runs at least once."""


@dataclass(frozen=True, slots=True)
class Recording:
    """play: computes `outputs` anew, in place, from whatever the recorded function's tensors hold."""

    play: Callable[[], None]
    outputs: Sequence[Tensor]


class CudaRecorder:
    """Records CUDA graphs, which share their memory: they are played one at a time."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], Sequence[Tensor]]) -> Recording:
        """As Recorder.record."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = function()
        return Recording(graph.replay, outputs)


@dataclass(slots=True)
class _Input:
    """A tensor that graphs read, and what was copied to it last."""

    value: Tensor
    source: "weakref.ref[Tensor] | None" = None
    version: int | None = None

    def take(self, tensor: Tensor) -> None:
        """Copy, unless the same tensor was copied last and nobody has written to it since."""
        version = None if tensor.is_inference() else tensor._version  # those of inference count no writes
        unchanged = self.source is not None and self.source() is tensor and version == self.version
        if unchanged and version is not None:
            return
        self.value.copy_(tensor, non_blocking=True)
        self.source, self.version = weakref.ref(tensor), version


@dataclass(slots=True)
class GraphedCall:
    """A network's call that is recorded when its shapes come for the second time.

    Results are overwritten by the next call: whoever keeps them copies them.

    most_tokens   longer calls run as they are: they are rare, and a graph of one keeps its memory
    """

    call: Callable[..., Sequence[Tensor]]
    recorder: Recorder
    most_tokens: int
    _inputs: dict[Any, _Input] = field(default_factory=dict)
    _recordings: dict[Any, Recording | None] = field(default_factory=dict)  # None: it came once

    def __call__(self, *inputs: Tensor | None) -> Sequence[Tensor]:
        first = inputs[0]
        assert first is not None, "a network without inputs"
        key = tuple(_shape(tensor) for tensor in inputs)
        if first.shape[1] > self.most_tokens:
            return self.call(*inputs)
        if key not in self._recordings:
            self._recordings[key] = None
            return self.call(*inputs)
        held = [self._held(place, tensor) for place, tensor in enumerate(inputs)]
        recording = self._recordings[key]
        if recording is None:
            recording = self._recordings[key] = self.recorder.record(lambda: self.call(*held))
        recording.play()
        return recording.outputs

    def _held(self, place: int, tensor: Tensor | None) -> Tensor | None:
        """The graphs' own tensor for input number `place`, with the content of `tensor`."""
        if tensor is None:
            return None
        shape = (place, _shape(tensor))
        if shape not in self._inputs:
            self._inputs[shape] = _Input(torch.empty_like(tensor, memory_format=torch.contiguous_format))
        self._inputs[shape].take(tensor)
        return self._inputs[shape].value


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype)
