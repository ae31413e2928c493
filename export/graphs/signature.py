"""Names and shapes of a graph's inputs and outputs, as data for exporter, manifest and loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. An axis given as a string is dynamic; axes of one name have one size."""

    name: str
    shape: tuple[int | str, ...]
    integer: bool = False  # int64 instead of the graph's floating type

    def example(self, sizes: Mapping[str, int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros of this shape, dynamic axes from `sizes`."""
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.shape]
        return torch.zeros(shape, dtype=torch.int64 if self.integer else dtype)


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs in the order of `forward`'s arguments, outputs in the order of its results."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def cache_specs(prefix: str, shapes: Sequence[Sequence[int]]) -> tuple[TensorSpec, ...]:
    """`cache_00`, `cache_01`, ... for prefix "cache", as serving.md 8.6 names them."""
    return tuple(TensorSpec(f"{prefix}_{i:02d}", tuple(shape)) for i, shape in enumerate(shapes))


def on_meta(module: nn.Module, *args: Any) -> Any:
    """Call the module on meta tensors in place of its weights: shapes of results without computing them."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    return functional_call(module, {name: torch.empty_like(t, device="meta") for name, t in tensors}, args)
