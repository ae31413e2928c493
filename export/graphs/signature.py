"""Names and shapes of a graph's inputs and outputs, as data for exporter, manifest and loop."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streaming.network.inputs import TensorSpec

Values = tuple[Tensor, ...]  # of a group of inputs, in the order of its definition
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs of a module in the order of its graph; outputs as `forward` returns them.

    `forward` takes inputs by their names, and those of a group as one tuple by the name of the group.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def arguments(self, values: Iterable[V]) -> dict[str, V | tuple[V, ...]]:
        """What `forward` is called with, by name. values: one for each input, in order."""
        found: dict[str, V | tuple[V, ...]] = {}
        pairs = zip(self.inputs, values, strict=True)
        for group, members in groupby(pairs, key=lambda pair: pair[0].group):
            if group is None:
                found |= {spec.name: value for spec, value in members}
            else:
                found[group] = tuple(value for _, value in members)
        return found

    def example(self, sizes: Mapping[str, int], dtype: torch.dtype = torch.float32) -> Values:
        """Zeros for each input, dynamic axes from `sizes`."""
        return tuple(example(spec, sizes, dtype) for spec in self.inputs)

    def dynamic_shapes(self) -> dict[str, Any]:
        """By argument of `forward`, as `torch.export.export` and `torch.onnx.export` want it."""
        dynamic = torch.export.Dim.DYNAMIC
        return self.arguments(
            {i: dynamic for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in self.inputs
        )


def example(spec: TensorSpec, sizes: Mapping[str, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros of the shape of an input or output, dynamic axes from `sizes`."""
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    return torch.zeros(shape, dtype=torch.int64 if spec.integer else torch.float32 if spec.float32 else dtype)


def on_meta(module: nn.Module, *args: Any) -> Any:
    """Call the module on meta tensors in place of its weights: shapes of results without computing them."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    return functional_call(module, {name: torch.empty_like(t, device="meta") for name, t in tensors}, args)
