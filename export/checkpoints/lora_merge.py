"""Adapters merged into the weights they change, before anything else is done to those (lora.md 4 and 6).

    W' = W + sum_i scale_i * (alpha_i / rank_i) * B_i @ A_i        b' = b + sum_i scale_i * diff_b_i

Computed in float32 and rounded once. A pipeline's own adapter is one of them, with a fixed scale.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint
from streaming.adapters.files import AdapterError, AdapterFile, look_into
from streaming.checkpoints.files import CheckpointError

PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class Change(Protocol):
    """What is added to one parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""

    def add_to(self, total: Tensor) -> None:
        """Add the change to the parameter, which is float32, in place."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change of one weight [out, in]: scale * up @ down."""

    down: Tensor  # [rank, in]
    up: Tensor  # [out, rank]
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up.shape[0], self.down.shape[1]

    def add_to(self, total: Tensor) -> None:
        total.addmm_(self.up.float(), self.down.float(), alpha=self.scale)


@dataclass(frozen=True, eq=False)
class Difference:
    """The change of a parameter that the file holds as it is: scale * values."""

    values: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def add_to(self, total: Tensor) -> None:
        total.add_(self.values.float(), alpha=self.scale)


Changes = Mapping[str, Sequence[Change]]  # by the key of the parameter that they change


def added(parameter: Tensor, changes: Sequence[Change]) -> Tensor:
    """The parameter with all changes, summed up in float32, in its own type."""
    total = parameter.to(torch.float32, copy=True)
    for change in changes:
        change.add_to(total)
    return total.to(parameter.dtype)


def builtin_adapter(checkpoint: Checkpoint, alpha: float) -> Changes:
    """The adapter that belongs to a pipeline's weights, by the key of the weight it changes.

    checkpoint   an opened `lora.pt` (entry "generator_lora"); PEFT keys
    alpha        its training value; the scale is alpha / rank
    Raises CheckpointError when a pair is incomplete, a rank differs, or a key is none of an adapter's.
    """
    tensors = dict(checkpoint.tensors(list(checkpoint.entries)))
    adapter: dict[str, Sequence[Change]] = {}
    for key, down in tensors.items():
        if not key.endswith((DOWN, UP)) or not key.startswith(PREFIX):
            raise CheckpointError(
                f"'{checkpoint.path}' is no adapter: it has key '{key}'. Download it again."
            )
        if key.endswith(UP):
            continue
        name = key.removesuffix(DOWN)
        up = tensors.get(name + UP)
        if up is None or up.shape[1] != down.shape[0]:
            problem = f"no '{name + UP}'" if up is None else f"two ranks for '{name}'"
            raise CheckpointError(f"Adapter '{checkpoint.path}' has {problem}. Download it again.")
        adapter[f"{name.removeprefix(PREFIX)}.weight"] = [LowRank(down, up, alpha / down.shape[0])]
    if len(tensors) != 2 * len(adapter):
        raise CheckpointError(f"Adapter '{checkpoint.path}' has pairs without '{DOWN}'. Download it again.")
    return adapter


def joined(several: Iterable[Changes]) -> Changes:
    """All changes together, in their order."""
    result: dict[str, list[Change]] = {}
    for changes in several:
        for key, of_key in changes.items():
            result.setdefault(key, []).extend(of_key)
    return result


@dataclass(frozen=True, slots=True)
class ScaledAdapter:
    """A LoRA file and how strongly it counts."""

    path: Path
    scale: float


def user_adapters(checkpoint: Checkpoint, adapters: Sequence[ScaledAdapter]) -> tuple[Changes, list[str]]:
    """What LoRA files change in a transformer's weights, and sentences about what they hold besides.

    All files are looked into and read before the first change is made. Raises AdapterError.
    """
    shapes = {key: entry.shape for key, entry in checkpoint.entries.items()}
    paths = [adapter.path for adapter in adapters]
    for path in paths:
        if paths.count(path) > 1:
            raise AdapterError(
                path, "duplicate", "it is listed twice. List it once, with the sum of the scales."
            )
    files = [look_into(path, shapes) for path in paths]
    changes: dict[str, list[Change]] = {}
    for file, adapter in zip(files, adapters, strict=True):
        for key, change in read_changes(file, adapter.scale):
            changes.setdefault(key, []).append(change)
    return changes, [warning for file in files for warning in file.warnings]


def read_changes(file: AdapterFile, scale: float) -> Iterator[tuple[str, Change]]:
    """The keys of the parameters that a LoRA file changes, and how. Raises AdapterError."""
    try:
        with safe_open(file.path, framework="pt") as tensors:
            for module, layer in file.layers.items():
                read = partial(_finite, file.path, tensors.get_tensor)
                if layer.down is not None and layer.up is not None:
                    alpha = layer.rank if layer.alpha is None else read(layer.alpha).item()
                    strength = scale * alpha / layer.rank
                    yield f"{module}.weight", LowRank(read(layer.down), read(layer.up), strength)
                if layer.diff is not None:
                    yield f"{module}.weight", Difference(read(layer.diff), scale)
                if layer.diff_b is not None:
                    yield f"{module}.bias", Difference(read(layer.diff_b), scale)
    except (SafetensorError, OSError) as error:
        raise AdapterError(file.path, "unreadable", f"it was changed while it was read ({error}).") from error


def _finite(path: Path, read: Callable[[str], Tensor], name: str) -> Tensor:
    tensor = read(name)
    if not torch.isfinite(tensor.float()).all():
        raise AdapterError(path, "non_finite", f"'{name}' has values that are no numbers. Download it again.")
    return tensor


def merge(checkpoint: Checkpoint, changes: Changes) -> Checkpoint:
    """The checkpoint with all changes merged, parameter by parameter as they are read.

    Raises CheckpointError when a change is to a parameter that is not there or has another shape; reading
    raises it when a sum is no number.
    """
    for key, several in changes.items():
        entry = checkpoint.entries.get(key)
        for change in several:
            if entry is None or entry.shape != change.shape:
                found = (
                    "is not there" if entry is None else f"is {list(entry.shape)}, not {list(change.shape)}"
                )
                raise CheckpointError(
                    f"The adapter does not fit '{checkpoint.path}': {key} {found}. "
                    "Use the files of one pipeline."
                )
    keys = {entry.name_in_file: key for key, entry in checkpoint.entries.items()}

    def read(names: Sequence[str]) -> Iterator[Tensor]:
        for key, tensor in checkpoint.tensors([keys[name] for name in names]):
            yield _merged(key, tensor, changes[key]) if key in changes else tensor

    return replace(checkpoint, _read=read)


def _merged(key: str, parameter: Tensor, changes: Sequence[Change]) -> Tensor:
    merged = added(parameter, changes)
    if not torch.isfinite(merged.float()).all():
        raise CheckpointError(
            f"{key} is no number any more with its adapters (non_finite): lower their scales."
        )
    return merged
