"""The transformer in latent form: what the inputs of a call are made of, and the sizes of a network."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from streaming.cache.attention_bias import HIDDEN
from streaming.checkpoints.config import PATCH, Patch
from streaming.conditioning.conditions import Conditions
from streaming.network.inputs import GROUPS, InputGroup
from streaming.network.tokens import patchify, rope_tables, time_sinusoid, unpatchify

VACE_PADDING: Final = 128  # the reference fills the tokens of a VACE block up to a multiple of it


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Dimensions that come with the weights."""

    layers: int
    heads: int
    head_dim: int
    freq_dim: int = 256
    channels: int = 16  # of the latents
    patch: Patch = PATCH
    spatial_factor: int = 8  # pixels per latent position, in height and in width


@dataclass(frozen=True, eq=False)
class TransformerCall:
    """One pass of the transformer over a chunk; its inputs are made from this (serving.md 8.2).

    latents            [B, F, C, h, w]
    timestep           [B, F], 0 .. 1000
    positions          position of each latent frame of the chunk, for the rotary encoding
    kv                 the cache: per layer [2, B, S, N, D]
    key_bias           [B, 1, 1 or T, S + T], see `KVCache.key_bias`; None: all keys are visible
    cached_positions   of each cached frame in slot order; read only where keys are cached un-roped
    """

    sizes: ModelSizes
    latents: Tensor
    timestep: Tensor
    positions: Sequence[int]
    conditions: Conditions
    kv: Sequence[Tensor]
    key_bias: Tensor | None
    cached_positions: Sequence[int] = ()

    def inputs(self, names: Collection[str]) -> dict[str, Tensor]:
        """Of a graph whose inputs are called `names`: all groups of `GROUPS` that it has."""
        made: dict[str, Tensor] = {}
        for group in GROUPS.values():
            members = group.names(self._layers(group))
            if members[0] in names:
                values = zip(members, group.values(self), strict=True)
                made |= {name: tensor for name, tensor in values if tensor is not None}
        return {name: tensor.to(self.latents.device) for name, tensor in made.items()}

    def _layers(self, group: InputGroup) -> int:
        """Of the transformer, or blocks of the VACE branch."""
        vace = self.conditions.vace
        return self.sizes.layers if group.layers == "L" else len(vace.cross_kv if vace else ())

    def flow(self, tokens: Tensor) -> Tensor:
        """The graph's flow [B, T, patch * C] as [B, F, C, h, w]."""
        return unpatchify(tokens, self.latents.shape[3], self.latents.shape[4], self.sizes.patch)

    @property
    def adapters(self) -> Sequence[Tensor]:
        """Factors and scales of the adapters, which a graph with that group cannot do without."""
        assert self.conditions.adapters is not None, "the graph takes adapters, and the pipeline has none"
        return self.conditions.adapters.inputs("transformer")

    @property
    def tokens(self) -> Tensor:
        """[B, T, C * patch]"""
        return patchify(self.latents, self.sizes.patch)

    @property
    def time_sin(self) -> Tensor:
        """float32 [B, F, freq_dim]"""
        return time_sinusoid(self.timestep, self.sizes.freq_dim)

    @property
    def vace(self) -> tuple[Tensor, ...]:
        """Group "vace": the context cut and filled up to the chunk's frames; see `VaceContext`."""
        context = self.conditions.vace
        assert context is not None, "the branch's graph is for chunks with a context"
        frames = self.latents.shape[1]
        latents = context.latents[:, :frames]
        valid = torch.zeros(frames)
        valid[: latents.shape[1]] = 1
        missing = latents.new_zeros((len(latents), frames - latents.shape[1], *latents.shape[2:]))
        tokens = patchify(torch.cat([latents, missing], dim=1), self.sizes.patch)
        zero_keys = -tokens.shape[1] % VACE_PADDING if context.padding else 0
        padding = math.log(zero_keys) if zero_keys else HIDDEN
        scalars = torch.tensor([context.scale]), torch.tensor([padding])
        return (tokens, valid, *scalars, *self.rope(range(frames)), *context.cross_kv)

    def rope(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [tokens of these frames, D / 2]."""
        latents, (_, ph, pw) = self.latents, self.sizes.patch
        rows, columns = latents.shape[3] // ph, latents.shape[4] // pw
        return rope_tables(positions, rows, columns, self.sizes.head_dim, latents.device)


def timesteps(timestep: float, x: Tensor) -> Tensor:
    """The same timestep for every frame of x [B, F, C, h, w]: float32 [B, F], on the CPU."""
    return torch.full(x.shape[:2], float(timestep))
