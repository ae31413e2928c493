"""The Wan VAE with its frames in the batch, and its convolutions over time as plain 2-D ones.

ONNX Runtime's 3-D convolutions for the CPU unfold their input; its 2-D ones do not. Weights, slots of the
cache and results are those of `export/graphs/vae.py`, but for rounding; TensorRT gets that form. Tensors are
[T, C, h, w] here: of one stream, B = 1. A call is one latent frame, so that every T is a constant; where it
is 4, the layers compute two frames after the other two, so that less lies in memory between them.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

import torch
from torch import Tensor, nn

from export.graphs.vae_layers import (
    AttentionBlock,
    CacheTape,
    Causal,
    CausalConv3d,
    ChannelNorm,
    Downsample,
    ResidualBlock,
    Upsample,
    no_context,
    run,
)

_PAIR: Final = 2
# Channels up to which two frames are computed at once: the kernels compute 16 at a time. Of more channels,
# the multiplications by zero would cost more than that wins.
_NARROW: Final = 32


class StackedStep(nn.Module):
    """Layers of the Wan VAE in this form, as a step: (x [1, C, T, h, w], tape) -> [1, C', T', h', w']."""

    def __init__(self, layers: Sequence[nn.Module], frames: int, first: bool) -> None:
        """frames: T, of one latent frame. first: the call has no context."""
        super().__init__()
        flat = list(_flat(layers, frames, first))
        self.layers = nn.ModuleList(layer for layer, _ in flat)
        self._in_pairs = [frames > _PAIR for _, frames in flat]

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        x = x.squeeze(0).transpose(0, 1)
        for in_pairs, group in groupby(zip(self._in_pairs, self.layers, strict=True), itemgetter(0)):
            layers = [layer for _, layer in group]
            x = run_in_pairs(layers, x, tape) if in_pairs else run(layers, x, tape)
        return x.transpose(0, 1).unsqueeze(0)


def run_in_pairs(layers: Sequence[nn.Module], x: Tensor, tape: CacheTape) -> Tensor:
    """As `run`, for two frames of x [T, C, h, w] after the other."""
    slots = sum(isinstance(part, StackedConv) for layer in layers for part in layer.modules())
    old = [tape.take() for _ in range(slots)]
    results = []
    for frames in torch.split(x, _PAIR):
        part = CacheTape(old)
        results.append(run(layers, frames, part))
        old = part.new
    for context in old:
        tape.put(context)
    return torch.cat(results)


def _flat(layers: Sequence[nn.Module], frames: int, first: bool) -> Iterator[tuple[nn.Module, int]]:
    """The layers in this form, each with the frames of its input."""
    for layer in layers:
        if not isinstance(layer, Downsample | Upsample) or layer.time_conv is None:
            yield _converted(layer, frames, first), frames
        elif isinstance(layer, Downsample):
            yield layer.resample, frames
            yield _Halve(layer.time_conv, frames, first), min(frames, _PAIR)
            frames = 1 if first else frames // 2
        else:
            yield _Double(layer.time_conv, frames, first), frames
            frames = 1 if first else frames * 2
            yield layer.resample, frames


def _converted(layer: nn.Module, frames: int, first: bool) -> nn.Module:
    """A layer that changes no number of frames."""
    if isinstance(layer, CausalConv3d):
        return StackedConv(layer, frames, first)
    if isinstance(layer, nn.Conv3d):
        return _flat_convolution(layer)
    if isinstance(layer, ChannelNorm):
        return _flat_norm(layer)
    if isinstance(layer, AttentionBlock):
        return _FlatAttention(layer)
    if isinstance(layer, ResidualBlock):
        return _FlatResidual(layer, frames, first)
    return layer.resample if isinstance(layer, Downsample | Upsample) else layer


class StackedConv(nn.Module, Causal):
    """A causal convolution over time and space as 2-D ones over stacked frames.

    A frame of the result depends on `kernel` frames of the input: with these as channels, time slowest, it is
    a 2-D convolution. Of a narrow layer a pair of frames is computed from two pairs, those before and its
    own; weights between frames that do not depend on each other are zero.
    """

    def __init__(self, conv: CausalConv3d, frames: int, first: bool) -> None:
        super().__init__()
        self.stride, self.context = conv.stride[0], conv.context
        self.seen = 1 if first else conv.kernel_size[0]  # frames of input; the others are zero
        taps = conv.weight.detach().transpose(1, 2)[:, -self.seen :]  # [C_out, seen, C, height, width]
        self.pairs = frames % _PAIR == 0 and self.seen - self.stride == _PAIR and conv.in_channels <= _NARROW
        if not self.pairs:
            self.new = _convolution(taps, conv.bias)
            return
        weight = taps.new_zeros(_PAIR, len(taps), 2 * _PAIR, *taps.shape[2:])
        for i in range(_PAIR):
            weight[i, :, i : i + self.seen] = taps
        old, new = torch.split(weight.flatten(0, 1), _PAIR, dim=1)
        assert conv.bias is not None
        self.old, self.new = _convolution(old, None), _convolution(new, conv.bias.detach().repeat(_PAIR))

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        """x [T, C, h, w] -> [T / stride, C_out, h, w]; T = 2 in pairs"""
        T, C, h, w = x.shape
        if self.pairs:
            pair, before = x.reshape(1, -1, h, w), tape.take().reshape(1, -1, h, w)
            tape.put(x)
            y: Tensor = self.new(pair) + self.old(before)
            return y.reshape(T, -1, h, w)
        if tape.first:
            tape.extend(x, self.context, dim=0)
            y = self.new(x)
            return y
        frames = tape.extend(x, self.context, dim=0)
        if self.stride < T:
            frames = torch.cat([frames[i : i + self.seen] for i in range(0, T, self.stride)])
        y = self.new(frames.reshape(-1, self.seen * C, h, w))
        return y


class _FlatResidual(nn.Module, Causal):
    def __init__(self, block: ResidualBlock, frames: int, first: bool) -> None:
        super().__init__()
        self.residual = nn.ModuleList(_converted(layer, frames, first) for layer in block.residual)
        self.shortcut = _converted(block.shortcut, frames, first)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        y: Tensor = run(self.residual, x, tape) + self.shortcut(x)
        return y


class _FlatAttention(nn.Module):
    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block.attended(x)


class _Halve(nn.Module, Causal):
    """Half as many frames; the first one of a stream as it is."""

    def __init__(self, conv: CausalConv3d, frames: int, first: bool) -> None:
        super().__init__()
        self.conv = None if first else StackedConv(conv, frames, first)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        if self.conv is None:
            tape.put(x)
            return x
        y: Tensor = self.conv(x, tape)
        return y


class _Double(nn.Module, Causal):
    """Twice as many frames; the first one of a stream as it is."""

    def __init__(self, conv: CausalConv3d, frames: int, first: bool) -> None:
        super().__init__()
        self.context = conv.context
        self.conv = None if first else StackedConv(conv, frames, first)

    def forward(self, x: Tensor, tape: CacheTape) -> Tensor:
        if self.conv is None:
            tape.put(no_context(x, self.context, dim=0))
            return x
        y: Tensor = self.conv(x, tape)
        return y.reshape(-1, *x.shape[1:])  # each half of the channels is a frame


def _convolution(taps: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """taps [C_out, frames, C, height, width] -> a convolution of [n, frames * C, h, w]"""
    conv = nn.Conv2d(1, 1, 1, padding=(taps.shape[3] // 2, taps.shape[4] // 2), device="meta")
    conv.weight = nn.Parameter(taps.flatten(1, 2).contiguous())
    conv.bias = None if bias is None else nn.Parameter(bias.detach())
    return conv


def first_outputs(conv: nn.Conv3d, count: int) -> nn.Conv3d:
    """The convolution of 1x1x1, for its first `count` channels of the result."""
    part = nn.Conv3d(conv.in_channels, count, 1, device="meta")
    assert conv.bias is not None
    part.weight = nn.Parameter(conv.weight.detach()[:count])
    part.bias = nn.Parameter(conv.bias.detach()[:count])
    return part


def _flat_convolution(conv: nn.Conv3d) -> nn.Conv2d:
    """Of a 1x1x1 convolution."""
    return _convolution(conv.weight.detach().transpose(1, 2), conv.bias)


def _flat_norm(norm: ChannelNorm) -> ChannelNorm:
    flat = ChannelNorm(0, 2)
    flat.gamma = nn.Parameter(norm.gamma.detach().reshape(-1, 1, 1))
    return flat
