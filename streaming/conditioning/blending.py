"""Mixing prompt embeddings: several prompts at once, and the way from one prompt to the next.

Formulas: pipelines-common.md 4.3 and 4.4. Everything is computed in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streaming.specs import Interpolation

PARALLEL = 1e-4  # radians; below it sin(omega) is too small to divide by
SAME = 0.01  # Frobenius norm of the difference below which a transition changes nothing
EPSILON = 1e-8


def blend(embeddings: Sequence[Tensor], weights: Sequence[float], method: Interpolation) -> Tensor:
    """Several prompts in one embedding.

    embeddings   each [1, L, C]
    weights      one each; only their ratio counts, equal when their sum is not positive
    method       slerp needs exactly two embeddings, otherwise it is linear
    """
    shares = normalised_weights(weights)
    if method == "slerp" and len(embeddings) == 2:
        return slerp(embeddings[0], embeddings[1], shares[1])
    if len(embeddings) == 1:
        return embeddings[0].float()
    stack = torch.stack([embedding.float() for embedding in embeddings])
    share = torch.tensor(shares, dtype=torch.float32, device=stack.device)
    norm = (share * torch.linalg.vector_norm(stack.flatten(1), dim=1)).sum()
    mixed = (share.reshape(-1, *[1] * (stack.dim() - 1)) * stack).sum(dim=0)
    mixed_norm = torch.linalg.vector_norm(mixed)
    return torch.where(mixed_norm > EPSILON, mixed * (norm / mixed_norm.clamp(min=EPSILON)), mixed)


def normalised_weights(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1. A single one may be negative as long as the sum is positive."""
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else [1 / len(weights)] * len(weights)


def slerp(source: Tensor, target: Tensor, t: float) -> Tensor:
    """Spherical interpolation of each token, [1, L, C]; t from 0 (source) to 1 (target).

    Tokens that are (nearly) parallel are interpolated linearly, each by itself (defect D4).
    """
    source, target = source.float(), target.float()
    directions = [e / (torch.linalg.vector_norm(e, dim=-1, keepdim=True) + EPSILON) for e in (source, target)]
    cosine = (directions[0] * directions[1]).sum(dim=-1, keepdim=True)
    omega = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(omega) + EPSILON
    arc = torch.sin((1 - t) * omega) / sine * source + torch.sin(t * omega) / sine * target
    return torch.where(omega < PARALLEL, (1 - t) * source + t * target, arc)


def interpolate(source: Tensor, target: Tensor, t: float, method: Interpolation) -> Tensor:
    """The embedding at place t on the way from source (0) to target (1); exact at both ends."""
    if t in (0.0, 1.0):
        return (target if t else source).float()
    return slerp(source, target, t) if method == "slerp" else torch.lerp(source.float(), target.float(), t)


@dataclass(frozen=True, eq=False, slots=True)
class Transition:
    """A way in `steps` >= 1 points, one per chunk, of which `taken` were used. The first is the source."""

    source: Tensor
    target: Tensor
    steps: int
    method: Interpolation
    taken: int = 0

    @property
    def changes_anything(self) -> bool:
        return float(torch.linalg.vector_norm(self.target.float() - self.source.float())) >= SAME

    def take(self) -> tuple[Tensor, "Transition | None"]:
        """The next point, and the rest of the way; None after the last point."""
        t = self.taken / max(self.steps - 1, 1)
        point = interpolate(self.source, self.target, t, self.method)
        rest = replace(self, taken=self.taken + 1)
        return point, rest if rest.taken < self.steps else None
