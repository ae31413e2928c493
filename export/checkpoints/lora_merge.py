"""Adapters merged into the weights they change, before a graph is exported (pipeline-longlive.md 3).

W' = W + (alpha / rank) * B @ A
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint
from streaming.checkpoints.files import CheckpointError

PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change of one weight [out, in]: scale * up @ down."""

    down: Tensor  # [rank, in]
    up: Tensor  # [out, rank]
    scale: float

    def merged(self, weight: Tensor) -> Tensor:
        """weight [out, in] with the change added, computed in float32, in the type of `weight`."""
        change = self.up.float() @ self.down.float()
        return torch.add(weight.float(), change, alpha=self.scale).to(weight.dtype)


def builtin_adapter(checkpoint: Checkpoint, alpha: float) -> dict[str, LowRank]:
    """The adapter that belongs to a pipeline's weights, by the key of the weight it changes.

    checkpoint   an opened `lora.pt` (entry "generator_lora"); PEFT keys
    alpha        its training value; the scale is alpha / rank
    Raises CheckpointError when a pair is incomplete, a rank differs, or a key is none of an adapter's.
    """
    tensors = dict(checkpoint.tensors(list(checkpoint.entries)))
    adapter: dict[str, LowRank] = {}
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
        adapter[f"{name.removeprefix(PREFIX)}.weight"] = LowRank(down, up, alpha / down.shape[0])
    if len(tensors) != 2 * len(adapter):
        raise CheckpointError(f"Adapter '{checkpoint.path}' has pairs without '{DOWN}'. Download it again.")
    return adapter


def merge(checkpoint: Checkpoint, adapter: Mapping[str, LowRank]) -> Checkpoint:
    """The checkpoint with the adapter merged, weight by weight as they are read.

    Raises CheckpointError when the adapter changes a weight that is not there or has another shape.
    """
    for key, change in adapter.items():
        shape = (change.up.shape[0], change.down.shape[1])
        entry = checkpoint.entries.get(key)
        if entry is None or entry.shape != shape:
            found = "is not there" if entry is None else f"is {list(entry.shape)}, not {list(shape)}"
            raise CheckpointError(
                f"The adapter does not fit '{checkpoint.path}': {key} {found}. Use the files of one pipeline."
            )
    keys = {entry.name_in_file: key for key, entry in checkpoint.entries.items()}

    def read(names: Sequence[str]) -> Iterator[Tensor]:
        for key, tensor in checkpoint.tensors([keys[name] for name in names]):
            yield adapter[key].merged(tensor) if key in adapter else tensor

    return replace(checkpoint, _read=read)
