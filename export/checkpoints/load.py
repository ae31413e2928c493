"""From a component's checkpoint file to its module; all dimensions come from the file."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from export.checkpoints.checkpoints import Checkpoint, load_weights, open_checkpoint
from export.checkpoints.lora_merge import (
    Changes,
    ScaledAdapter,
    builtin_adapter,
    joined,
    merge,
    user_adapters,
)
from export.checkpoints.vace import together
from export.graphs.taehv import TinyVae, TinyVaeConfig, keep_last_grow_channels
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import CheckpointError, TransformerFiles
from streaming.specs import CachedKeys, VaeType

logger = logging.getLogger(__name__)

Config = TypeVar("Config")
PRUNED = 0.75  # of the widths, in the light VAE


def open_transformer(
    models: Path,
    files: TransformerFiles,
    adapters: Sequence[ScaledAdapter] = (),
    branch: Checkpoint | None = None,
) -> Checkpoint:
    """The weights of a pipeline's transformer in the directory of models, its own adapter merged in.

    adapters: LoRA files to merge as well; what in them is ignored is logged. branch: tensors of a VACE
    branch, which are to be among the others. Raises CheckpointError, and AdapterError for a LoRA file that
    cannot be used.
    """
    base = open_checkpoint(models / files.weights, files.entry)
    if branch is not None:
        base = together(base, branch)
    changes: list[Changes] = []
    if files.adapter is not None:
        name, alpha = files.adapter
        changes.append(builtin_adapter(open_checkpoint(models / name, "generator_lora"), alpha))
    if adapters:
        wanted, warnings = user_adapters(base, adapters)
        changes.append(wanted)
        for warning in warnings:
            logger.warning("%s", warning)
    return merge(base, joined(changes)) if changes else base


def transformer_modules(
    config: TransformerConfig, cached: CachedKeys, *, adapted: bool = False
) -> tuple[Transformer, TextKV]:
    """The networks of these sizes without weights, on the meta device.

    cached: of the pipeline's loop. adapted: with branches for adapters
    """
    with torch.device("meta"):
        return Transformer(config, cached is CachedKeys.UNROTATED, adapted), TextKV(config, adapted)


def published_vae(vae_type: VaeType) -> Autoencoder:
    """The autoencoder that the released files of this type hold, without weights: on the meta device."""
    with torch.device("meta"):
        if vae_type in ("wan", "lightvae"):
            return WanVae(VaeConfig(pruning_rate=PRUNED if vae_type == "lightvae" else 0.0))
        return TinyVae(TinyVaeConfig(normalized=vae_type == "lighttae"))


def load_vae(
    path: Path,
    vae_type: VaeType,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Autoencoder:
    """The autoencoder of a .pth file. Raises CheckpointError if the file is none of this type."""
    checkpoint = open_checkpoint(path)
    if vae_type in ("wan", "lightvae"):
        config = _config(checkpoint, VaeConfig.from_shapes, "Wan VAE")
        with torch.device("meta"):
            vae: Autoencoder = WanVae(config)
    else:
        normalized = vae_type == "lighttae"
        tiny_config = _config(
            checkpoint, TinyVaeConfig.from_shapes, "tiny autoencoder", normalized=normalized
        )
        with torch.device("meta"):
            vae = tiny = TinyVae(tiny_config)
        checkpoint = keep_last_grow_channels(checkpoint, tiny)
    load_weights(checkpoint, vae, dtype=dtype, device=device)
    return vae.to(device)  # what is no parameter, too


def published_text_encoder(seq_len: int) -> TextEncoder:
    """UMT5-XXL without weights, on the meta device."""
    with torch.device("meta"):
        return TextEncoder(TextEncoderConfig(seq_len=seq_len))


def load_text_encoder(
    path: Path, seq_len: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TextEncoder:
    """The UMT5 encoder of a file, of any floating type, float8 too. Raises CheckpointError if it is none.

    seq_len: the transformer's `text_len`, in tokens
    """
    checkpoint = open_checkpoint(path)
    config = _config(checkpoint, TextEncoderConfig.from_shapes, "UMT5 encoder", seq_len=seq_len)
    with torch.device("meta"):
        encoder = TextEncoder(config)
    load_weights(checkpoint, encoder, dtype=dtype, device=device)
    return encoder.to(device)  # what is no parameter, too


def _config(checkpoint: Checkpoint, from_shapes: Callable[..., Config], what: str, **options: Any) -> Config:
    shapes = {key: entry.shape for key, entry in checkpoint.entries.items()}
    try:
        return from_shapes(shapes, **options)
    except KeyError as error:
        raise CheckpointError(
            f"Checkpoint '{checkpoint.path}' is not a {what}: it has no tensor {error}. Download it again."
        ) from error
