"""Muon for matrices and kernels, Adam for everything else: tiny networks learn several times faster with it.

Muon: Jordan et al. 2024, orthogonalised momentum; here the update's scale is that of Liu et al. 2025
(0.2 * sqrt(larger side)), so that one rate serves both.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

_NS: Final = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic Newton-Schulz iteration
_NS_STEPS: Final = 5


class MuonAdam:
    """One optimiser over two groups; `rate` is set by the caller before each step."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        momentum: float = 0.95,
        decay: float = 0.0,
        adam_factor: float = 0.7,
    ) -> None:
        self.matrices: list[Tensor] = list(matrices)
        self.others: list[Tensor] = list(others)
        self.momentum, self.decay, self.adam_factor = momentum, decay, adam_factor
        self._momenta = [torch.zeros_like(p) for p in self.matrices]
        self._adam = torch.optim.Adam(self.others, lr=0.0, betas=(0.9, 0.98))
        self._by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(self.matrices):
            self._by_shape[tuple(p.flatten(1).shape)].append(i)
        for p in (*self.matrices, *self.others):
            p.grad = torch.zeros_like(p)  # always the same memory, which a CUDA graph may write

    def take(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, in place of the ones before."""
        parameters = [*self.matrices, *self.others]
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_copy_([p.grad for p in parameters if p.grad is not None], list(found))

    @torch.no_grad()
    def step(self, rate: float, clip: float = 1.0) -> None:
        """Update with the gradients, clipped to this norm."""
        nn.utils.clip_grad_norm_([*self.matrices, *self.others], clip)
        gradients: list[Tensor] = [p.grad for p in self.matrices if p.grad is not None]
        torch._foreach_lerp_(self._momenta, gradients, 1 - self.momentum)
        updates = list(torch._foreach_lerp(gradients, self._momenta, self.momentum))
        for (rows, columns), members in self._by_shape.items():
            stacked = torch.stack([updates[i].reshape(rows, columns) for i in members])
            scaled = orthogonalise(stacked) * (0.2 * max(rows, columns) ** 0.5)
            for i, update in zip(members, scaled, strict=True):
                updates[i] = update.view_as(self.matrices[i])
        matrices: list[Tensor] = [*self.matrices]
        torch._foreach_mul_(matrices, 1 - rate * self.decay)
        torch._foreach_add_(matrices, updates, alpha=-rate)
        for group in self._adam.param_groups:
            group["lr"] = rate * self.adam_factor
        self._adam.step()

    def state_dict(self) -> dict[str, object]:
        return {"momenta": self._momenta, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        momenta, adam = state["momenta"], state["adam"]
        assert isinstance(momenta, list)
        assert isinstance(adam, dict)
        for own, saved in zip(self._momenta, momenta, strict=True):
            own.copy_(saved)
        self._adam.load_state_dict(adam)


def orthogonalise(x: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, about: [n, rows, columns], by Newton-Schulz."""
    wide = x.shape[1] > x.shape[2]
    if wide:
        x = x.transpose(1, 2)
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()
    a, b, c = _NS
    for _ in range(_NS_STEPS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.float()
    return x.transpose(1, 2) if wide else x


def warm_cosine(step: int, steps: int, peak: float, floor: float, warm_up: int) -> float:
    """Rate of a step: linear up to `peak`, then along a cosine down to `floor`."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return floor + (peak - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))
