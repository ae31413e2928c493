"""Where the randomness of a stream comes from, and how much of it video input gets."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Draw = Callable[[Sequence[int]], Tensor]  # shape -> standard normal, float32

FULL_MOTION = 0.2  # difference of frames in [-1, 1] that counts as most motion
SEEDS = 2**64


class NoiseSource(Protocol):
    """Noise by chunk: the same seed gives the same draws."""

    def chunk(self, seed: int) -> Draw:
        """A fresh generator: base seed + first frame of the chunk (pipelines-common.md 8)."""


class SeededNoise:
    """torch's generator; by default the CPU's, so that a seed gives the same stream on every device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """device: of the generator and of what it draws."""
        self._device = device

    def chunk(self, seed: int) -> Draw:
        generator = torch.Generator(self._device).manual_seed(seed % SEEDS)
        return lambda shape: torch.randn(*shape, generator=generator, device=self._device)


def motion_noise_scale(video: Array, before: Array | None, frames: int, requested: float) -> float:
    """The motion-aware noise scale: still pictures get more noise than moving ones.

    video      [1, 3, T, H, W] in [-1, 1], T > frames
    before     [1, 3, 1, H, W], last frame of the chunk before; None at the start
    frames     latent frames per chunk; so many of the last pixel frames are looked at
    requested  0 .. 1, gets a tenth of the weight

    `before` is compared with the first of those frames although the two are not adjacent, and the order of
    the operations counts, because the result is truncated to a timestep (pipelines-common.md 7).
    """
    current = video[:, :, -frames:]
    previous = video[:, :, -frames - 1 : -1]
    if before is not None:
        previous = np.concatenate([before, previous[:, :, 1:]], axis=2)
    difference = np.sqrt(np.square(current - previous).mean(axis=(0, 1, 3, 4), dtype=np.float32))
    motion = min(max(float(difference.max()) / FULL_MOTION, 0.0), 1.0)
    return (0.8 - 0.2 * motion) * 0.9 + requested * 0.1
