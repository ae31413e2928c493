"""The Wan2.1 diffusion transformer as a pure function of tokens, tables and caches.

Network: wan.md 2 and 3. Inputs and outputs: serving.md 8.2. `Transformer` and `TextKV` together hold the
parameters of one checkpoint. What depends only on the prompt is in `TextKV`; it runs when the prompt changes.
"""

from math import prod

import torch
from torch import Tensor, nn

from export.graphs.layers import (
    Branch,
    LayerNorm,
    Linear,
    RMSNorm,
    attention,
    beside,
    fusible,
    norm_and_rotate,
    rotate,
)
from export.graphs.signature import Signature, Values
from streaming.adapters.layers import Network, adapted_axes, adapted_layers
from streaming.checkpoints.config import TransformerConfig
from streaming.network.inputs import ADAPTERS, GROUPS, OUTPUTS, TensorSpec, sized


class SelfAttention(nn.Module):
    """Attention of the new tokens to [cached tokens | new tokens]. No causal mask within the new ones."""

    def __init__(self, config: TransformerConfig, unroped_cache: bool) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        self.unroped_cache = unroped_cache
        self.q, self.k, self.v, self.o = (Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))

    def forward(
        self, x: Tensor, kv: Tensor, bias: Tensor | None, rope: Values, rope_k: Values | None
    ) -> tuple[Tensor, Tensor]:
        """
        x         [B, T, dim]
        kv        [2, B, S, N, D]   keys and values of the cached tokens
        bias      [B, 1, 1, S + T] or None
        rope      cos, sin [T, D / 2] of the queries (and of the new keys when those are cached roped)
        rope_k    cos, sin [S + T, D / 2] of all keys, when they are cached un-roped
        returns   y [B, T, dim], new_kv [2, B, T, N, D]
        """
        q = norm_and_rotate(self.q(x), self.norm_q.weight, self.norm_q.eps, self.heads, *rope)
        k = self.k(x)
        v = self.v(x).unflatten(2, self.heads)
        k_cached, v_cached = kv.unbind(0)
        if self.unroped_cache:
            assert rope_k is not None, "un-roped keys need tables of all positions"
            k = self.norm_k(k).unflatten(2, self.heads)
            keys = rotate(torch.cat([k_cached, k], dim=1), *rope_k)
        else:
            k = norm_and_rotate(k, self.norm_k.weight, self.norm_k.eps, self.heads, *rope)
            keys = torch.cat([k_cached, k], dim=1)
        y = attention(q, keys, torch.cat([v_cached, v], dim=1), bias)
        return self.o(y.flatten(2)), torch.stack([k, v])


class CrossAttention(nn.Module):
    """Attention to all rows of the prompt, padding included (wan.md 2.2). Its keys and values are inputs."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        self.q, self.o = Linear(config.dim, config.dim), Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)

    def forward(self, x: Tensor, kv: Tensor) -> Tensor:
        """x [B, T, dim], kv [2, B, text_len, N, D] -> [B, T, dim]"""
        q = self.norm_q(self.q(x)).unflatten(2, self.heads)
        k, v = kv.unbind(0)
        y: Tensor = self.o(attention(q, k, v).flatten(2))
        return y


class Block(nn.Module):
    """Self attention, cross attention, feed forward; six vectors per latent frame modulate first and last."""

    def __init__(self, config: TransformerConfig, unroped_cache: bool) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))
        self.norm1 = LayerNorm(config.dim, config.eps)
        self.self_attn = SelfAttention(config, unroped_cache)
        self.norm3 = LayerNorm(config.dim, config.eps, affine=True)
        self.cross_attn = CrossAttention(config)
        self.norm2 = LayerNorm(config.dim, config.eps)
        self.ffn = nn.Sequential(
            Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            Linear(config.ffn_dim, config.dim),
        )

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        cross_kv: Tensor,
        kv: Tensor,
        bias: Tensor | None,
        rope: Values,
        rope_k: Values | None,
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, dim], e0 [B, F, 6, dim], the rest as in SelfAttention -> x, new_kv"""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.unsqueeze(1) + e0).unbind(2)
        y, new_kv = self.self_attn(self.norm1.modulated(x, shift1, scale1), kv, bias, rope, rope_k)
        x = add_gated(x, y, gate1)
        x = x + self.cross_attn(self.norm3(x), cross_kv)
        x = add_gated(x, self.ffn(self.norm2.modulated(x, shift2, scale2)), gate2)
        return x, new_kv


class Head(nn.Module):
    """Modulated projection of the tokens to flow."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))
        self.norm = LayerNorm(config.dim, config.eps)
        self.head = Linear(config.dim, config.out_dim * prod(config.patch_size))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, T, dim], e [B, F, dim] -> [B, T, patch * out_dim]"""
        shift, scale = (self.modulation.unsqueeze(1) + e.unsqueeze(2)).unbind(2)
        y: Tensor = self.head(self.norm.modulated(x, shift, scale))
        return y


class Transformer(nn.Module):
    """One denoising pass over the tokens of a chunk, past frames being given as keys and values.

    Departs from the reference's forward, with equal results, in these points: the patch embedding is a matrix
    product over tokens; rotary tables and time vector are inputs, made in float64 by
    `streaming.network.tokens`; the cache is an input that holds only past chunks, and the new keys and values
    are outputs; its slots may be unused or in any order, because `key_bias` hides slots and positions are
    inside the keys (or in `rope_k`); text projections are in `TextKV`.

    unroped_cache   keys are cached before the rotary encoding and rotated when read (Reward-Forcing)
    adapted         the linear layers have low-rank branches, whose factors and scales are inputs
    """

    def __init__(self, config: TransformerConfig, unroped_cache: bool = False, adapted: bool = False) -> None:
        super().__init__()
        self.config, self.unroped_cache, self.adapted = config, unroped_cache, adapted
        patch = (config.in_dim, *config.patch_size)
        self.patch_embedding = Linear(prod(patch), config.dim, checkpoint_shape=(config.dim, *patch))
        self.time_embedding = nn.Sequential(
            Linear(config.freq_dim, config.dim), nn.SiLU(), Linear(config.dim, config.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(Block(config, unroped_cache) for _ in range(config.num_layers))
        self.head = Head(config)

    @property
    def groups(self) -> set[str]:
        """Of the graph's inputs: the arguments of `forward`."""
        optional = {"rope_k": self.unroped_cache, ADAPTERS: self.adapted}
        return {"tokens", "rope", "cross", "cache"} | {name for name, there in optional.items() if there}

    def forward(
        self,
        tokens: Values,
        rope: Values,
        cross: Values,
        cache: Values,
        rope_k: Values | None = None,
        vace: Values | None = None,
        adapters: Values | None = None,
    ) -> tuple[Tensor, ...]:
        """Arguments are groups of `streaming/network/inputs.py`, each a tuple in the order given there.

        tokens     patches [B, T, patch * in_dim] from `patchify`, T = F * tokens of a latent frame;
                   time_sin float32 [B, F, freq_dim] from `time_sinusoid`;
                   key_bias [B, 1, 1, S + T], added to the logits: 0 visible, -1e4 unused slot, log(b) weight
                   b; [B, 1, T, S + T] for a mask by query; None if all are visible
        rope       cos, sin float32 [T, D / 2] from `rope_tables`, of the new tokens
        cross      cross_kv of each layer [2, B, text_len, N, D]
        cache      kv of each layer [2, B, S, N, D]
        rope_k     cos, sin [S + T, D / 2] of [cached | new] tokens, for un-roped keys
        vace       see `VaceTransformer`; None: no hints
        adapters   factors of all linear layers and scales, see `low_rank_branches`
        returns    flow [B, T, patch * out_dim] for `unpatchify`, then new_kv of each layer [2, B, T, N, D]
        """
        patches, time_sin, key_bias = tokens
        with beside(low_rank_branches(self, self.config, "transformer", adapters)):
            x = self.patch_embedding(patches)
            e = self.time_embedding(time_sin.to(x.dtype))
            e0 = self.time_projection(e).unflatten(2, (6, -1))
            hints = self.hints(x, e0, vace)
            new_kv = []
            for i, (block, cross_kv, kv) in enumerate(zip(self.blocks, cross, cache, strict=True)):
                x, new = block(x, e0, cross_kv, kv, key_bias, rope, rope_k)
                if i in hints:
                    x = x + hints[i]
                new_kv.append(new)
            return (self.head(x, e), *new_kv)

    def hints(self, x: Tensor, e0: Tensor, vace: Values | None) -> dict[int, Tensor]:
        """What is added to the tokens after a block, by its number; here nothing."""
        return {}

    def signature(self, cache_tokens: int | str, batch: int = 1, *, branch: bool = True) -> Signature:
        """Names and shapes for S = cache_tokens, a name if it is dynamic; F, T and S + T are dynamic.

        branch: with the inputs of a VACE branch, where there is one
        """
        sizes = self.axes(batch) | {"S": cache_tokens} | adapted_axes(self.config, "transformer")
        names = self.groups if branch else self.groups - {"vace"}
        groups = (group for group in GROUPS.values() if group.name in names)
        inputs = tuple(spec for group in groups for spec in group.specs(sizes))
        return Signature(inputs, sized(OUTPUTS, sizes))

    def axes(self, batch: int) -> dict[str, int | str]:
        """Sizes of the axes that the network fixes."""
        return self.config.axes(batch)


class TextKV(nn.Module):
    """Keys and values of every layer's cross attention, from the prompt's embedding.

    Parameters have the checkpoint's names, `text_embedding.*` and `blocks.<i>.cross_attn.{k,v,norm_k}.*`.
    """

    def __init__(self, config: TransformerConfig, adapted: bool = False) -> None:
        super().__init__()
        self.config, self.adapted = config, adapted
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, config.dim), nn.GELU(approximate="tanh"), Linear(config.dim, config.dim)
        )
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.num_layers))

    def forward(self, prompt_embeds: Tensor, adapters: Values | None = None) -> tuple[Tensor, ...]:
        """[B, text_len, text_dim], rows after the prompt being zero -> per layer [2, B, text_len, N, D]

        adapters: as of `Transformer.forward`
        """
        with beside(low_rank_branches(self, self.config, "text_kv", adapters)):
            context = self.text_embedding(prompt_embeds)
            return tuple(block(context) for block in self.blocks)

    def signature(self, batch: int = 1) -> Signature:
        """Names and shapes; nothing is dynamic but the rank of adapters."""
        config = self.config
        sizes = config.axes(batch) | adapted_axes(config, "text_kv")
        return Signature(
            inputs=(
                TensorSpec("prompt_embeds", (batch, config.text_len, config.text_dim)),
                *(GROUPS[ADAPTERS].specs(sizes) if self.adapted else ()),
            ),
            outputs=sized(GROUPS["cross"].tensors, config.axes(batch)),
        )


class TextBlock(nn.Module):
    """What a block has to do with the prompt."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.cross_attn = CrossAttentionKV(config)

    def forward(self, context: Tensor) -> Tensor:
        """[B, text_len, dim] -> [2, B, text_len, N, D]"""
        kv: Tensor = self.cross_attn(context)
        return kv


class CrossAttentionKV(nn.Module):
    """The part of a cross attention that sees only the prompt."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        self.k, self.v = Linear(config.dim, config.dim), Linear(config.dim, config.dim)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def forward(self, context: Tensor) -> Tensor:
        """[B, text_len, dim] -> [2, B, text_len, N, D]"""
        k, v = self.norm_k(self.k(context)), self.v(context)
        return torch.stack([k, v]).reshape(2, *context.shape[:2], *self.heads)


def low_rank_branches(
    module: nn.Module, config: TransformerConfig, network: Network, adapters: Values | None
) -> dict[nn.Module, Branch]:
    """What adapters add to the layers of a network; nothing without them.

    adapters: down [rows of all layers, R], up [R, columns of all layers], scale float32 [R], in the order of
    `adapted_layers`
    """
    if adapters is None:
        return {}
    down, up, scale = adapters
    return {
        module.get_submodule(layer.name): Branch(
            down.narrow(0, layer.first_row, layer.rows),
            up.narrow(1, layer.first_column, layer.columns),
            scale,
        )
        for layer in adapted_layers(config, network)
    }


@fusible
def add_gated(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """x + y * factor; x, y [B, T, dim], factor [B, F, dim], one vector per latent frame."""
    gated = y.reshape(*factor.shape[:2], -1, y.shape[2]) * factor.unsqueeze(2)
    return x + gated.reshape(x.shape)
