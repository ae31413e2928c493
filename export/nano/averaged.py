"""What trainings of the transformer and of its branch share: parameters, average, and resuming."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from export.nano.optim import MuonAdam


class AveragedTraining:
    """A training's parameters, their running average and what drew them; `state_dict` is all that a resume
    needs. Whoever builds upon it sets these.
    """

    params: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimiser: MuonAdam
    done: int
    rng: random.Random
    generator: torch.Generator

    def advance(self, rate: float, keep: float) -> None:
        """Take a step with the gradients that are there. keep: share of the average that stays, at most."""
        self.optimiser.step(rate)
        self.done += 1
        keep = min(keep, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.params.values()), 1 - keep)

    def state_dict(self) -> dict[str, Any]:
        return {
            "params": {n: q.detach() for n, q in self.params.items()},
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for n, q in self.params.items():
                q.copy_(state["params"][n])
                self.average[n].copy_(state["average"][n])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = state["done"]
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"])
