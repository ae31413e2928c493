"""Weights of a VACE branch: a module's file, or the branch of a full VACE checkpoint (vace.md 8)."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint, Entry, checkpoint_shapes, open_checkpoint
from export.graphs.vace import BLOCKS, PATCH_EMBEDDING, VaceConfig, VaceTextKV, VaceTransformer
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import CheckpointError
from streaming.specs import CachedKeys

logger = logging.getLogger(__name__)

_PREFIXES = (f"{BLOCKS}.", f"{PATCH_EMBEDDING}.")


def open_vace(path: Path, config: TransformerConfig) -> tuple[Checkpoint, VaceConfig]:
    """The branch's tensors and sizes, for a transformer of these sizes.

    Raises CheckpointError for a file without a branch, with one of another transformer, or that is all zeros.
    """
    whole = open_checkpoint(path)
    entries = {
        key: entry for key, entry in whole.entries.items() if key.startswith((BLOCKS, PATCH_EMBEDDING))
    }
    try:
        vace = VaceConfig.from_shapes({key: entry.shape for key, entry in entries.items()}, config.num_layers)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"Checkpoint '{path}' holds no VACE branch: it has no tensor {error}. Use the VACE module of "
            "this pipeline, or a full Wan2.1-VACE checkpoint."
        ) from error
    checkpoint = _of_model(replace(whole, entries=entries), vace, config)
    embedding = f"{PATCH_EMBEDDING}.weight"
    wanted = (config.dim, vace.in_dim, *config.patch_size)
    if entries[embedding].shape != wanted:
        raise CheckpointError(
            f"Checkpoint '{path}' is the VACE branch of another model: {embedding} is "
            f"{list(entries[embedding].shape)}, not {list(wanted)}. The 1.3B pipelines need the 1.3B module, "
            "krea-realtime-video the 14B one."
        )
    if not any(bool(tensor.any()) for _, tensor in checkpoint.tensors([embedding])):
        raise CheckpointError(f"Checkpoint '{path}' is empty: {embedding} is all zeros. Download it again.")
    return checkpoint, vace


def branch_modules(
    config: TransformerConfig, vace: VaceConfig, cached: CachedKeys, *, adapted: bool = False
) -> tuple[VaceTransformer, VaceTextKV]:
    """The networks of these sizes without weights, on the meta device.

    cached: of the pipeline's loop. adapted: the transformer's own layers have branches for adapters
    """
    with torch.device("meta"):
        transformer = VaceTransformer(config, vace, cached is CachedKeys.UNROTATED, adapted)
        return transformer, VaceTextKV(config, vace)


def together(*checkpoints: Checkpoint) -> Checkpoint:
    """Several files as one. Their keys differ."""
    entries: dict[str, Entry] = {}
    sources: dict[str, tuple[Checkpoint, str]] = {}
    for checkpoint in checkpoints:
        for key, entry in checkpoint.entries.items():
            entries[key] = entry._replace(name_in_file=key)
            sources[key] = checkpoint, key

    def read(keys: Sequence[str]) -> Iterator[Tensor]:
        for key in keys:
            checkpoint, own = sources[key]
            yield from (tensor for _, tensor in checkpoint.tensors([own]))

    return Checkpoint(checkpoints[0].path, entries, read)


def _of_model(checkpoint: Checkpoint, vace: VaceConfig, config: TransformerConfig) -> Checkpoint:
    """Without tensors that the branch does not have, which are named in a warning."""
    known = _keys(vace, config)
    extra = sorted(checkpoint.entries.keys() - known)
    if extra:
        logger.warning(
            "%s: ignored VACE tensors that the branch does not have: %s", checkpoint.path, extra[:8]
        )
    missing = sorted(known - checkpoint.entries.keys())
    if missing:
        raise CheckpointError(
            f"Checkpoint '{checkpoint.path}' lacks VACE tensors: {', '.join(missing[:8])}. Download it again."
        )
    kept: Mapping[str, Entry] = {key: entry for key, entry in checkpoint.entries.items() if key in known}
    return replace(checkpoint, entries=kept)


def _keys(vace: VaceConfig, config: TransformerConfig) -> set[str]:
    modules = branch_modules(config, vace, CachedKeys.ROTATED)
    return {key for key in checkpoint_shapes(*modules) if key.startswith(_PREFIXES)}
