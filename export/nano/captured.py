"""Functions of tensors that a GPU repeats without the processor: tiny networks are all launches otherwise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2

Function = Callable[..., tuple[Tensor, ...]]


class Graphs:
    """CUDA graphs that share the memory for what they compute on the way: only one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def captured(self, function: Function) -> Function:
        """A function as a graph, captured in its first call; on a CPU it is simply called.

        Shapes and types of the arguments must not change between calls. What it returns is overwritten by
        the next call. Whatever else the function reads or writes must stay where it is in memory.
        """
        graph: torch.cuda.CUDAGraph | None = None
        own: tuple[Tensor, ...] = ()
        results: tuple[Tensor, ...] = ()

        def call(*given: Tensor) -> tuple[Tensor, ...]:
            nonlocal graph, own, results
            if not given[0].is_cuda:
                return function(*given)
            if graph is None:
                own = tuple(tensor.clone() for tensor in given)
                graph, results = self._capture(function, own)
            for mine, new in zip(own, given, strict=True):
                mine.copy_(new)
            graph.replay()
            return results

        return call

    def _capture(
        self, function: Function, inputs: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            return graph, function(*inputs)
