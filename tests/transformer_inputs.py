"""Inputs of a transformer for tests of the graph alone."""

import torch.nn.functional as F
from torch import Tensor

from streaming.checkpoints.config import TransformerConfig


def pad_prompt(prompt_embeds: Tensor, text_len: int) -> Tensor:
    """Append zero rows: [B, rows, text_dim] -> [B, text_len, text_dim] (wan.md 2.2)."""
    return F.pad(prompt_embeds, (0, 0, 0, text_len - prompt_embeds.shape[1]))


def empty_caches(config: TransformerConfig, cache_tokens: int, like: Tensor, batch: int = 1) -> list[Tensor]:
    """Zeros for every layer, [2, B, cache_tokens, N, D], type and device of `like`."""
    shape = (2, batch, cache_tokens, config.num_heads, config.head_dim)
    return [like.new_zeros(shape) for _ in range(config.num_layers)]
