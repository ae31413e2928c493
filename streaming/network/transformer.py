"""The transformer in latent form: latents and frame positions in, flow and new keys and values out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streaming.checkpoints.config import PATCH, Patch
from streaming.network.tokens import patchify, rope_tables, time_sinusoid, unpatchify

HIDDEN = -1e4  # key bias of a slot that must not be attended to; its weight is exactly 0 in a float32 softmax

Run = Callable[[dict[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class LatentTransformer:
    """Makes the inputs of a transformer graph (serving.md 8.2) and puts its tokens back in place.

    run    computes all outputs of the graph from its inputs, named and in the order of its signature
    """

    run: Run
    head_dim: int
    freq_dim: int = 256
    patch: Patch = PATCH

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        positions: Sequence[int],
        cross_kv: Sequence[Tensor],
        kv: Sequence[Tensor],
        key_bias: Tensor | None = None,
        cached_positions: Sequence[int] | None = None,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """One pass over a chunk.

        latents            [B, F, C, h, w]
        timestep           [B, F], 0 .. 1000
        positions          position of each latent frame of the chunk, for the rotary encoding
        cross_kv           per layer [2, B, text_len, N, D]
        kv                 per layer [2, B, S, N, D]
        key_bias           [B, 1, 1 or T, S + T]; None attends to all S + T keys
        cached_positions   of each cached frame in slot order, for a graph with un-roped cache only
        returns            flow [B, F, C, h, w], per layer new_kv [2, B, T, N, D]
        """
        inputs = self.inputs(latents, timestep, positions, cross_kv, kv, key_bias, cached_positions)
        flow, *new_kv = self.run(inputs)
        return unpatchify(flow, latents.shape[3], latents.shape[4], self.patch), new_kv

    def inputs(
        self,
        latents: Tensor,
        timestep: Tensor,
        positions: Sequence[int],
        cross_kv: Sequence[Tensor],
        kv: Sequence[Tensor],
        key_bias: Tensor | None = None,
        cached_positions: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """The graph's inputs by name, in the order of its signature; arguments as in `__call__`."""
        tokens = patchify(latents, self.patch)
        B, T, _ = tokens.shape
        if key_bias is None:
            key_bias = tokens.new_zeros(B, 1, 1, kv[0].shape[2] + T)
        named = {
            "tokens": tokens,
            "time_sin": time_sinusoid(timestep, self.freq_dim),
            "key_bias": key_bias,
            **self._rope("rope", positions, latents),
        }
        if cached_positions is not None:
            named |= self._rope("rope_k", [*cached_positions, *positions], latents)
        named |= {f"cross_kv_{i:02d}": layer for i, layer in enumerate(cross_kv)}
        named |= {f"kv_{i:02d}": layer for i, layer in enumerate(kv)}
        return {name: tensor.to(latents.device) for name, tensor in named.items()}

    def _rope(self, name: str, positions: Sequence[int], latents: Tensor) -> dict[str, Tensor]:
        rows, columns = latents.shape[3] // self.patch[1], latents.shape[4] // self.patch[2]
        cos, sin = rope_tables(positions, rows, columns, self.head_dim)
        return {f"{name}_cos": cos, f"{name}_sin": sin}


def visible(slots: Sequence[int], cache_tokens: int, new_tokens: int) -> Tensor:
    """Key bias [1, 1, 1, cache_tokens + new_tokens]: these slots of the cache and all new tokens attend."""
    bias = torch.full((cache_tokens + new_tokens,), HIDDEN)
    bias[cache_tokens:] = 0.0
    bias[torch.as_tensor(slots, dtype=torch.int64)] = 0.0
    return bias.reshape(1, 1, 1, -1)
