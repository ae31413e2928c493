"""What is added to the attention logits: which keys are seen, and how much they weigh.

The weight of past frames is Scope's `kv_cache_attention_bias` (pipeline-krea-realtime-video.md 4.3): below 1
it makes a stream depend less on what was before. The reference computes it in a kernel that fills the keys up
with zeros to a multiple of 128 and does not mask them: P keys take part with score 0 and value 0. They
weigh as much as `padding` zero keys of score ln(P / padding), which are here: the number of slots is fixed.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log

import torch
from torch import Tensor

HIDDEN = -1e4  # key bias of a slot that must not be attended to; its weight is exactly 0 in a float32 softmax
_MULTIPLE = 128  # of keys, in the reference's kernel


@lru_cache(maxsize=8)  # every step of a chunk asks for the same one
def key_bias(
    slots: tuple[int, ...],
    tokens_per_frame: int,
    cache_tokens: int,
    padding: int,
    new_tokens: int,
    past_weight: float,
) -> Tensor:
    """Key bias [1, 1, 1, cache_tokens + padding + new_tokens], float32, shared: do not change it.

    slots          of the cached latent frames that are seen, oldest first
    cache_tokens   of the cache's slots; after them come `padding` tokens that are zero, then the new ones
    past_weight    of the cached frames but the oldest, > 0; 1 is plain attention, without padding keys
    """
    bias = visible(_tokens(slots, tokens_per_frame), cache_tokens + padding, new_tokens)
    if past_weight != 1:
        bias[..., _tokens(slots[1:], tokens_per_frame)] = log(past_weight)
        missing = -(len(slots) * tokens_per_frame + new_tokens) % _MULTIPLE
        if missing and padding:
            bias[..., cache_tokens : cache_tokens + padding] = log(missing / padding)
    return bias


def visible(slots: Sequence[int], cache_tokens: int, new_tokens: int) -> Tensor:
    """Key bias [1, 1, 1, cache_tokens + new_tokens]: these slots of the cache and all new tokens attend."""
    bias = torch.full((cache_tokens + new_tokens,), HIDDEN)
    bias[cache_tokens:] = 0.0
    bias[torch.as_tensor(slots, dtype=torch.int64)] = 0.0
    return bias.reshape(1, 1, 1, -1)


def _tokens(slots: Sequence[int], tokens_per_frame: int) -> list[int]:
    return [slot * tokens_per_frame + i for slot in slots for i in range(tokens_per_frame)]
