"""A sink that drifts with the stream: frames that are evicted are averaged into it (Reward-Forcing)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

PerLayer = Sequence[Sequence[Tensor]]  # per layer, per latent frame [2, B, tokens_per_frame, N, D]


@dataclass(frozen=True, eq=False, slots=True)
class EmaSink:
    """Exponential moving average of keys and values, frame by frame (pipeline-reward-forcing.md 4).

    decay     weight of what is there
    float32   keep the average in float32 whatever the type of the cache; otherwise small changes are rounded
              away in a cache of 16 bits, as they are in the reference
    frames    the sink's frames, never changed; empty: there is no whole sink yet
    """

    decay: float
    float32: bool = False
    frames: tuple[tuple[Tensor, ...], ...] = ()

    def forgetting(self) -> "EmaSink":
        """The sink of a stream that starts again."""
        return replace(self, frames=())

    def absorbing(self, evicted: PerLayer) -> "EmaSink":
        """The sink after these frames were evicted, oldest first; the argument is not changed.

        As many as the sink has are averaged into it, each into the frame of the same number. Any other number
        takes the place of the sink's first frames: the reference's rule, which no shipped pipeline reaches.
        """
        layers = zip(self.frames, evicted, strict=True)
        return replace(self, frames=tuple(self._layer(now, gone) for now, gone in layers))

    def _layer(self, now: Sequence[Tensor], gone: Sequence[Tensor]) -> tuple[Tensor, ...]:
        dtype = torch.float32 if self.float32 else now[0].dtype
        if len(gone) == len(now):
            pairs = zip(now, gone, strict=True)
            return tuple(
                self.decay * old.to(dtype) + (1 - self.decay) * frame.to(dtype) for old, frame in pairs
            )
        replaced = tuple(frame.to(dtype, copy=True) for frame in gone[: len(now)])
        return (*replaced, *now[len(replaced) :])
