"""The UMT5 encoder: token ids to prompt embeddings. Source of structure and parameter names: wan.md 6."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.graphs.layers import Linear, RMSNorm, attention
from export.graphs.signature import Signature
from streaming.errors import WanstreamError
from streaming.network.inputs import TensorSpec

HIDDEN = -1e30  # bias of a padding key; finite in bfloat16 too


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """Shape of a UMT5 encoder, by default UMT5-XXL. `seq_len` is the padded prompt length in tokens."""

    vocab: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    seq_len: int = 512

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TextEncoderConfig":
        """From a JSON object; unknown keys are ignored, missing ones take UMT5-XXL's values."""
        if config.get("shared_pos"):
            raise WanstreamError("the text encoder has one position table for all layers: use UMT5, not T5.")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], seq_len: int) -> "TextEncoderConfig":
        """From a checkpoint's tensor shapes. KeyError: not such a checkpoint.

        seq_len: the transformer's `text_len`, which is in its config.json
        """
        vocab, dim = shapes["token_embedding.weight"]
        buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
        return cls(
            vocab=vocab,
            dim=dim,
            dim_attn=shapes["blocks.0.attn.q.weight"][0],
            dim_ffn=shapes["blocks.0.ffn.fc1.weight"][0],
            num_heads=heads,
            num_layers=1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
            num_buckets=buckets,
            seq_len=seq_len,
        )


def relative_position_bucket(relative: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance, key index - query index (int64, any shape): T5's bidirectional rule.

    Half of the buckets are for each sign; of those, half are exact distances and half grow logarithmically.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    growth = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    logarithmic = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return (relative > 0).long() * half + torch.where(distance < exact, distance, logarithmic)


class PositionBias(nn.Module):
    """One layer's table of biases by bucket and head."""

    def __init__(self, num_buckets: int, num_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, num_heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """[L, L] bucket of each (query, key) -> [1, N, L, L]"""
        bias: Tensor = self.embedding(buckets)
        return bias.permute(2, 0, 1).unsqueeze(0)


class SelfAttention(nn.Module):
    """Multi-head attention without biases and, as in all of T5, without the 1 / sqrt(D) scale."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = Linear(config.dim, config.dim_attn, bias=False)
        self.k = Linear(config.dim, config.dim_attn, bias=False)
        self.v = Linear(config.dim, config.dim_attn, bias=False)
        self.o = Linear(config.dim_attn, config.dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, C], bias [B, N, L, L] -> [B, L, C]"""
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q, self.k, self.v))
        y: Tensor = self.o(attention(q, k, v, bias, scale=1.0).flatten(2))
        return y


class FeedForward(nn.Module):
    """fc2(fc1(x) * gelu(gate(x)))"""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(Linear(config.dim, config.dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return y


class Block(nn.Module):
    """One encoder layer; unlike T5's, each has its own position table."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.dim, config.eps)
        self.attn = SelfAttention(config)
        self.norm2 = RMSNorm(config.dim, config.eps)
        self.ffn = FeedForward(config)
        self.pos_embedding = PositionBias(config.num_buckets, config.num_heads)

    def forward(self, x: Tensor, buckets: Tensor, visible: Tensor) -> Tensor:
        """x [B, L, C], buckets [L, L], visible keys bool [B, 1, 1, L] -> [B, L, C]"""
        bias = self.pos_embedding(buckets).float()
        x = x + self.attn(self.norm1(x), torch.where(visible, bias, HIDDEN))
        x = x + self.ffn(self.norm2(x))
        return x


class TextEncoder(nn.Module):
    """UMT5 encoder. `encode` is the network; `forward`, the exported graph, also clears the padding rows."""

    buckets: Tensor

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.eps)
        position = torch.arange(config.seq_len, device="cpu")
        buckets = relative_position_bucket(
            position[None, :] - position[:, None], config.num_buckets, config.max_distance
        )
        self.register_buffer("buckets", buckets, persistent=False)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask int64 [B, L]; mask 1 for tokens, 0 for padding -> [B, L, C], all rows"""
        visible = (mask > 0)[:, None, None, :]
        x = self.token_embedding(ids)
        for block in self.blocks:
            x = block(x, self.buckets, visible)
        y: Tensor = self.norm(x)
        return y

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask int64 [B, L], L = seq_len -> prompt embeddings [B, L, C], exactly 0 where mask is 0"""
        x = self.encode(ids, mask)
        return torch.where((mask > 0)[..., None], x, 0.0)

    def signature(self) -> Signature:
        """Names and shapes; the batch axis "B" is dynamic: several prompts are encoded as one batch."""
        tokens = ("B", self.config.seq_len)
        return Signature(
            inputs=(TensorSpec("ids", tokens, integer=True), TensorSpec("mask", tokens, integer=True)),
            outputs=(TensorSpec("prompt_embeds", (*tokens, self.config.dim)),),
        )
