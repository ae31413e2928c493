"""Adapters side by side, as a graph's low-rank branches take them (lora.md 8.2).

    y = x W + b + ((x down) * scale) up        down [rows, R], scale [R], up [R, columns]

Each adapter has columns of `down` and rows of `up` of its own, its strength alpha / rank folded into `up`;
what no adapter fills is zero. So a scale is a number for some of R, and every call may have its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streaming.adapters.files import AdapterError, AdapterFile, LayerTensors, look_into
from streaming.adapters.layers import AdaptedLayer, Network, adapted_axes, adapted_layers, stacked_rank
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.shapes import parameter_shapes

_NETWORKS: Final[tuple[Network, ...]] = ("transformer", "text_kv")
LEAST_CHANGE: Final = 1e-6  # of a scale; less is none


@dataclass(frozen=True, slots=True)
class RuntimeAdapter:
    """A LoRA file beside the weights: what the client calls it, and its scale where a stream names none."""

    path: Path
    name: str
    scale: float


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """Of all layers of one graph: down [rows, R], up [R, columns], in the graph's type."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class AdapterStack:
    """All adapters of a loaded pipeline. A change of the list is a new stack.

    spans    the numbers of each adapter among R, by its name
    scales   of the load, by name
    """

    rank: int
    factors: Mapping[Network, Factors]
    spans: Mapping[str, slice]
    scales: Mapping[str, float]

    def at(self, scales: Mapping[str, float]) -> "ScaledStack":
        """With these scales by name; an adapter that has none keeps its own, other names count nothing."""
        chosen = {name: scales.get(name, scale) for name, scale in self.scales.items()}
        vector = torch.zeros(self.rank)
        for name, span in self.spans.items():
            vector[span] = chosen[name]
        return ScaledStack(self, chosen, vector)


@dataclass(frozen=True, eq=False, slots=True)
class ScaledStack:
    """A stack as one chunk uses it. vector: float32 [R]"""

    stack: AdapterStack
    scales: Mapping[str, float]
    vector: Tensor

    def inputs(self, network: Network) -> tuple[Tensor, Tensor, Tensor]:
        """Values of group `adapters` of one graph."""
        factors = self.stack.factors[network]
        return factors.down, factors.up, self.vector

    def same_as(self, other: "ScaledStack | None") -> bool:
        """Whether both change the weights in the same way."""
        return other is not None and self.stack is other.stack and not self.turned_from(other)

    def turned_from(self, other: "ScaledStack") -> bool:
        """Whether an adapter that both have counts otherwise."""
        common = self.scales.keys() & other.scales.keys()
        return any(
            not math.isclose(self.scales[n], other.scales[n], abs_tol=LEAST_CHANGE, rel_tol=0) for n in common
        )


def stack(
    adapters: Sequence[RuntimeAdapter],
    config: TransformerConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> AdapterStack:
    """Read LoRA files for a transformer of these sizes. Raises AdapterError."""
    shapes = parameter_shapes(config)
    files = [look_into(adapter.path, shapes) for adapter in adapters]
    rank = stacked_rank(files)
    spans: dict[str, slice] = {}
    used = 0
    for adapter, file in zip(adapters, files, strict=True):
        if adapter.name in spans:
            raise AdapterError(adapter.path, "duplicate", "it is listed twice. List it once.")
        spans[adapter.name] = slice(used, used + file.rank)
        used += file.rank
    empty = {network: _empty(config, network, rank, dtype) for network in _NETWORKS}
    for adapter, file in zip(adapters, files, strict=True):
        for network in _NETWORKS:
            _fill(empty[network], file, adapted_layers(config, network), spans[adapter.name].start)
    factors = {n: Factors(found.down.to(device), found.up.to(device)) for n, found in empty.items()}
    return AdapterStack(rank, factors, spans, {adapter.name: adapter.scale for adapter in adapters})


@dataclass(frozen=True, slots=True)
class Stacker:
    """Makes stacks for one loaded transformer, in the type and on the device of its engine."""

    config: TransformerConfig
    dtype: torch.dtype
    device: torch.device

    def __call__(self, adapters: Sequence[RuntimeAdapter]) -> AdapterStack:
        """Raises AdapterError."""
        return stack(adapters, self.config, self.dtype, self.device)


def no_adapters(
    config: TransformerConfig, rank: int, dtype: torch.dtype, device: torch.device
) -> AdapterStack:
    """A stack of this rank that changes nothing."""
    empty = {network: _empty(config, network, rank, dtype) for network in _NETWORKS}
    factors = {n: Factors(found.down.to(device), found.up.to(device)) for n, found in empty.items()}
    return AdapterStack(rank, factors, {}, {})


def _empty(config: TransformerConfig, network: Network, rank: int, dtype: torch.dtype) -> Factors:
    axes = adapted_axes(config, network)
    return Factors(
        torch.zeros(axes["adapted_in"], rank, dtype=dtype),
        torch.zeros(rank, axes["adapted_out"], dtype=dtype),
    )


def _fill(factors: Factors, file: AdapterFile, layers: Sequence[AdaptedLayer], first: int) -> None:
    """Put a file's factors in from number `first` of R on. Raises AdapterError."""
    try:
        with safe_open(file.path, framework="pt") as tensors:
            for layer in layers:
                found = file.layers.get(layer.name)
                if found is not None:
                    _fill_layer(
                        factors, layer, found, first, lambda name: _read(file.path, tensors.get_tensor, name)
                    )
    except (SafetensorError, OSError) as error:
        raise AdapterError(file.path, "unreadable", f"it was changed while it was read ({error}).") from error


def _fill_layer(
    factors: Factors, layer: AdaptedLayer, found: LayerTensors, first: int, read: Callable[[str], Tensor]
) -> None:
    assert found.down is not None, "stacked_rank lets nothing but pairs pass"
    assert found.up is not None, "stacked_rank lets nothing but pairs pass"
    alpha = found.rank if found.alpha is None else read(found.alpha).item()
    numbers = slice(first, first + found.rank)
    rows = slice(layer.first_row, layer.first_row + layer.rows)
    columns = slice(layer.first_column, layer.first_column + layer.columns)
    factors.down[rows, numbers] = read(found.down).t().to(factors.down.dtype)
    factors.up[numbers, columns] = (read(found.up).t() * (alpha / found.rank)).to(factors.up.dtype)


def _read(path: Path, get: Callable[[str], Tensor], name: str) -> Tensor:
    tensor = get(name).float()
    if not torch.isfinite(tensor).all():
        raise AdapterError(path, "non_finite", f"'{name}' has values that are no numbers. Download it again.")
    return tensor
