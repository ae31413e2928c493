"""The tiny autoencoder ("tae", "lighttae"): 2-D convolutions with a memory of one frame.

Engine layout and graphs are those of `vae_graphs`. A memory is a cache of one frame, zero at the start of a
stream. Source of structure and parameter names: wan.md 5.9.

The reference decodes the first latent frame to four frames and drops three of them; the `first` decoder graph
does the same. `next` on zero memories computes the same values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from export.checkpoints.checkpoints import Checkpoint
from export.graphs.vae_graphs import WAN_LATENT_MEAN, WAN_LATENT_STD, Autoencoder, LatentScale, known_fields
from export.graphs.vae_layers import CacheTape, batch_to_frames, frames_to_batch
from streaming.engines.manifest import Form
from streaming.errors import WanstreamError
from streaming.network.video import FrameGroups

MEMORY_BLOCKS = 3  # per stage
ENCODER_TIME_STRIDES = (2, 2, 1)  # per stage; each also halves height and width


@dataclass(frozen=True, slots=True)
class TinyVaeConfig:
    """Shape of a tiny autoencoder; `normalized` (lighttae): latents have mean and std removed."""

    encoder_width: int = 64
    decoder_widths: tuple[int, ...] = (256, 128, 64, 64)
    latent_channels: int = 16
    decoder_time_upscale: tuple[bool, ...] = (True, True)
    decoder_space_upscale: tuple[bool, ...] = (True, True, True)
    frames_to_trim: int = 3  # of the first decoded latent frame
    normalized: bool = False
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TinyVaeConfig":
        """From a JSON object; unknown keys are ignored, missing ones take the real checkpoints' values."""
        if config.get("patch_size", 1) != 1:
            raise WanstreamError(f"the tiny VAE has patch_size {config['patch_size']}: use one for Wan2.1.")
        return cls(**known_fields(cls, config))

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], normalized: bool) -> "TinyVaeConfig":
        """From a checkpoint's tensor shapes. KeyError: not such a checkpoint."""
        stages = ("decoder.1.weight", "decoder.8.weight", "decoder.14.weight", "decoder.20.weight")
        return cls(
            encoder_width=shapes["encoder.0.weight"][0],
            decoder_widths=tuple(shapes[key][0] for key in stages),
            latent_channels=shapes["decoder.1.weight"][1],
            normalized=normalized,
        )

    @property
    def time_strides(self) -> tuple[int, ...]:
        """Frames out per frame in, of each decoder stage."""
        return (1, *(2 if doubled else 1 for doubled in self.decoder_time_upscale))


class MemoryBlock(nn.Module):
    """relu(x_t + convolutions of (x_t, x_(t-1))). One cache slot, [B, 1, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, tape: CacheTape, batch: int) -> Tensor:
        """x [B * T, C, h, w], the frames of one stream next to each other; same shape out"""
        previous = tape.extend(x.reshape(batch, -1, *x.shape[1:]), 1, dim=1)[:, :-1].flatten(0, 1)
        return torch.relu(self.conv(torch.cat([x, previous], dim=1)) + x)


class Pool(nn.Module):
    """Merge each `stride` consecutive frames, earlier ones in the first channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B * T, C, h, w] -> [B * T / stride, C, h, w]"""
        _, C, h, w = x.shape
        y: Tensor = self.conv(x.reshape(-1, self.stride * C, h, w))
        return y


class Grow(nn.Module):
    """Make `stride` frames of each: channel group j becomes the j-th."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, stride * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B * T, C, h, w] -> [B * T * stride, C, h, w]"""
        y: Tensor = self.conv(x).reshape(-1, *x.shape[1:])
        return y


class SoftClamp(nn.Module):
    """3 tanh(x / 3)"""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class EncodeStep(nn.Module):
    """frames [B, 3, T, H, W] in [-1, 1], T a multiple of 4 -> latents [B, C, T / 4, h, w]"""

    def __init__(self, encoder: nn.ModuleList) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: Tensor, tape: CacheTape) -> Tensor:
        return run_frames(self.encoder, frames * 0.5 + 0.5, tape)


class DecodeStep(nn.Module):
    """latents [B, C, F, h, w] -> frames [B, 3, T, H, W] in [-1, 1]; the stream's first are trimmed"""

    def __init__(self, decoder: nn.ModuleList, frames_to_trim: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.frames_to_trim = frames_to_trim

    def forward(self, latents: Tensor, tape: CacheTape) -> Tensor:
        frames = run_frames(self.decoder, latents, tape).clamp(0, 1) * 2 - 1
        return frames[:, :, self.frames_to_trim :] if tape.first else frames


def run_frames(layers: nn.ModuleList, x: Tensor, tape: CacheTape) -> Tensor:
    """Apply layers in order to [B, C, T, h, w]."""
    B = x.shape[0]
    y = frames_to_batch(x)
    for layer in layers:
        y = layer(y, tape, B) if isinstance(layer, MemoryBlock) else layer(y)
    return batch_to_frames(y, B)


class TinyVae(Autoencoder):
    """All weights of a tiny autoencoder under their checkpoint names."""

    def __init__(self, config: TinyVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.z_dim = config.latent_channels
        self.spatial_factor = 2 ** len(ENCODER_TIME_STRIDES)
        frames = prod(ENCODER_TIME_STRIDES)
        self.groups = FrameGroups(first=frames, later=frames, repeat_last=True)
        self.encoder = encoder_layers(config)
        self.decoder = decoder_layers(config)
        self.scale = LatentScale(config.latent_mean, config.latent_std) if config.normalized else None

    def encode_step(self, form: Form, first: bool) -> EncodeStep:
        return EncodeStep(self.encoder)

    def decode_step(self, form: Form, first: bool) -> DecodeStep:
        return DecodeStep(self.decoder, self.config.frames_to_trim)


def encoder_layers(config: TinyVaeConfig) -> nn.ModuleList:
    C = config.encoder_width
    layers: list[nn.Module] = [nn.Conv2d(3, C, 3, padding=1), nn.ReLU()]
    for stride in ENCODER_TIME_STRIDES:
        layers += [Pool(C, stride), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False)]
        layers += [MemoryBlock(C) for _ in range(MEMORY_BLOCKS)]
    return nn.ModuleList([*layers, nn.Conv2d(C, config.latent_channels, 3, padding=1)])


def decoder_layers(config: TinyVaeConfig) -> nn.ModuleList:
    widths = config.decoder_widths
    layers: list[nn.Module] = [
        SoftClamp(),
        nn.Conv2d(config.latent_channels, widths[0], 3, padding=1),
        nn.ReLU(),
    ]
    stages = zip(widths[:-1], widths[1:], config.time_strides, config.decoder_space_upscale, strict=True)
    for width, next_width, stride, upscale in stages:
        layers += [MemoryBlock(width) for _ in range(MEMORY_BLOCKS)]
        layers += [
            nn.Upsample(scale_factor=2.0, mode="nearest") if upscale else nn.Identity(),
            Grow(width, stride),
            nn.Conv2d(width, next_width, 3, padding=1, bias=False),
        ]
    return nn.ModuleList([*layers, nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1)])


def keep_last_grow_channels(checkpoint: Checkpoint, vae: TinyVae) -> Checkpoint:
    """The checkpoint with each `Grow` weight cut to the output channels that the model has: the last ones."""
    indexed = enumerate(vae.decoder)
    grow = {f"decoder.{i}.conv.weight": layer for i, layer in indexed if isinstance(layer, Grow)}
    rows = {key: layer.conv.out_channels for key, layer in grow.items()}
    entries = {
        key: entry._replace(shape=(min(rows.get(key, entry.shape[0]), entry.shape[0]), *entry.shape[1:]))
        for key, entry in checkpoint.entries.items()
    }
    keys = {entry.name_in_file: key for key, entry in checkpoint.entries.items()}

    def read(names: Sequence[str]) -> Iterator[Tensor]:
        for key, tensor in checkpoint.tensors([keys[name] for name in names]):
            yield tensor[-rows[key] :] if key in rows else tensor

    return replace(checkpoint, entries=entries, _read=read)
