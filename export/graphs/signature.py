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
    float32: bool = False  # float32 whatever the graph's floating type is
    waves: bool = False  # values are sines and cosines

    def example(self, sizes: Mapping[str, int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros of this shape, dynamic axes from `sizes`."""
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in self.shape]
        own = torch.int64 if self.integer else torch.float32 if self.float32 else dtype
        return torch.zeros(shape, dtype=own)


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs in the order of `forward`'s arguments, its `*caches` last; outputs as it returns them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caches: int = 0  # how many of the inputs are passed as `*caches`

    def example(self, sizes: Mapping[str, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Arguments of zeros for `forward`, dynamic axes from `sizes`."""
        return tuple(spec.example(sizes, dtype) for spec in self.inputs)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """As `torch.export.export` and `torch.onnx.export` want it: `*caches` is one entry, a tuple."""
        axes = tuple(
            {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
            for spec in self.inputs
        )
        named = len(axes) - self.caches
        return (*axes[:named], axes[named:]) if self.caches else axes


def cache_specs(prefix: str, shapes: Sequence[Sequence[int | str]]) -> tuple[TensorSpec, ...]:
    """`cache_00`, `cache_01`, ... for prefix "cache", as serving.md 8.6 names them."""
    return tuple(TensorSpec(f"{prefix}_{i:02d}", tuple(shape)) for i, shape in enumerate(shapes))


def on_meta(module: nn.Module, *args: Any) -> Any:
    """Call the module on meta tensors in place of its weights: shapes of results without computing them."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    return functional_call(module, {name: torch.empty_like(t, device="meta") for name, t in tensors}, args)
