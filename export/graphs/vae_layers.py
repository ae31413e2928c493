"""Building parts of the Wan VAE: causal convolution, norm, residual, attention and resampling blocks.

Tensors are [B, C, T, h, w]. Time is causal: a convolution over time sees the frames before its input through
an explicit cache (`CacheTape`), so a stream cut into calls gives the same frames as one call. Source of
structure and parameter names: Wan2.1 wan/modules/vae.py; of the cache rules: wan.md 5.2 to 5.6.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs.layers import attention


class Causal:
    """Of a layer that gets the tape: its result depends on frames of earlier calls."""


class CacheTape:
    """The caches of one call in slot order: hands out the old ones, collects the new ones.

    A slot holds the last frames of one causal layer's input. `old=None` is the first call of a stream, where
    the context is zero.
    """

    def __init__(self, old: Sequence[Tensor] | None) -> None:
        self.first = old is None
        self._old = iter(old or ())
        self.new: list[Tensor] = []

    def extend(self, x: Tensor, frames: int, dim: int = 2) -> Tensor:
        """Put the `frames` frames before x in front of it and keep the last ones for the next call.

        x [B, C, T, h, w] -> [B, C, frames + T, h, w], the time axis being `dim`.
        """
        if self.first:
            x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (frames, 0))
        else:
            x = torch.cat([self.take(), x], dim=dim)
        self.put(x.narrow(dim, x.shape[dim] - frames, frames))
        return x

    def take(self) -> Tensor:
        """What the next slot holds; not in the first call."""
        return next(self._old)

    def put(self, context: Tensor) -> None:
        """Fill the next slot for the next call."""
        self.new.append(context)


class CausalConv3d(nn.Conv3d, Causal):
    """Convolution over time and space that looks only back in time: the one causal convolution.

    Its left context, `kernel - stride` frames in time, comes from the tape. Space is zero padded to its size.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], time_stride: int = 1
    ) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride=(time_stride, 1, 1), padding=padding)
        self.context = kernel[0] - time_stride

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:  # type: ignore[override]
        """x [B, C, T, h, w] -> [B, C_out, T / time_stride, h, w]"""
        return super().forward(tape.extend(x, self.context))


class ChannelNorm(nn.Module):
    """x / max(||x||, 1e-12) * sqrt(C) * gamma at each position, ||x|| over channels (dim 1), in float32."""

    def __init__(self, channels: int, position_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * position_dims))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        length = torch.linalg.vector_norm(x32, dim=1, keepdim=True).clamp(min=1e-12)
        y: Tensor = (x32 / length * (self.gamma.float() * x.shape[1] ** 0.5)).to(x.dtype)
        return y


class ResidualBlock(nn.Module, Causal):
    """Twice (norm, SiLU, causal 3x3x3 convolution) beside a shortcut. Two cache slots."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleList(  # positions are those of the checkpoint; 5 was a dropout
            [
                ChannelNorm(in_channels, 3),
                nn.SiLU(),
                CausalConv3d(in_channels, out_channels, (3, 3, 3)),
                ChannelNorm(out_channels, 3),
                nn.SiLU(),
                nn.Identity(),
                CausalConv3d(out_channels, out_channels, (3, 3, 3)),
            ]
        )
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        y: Tensor = run(self.residual, x, tape) + self.shortcut(x)
        return y


class AttentionBlock(nn.Module):
    """Self attention of one head over the positions of each frame, with a residual. No cache."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + batch_to_frames(self.attended(frames_to_batch(x)), x.shape[0])

    def attended(self, x: Tensor) -> Tensor:
        """What is added to x [B * T, C, h, w]."""
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(2).chunk(3, dim=-1)
        y = attention(q, k, v).squeeze(2).transpose(1, 2)  # [B * T, C, h * w]
        added: Tensor = self.proj(y.reshape(x.shape))
        return added


class Downsample(nn.Module, Causal):
    """Halve height and width, and with `temporal` also time. Keys `resample.1`, `time_conv`.

    The first frame of a stream passes the time convolution unchanged (wan.md 5.3); its slot keeps one frame.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        pad_right_and_bottom = nn.ZeroPad2d((0, 1, 0, 1))
        self.resample = nn.Sequential(pad_right_and_bottom, nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = batch_to_frames(self.resample(frames_to_batch(x)), x.shape[0])
        if self.time_conv is None:
            return x
        if tape.first:
            tape.put(x)
            return x
        y: Tensor = self.time_conv(x, tape)
        return y


class Upsample(nn.Module, Causal):
    """Double height and width, halve the channels; with `temporal` first double time. Keys as `Downsample`.

    The first latent frame of a stream is not doubled and never enters the time convolution's context
    (wan.md 5.4). The reference upsamples in space with "nearest-exact", which for a factor of two equals
    "nearest"; that exports to a plain Resize.
    """

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        if self.time_conv is not None and tape.first:
            tape.put(no_context(x, self.time_conv.context))
        elif self.time_conv is not None:
            even, odd = self.time_conv(x, tape).chunk(2, dim=1)
            x = torch.stack([even, odd], dim=3).flatten(2, 3)
        return batch_to_frames(self.resample(frames_to_batch(x)), x.shape[0])


def no_context(x: Tensor, frames: int, dim: int = 2) -> Tensor:
    """Zeros in the place of the `frames` frames before x, whose time axis is `dim`.

    The padding itself: zeros as a constant would be stored in the engine, at full size.
    """
    return F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (frames, 0)).narrow(dim, 0, frames)


def run(layers: Iterable[nn.Module], x: Tensor, tape: CacheTape) -> Tensor:
    """Apply layers in order; the causal ones get the tape."""
    for layer in layers:
        x = layer(x, tape) if isinstance(layer, Causal) else layer(x)
    return x


def frames_to_batch(x: Tensor) -> Tensor:
    """[B, C, T, h, w] -> [B * T, C, h, w]"""
    return x.transpose(1, 2).flatten(0, 1)


def batch_to_frames(x: Tensor, B: int) -> Tensor:
    """[B * T, C, h, w] -> [B, C, T, h, w]"""
    return x.reshape(B, -1, *x.shape[1:]).transpose(1, 2)
