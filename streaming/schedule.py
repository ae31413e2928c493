"""Flow matching: x_t = (1 - sigma) x_0 + sigma noise, and flow = noise - x_0 (wan.md 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

TRAINING_STEPS = 1000


@dataclass(frozen=True, eq=False)
class FlowSchedule:
    """The table of a shifted schedule and the conversions that look sigma up in it.

    sigmas, timesteps   float32 [1000], descending from 1 and 1000; timestep = 1000 * sigma

    Sigma is that of the nearest table entry, never t / 1000: t = 0 gives 0.005 for a shift of 5.
    """

    sigmas: Tensor
    timesteps: Tensor

    @staticmethod
    def shifted(shift: float, steps: int = TRAINING_STEPS) -> "FlowSchedule":
        """sigma = shift * u / (1 + (shift - 1) * u) for u = 1 - i / steps; i = 0 .. steps - 1."""
        u = torch.linspace(1.0, 0.0, steps + 1)[:-1]
        sigmas = shift * u / (1 + (shift - 1) * u)
        return FlowSchedule(sigmas, sigmas * TRAINING_STEPS)

    def index(self, timestep: Tensor) -> Tensor:
        """Entry with the nearest timestep, the first of two equally near: [*] -> int64 [*], on the CPU."""
        distance = (self.timesteps - timestep.cpu().float().unsqueeze(-1)).abs()
        return distance.argmin(dim=-1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """[*], 0 .. 1000, may be fractional -> float32 [*], on the CPU."""
        return self.sigmas[self.index(timestep)]

    def add_noise(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t from clean latents, computed in float32.

        x_0, noise [*, C, h, w]; timestep [*], one per latent frame. Shape and type of noise out.
        """
        sigma = self._per_frame(timestep, noise, torch.float32)
        return ((1 - sigma) * x_0.float() + sigma * noise.float()).to(noise.dtype)

    def to_x0(self, flow: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """Clean latents from the flow that the transformer predicts, computed in float64.

        flow, x_t [*, C, h, w]; timestep [*]. Shape and type of flow out.
        """
        sigma = self._per_frame(timestep, flow, torch.float64)
        return (x_t.double() - sigma * flow.double()).to(flow.dtype)

    def _per_frame(self, timestep: Tensor, latents: Tensor, dtype: torch.dtype) -> Tensor:
        sigma = self.sigma(timestep).to(device=latents.device, dtype=dtype)
        return sigma.reshape(*timestep.shape, 1, 1, 1)


def first_video_step(noise_scale: float) -> int:
    """Timestep that takes the place of a step list's first in video mode; noise_scale 0 .. 1.

    Below 0.1 it is negative, which the lookup takes as 0 (pipelines-common.md 5).
    """
    return int(TRAINING_STEPS * noise_scale) - 100
