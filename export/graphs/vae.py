"""The Wan VAE, full ("wan") and pruned ("lightvae").

Pixels are [B, 3, T, H, W] in [-1, 1], latents [B, z_dim, F, h, w]. The reference keeps caches of varying
length and markers in their place; here every cache has a fixed shape, with zero frames for context that does
not exist yet, which gives the same numbers (wan.md 5.5, 5.6).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from export.graphs.vae_graphs import WAN_LATENT_MEAN, WAN_LATENT_STD, Autoencoder, LatentScale, known_fields
from export.graphs.vae_layers import (
    AttentionBlock,
    CacheTape,
    CausalConv3d,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
    run,
)
from export.graphs.vae_stacked import StackedStep, first_outputs
from streaming.engines.manifest import Form
from streaming.errors import WanstreamError
from streaming.network.video import FrameGroups


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """Shape of a Wan VAE. Widths are those of wan.md 5.1; `pruning_rate` takes that part of each away."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    pruning_rate: float = 0.0
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "VaeConfig":
        """From a JSON object; unknown keys are ignored, missing ones take Wan2.1's values."""
        if config.get("attn_scales"):
            raise WanstreamError(
                f"attention at scales {config['attn_scales']}: this is no Wan2.1 VAE. Use one."
            )
        return cls(**known_fields(cls, config))

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "VaeConfig":
        """From a checkpoint's tensor shapes, pruning included. KeyError: not such a checkpoint."""
        return cls(dim=shapes["decoder.head.0.gamma"][0], z_dim=shapes["conv2.weight"][0])

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stem and of each level, from full to lowest resolution."""
        return tuple(int(self.dim * mult * (1 - self.pruning_rate)) for mult in (1, *self.dim_mult))


def residual_blocks(before: int, after: int, count: int) -> list[ResidualBlock]:
    return [ResidualBlock(before if i == 0 else after, after) for i in range(count)]


def middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)])


def head(width: int, out_channels: int) -> nn.ModuleList:
    return nn.ModuleList([ChannelNorm(width, 3), nn.SiLU(), CausalConv3d(width, out_channels, (3, 3, 3))])


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] -> mean and log variance before the 1x1 convolution, [B, 2 z_dim, F, h, w]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv1 = CausalConv3d(3, widths[0], (3, 3, 3))
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            layers += residual_blocks(before, after, config.num_res_blocks)
            if level < len(config.temporal_downsample):
                layers.append(Downsample(after, config.temporal_downsample[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    @property
    def layers(self) -> list[nn.Module]:
        """In the order of computation."""
        return [self.conv1, *self.downsamples, *self.middle, *self.head]

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        return run(self.layers, x, tape)


class Decoder(nn.Module):
    """Latents after the first 1x1 convolution [B, z_dim, F, h, w] -> pixels [B, 3, T, H, W], not clamped."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = (config.widths[-1], *reversed(config.widths[1:]))
        temporal = tuple(reversed(config.temporal_downsample))
        self.conv1 = CausalConv3d(config.z_dim, widths[0], (3, 3, 3))
        self.middle = middle(widths[0])
        layers: list[nn.Module] = []
        for level, (before, after) in enumerate(pairwise(widths)):
            width = before // 2 if level > 0 else before  # upsampling halved it
            layers += residual_blocks(width, after, config.num_res_blocks + 1)
            if level < len(temporal):
                layers.append(Upsample(after, temporal[level]))
        self.upsamples = nn.ModuleList(layers)
        self.head = head(widths[-1], 3)

    @property
    def layers(self) -> list[nn.Module]:
        """In the order of computation."""
        return [self.conv1, *self.middle, *self.upsamples, *self.head]

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        return run(self.layers, x, tape)


class EncodeStep(nn.Module):
    """frames [B, 3, T, H, W] -> mu [B, z_dim, F, h, w]"""

    def __init__(self, encoder: Encoder, conv1: nn.Conv3d) -> None:
        super().__init__()
        self.encoder, self.conv1 = encoder, conv1

    def forward(self, frames: Tensor, tape: CacheTape) -> Tensor:
        mu: Tensor = self.conv1(self.encoder(frames, tape)).chunk(2, dim=1)[0]  # the other half: log variance
        return mu


class DecodeStep(nn.Module):
    """mu [B, z_dim, F, h, w] -> frames [B, 3, T, H, W], not clamped"""

    def __init__(self, conv2: nn.Conv3d, decoder: Decoder) -> None:
        super().__init__()
        self.conv2, self.decoder = conv2, decoder

    def forward(self, mu: Tensor, tape: CacheTape) -> Tensor:
        frames: Tensor = self.decoder(self.conv2(mu), tape)
        return frames


class WanVae(Autoencoder):
    """All weights of a full or pruned VAE under their checkpoint names."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.z_dim = config.z_dim
        self.spatial_factor = 2 ** (len(config.dim_mult) - 1)
        self.groups = FrameGroups(first=1, later=2 ** sum(config.temporal_downsample))
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.scale = LatentScale(config.latent_mean, config.latent_std)

    def encode_step(self, form: Form, first: bool) -> nn.Module:
        if form == "portable":
            return EncodeStep(self.encoder, self.conv1)
        mean = first_outputs(self.conv1, self.z_dim)
        return StackedStep([*self.encoder.layers, mean], 1 if first else self.groups.later, first)

    def decode_step(self, form: Form, first: bool) -> nn.Module:
        if form == "portable":
            return DecodeStep(self.conv2, self.decoder)
        return StackedStep([self.conv2, *self.decoder.layers], 1, first)
