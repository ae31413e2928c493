"""What a chunk is made under, as one object for the transformer's inputs (`streaming/network/inputs.py`)."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Conditions:
    """What conditions the chunks of a session, from the current one on. A new object wherever one changes.

    cross_kv      keys and values of the prompt, per layer [2, 1, text_len, N, D]; empty: not computed yet
    past_weight   of cached frames in the attention, see `KVCache.key_bias`; 1: plain

    Scales of adapters, and the context of a control video with its scale, are further fields.
    """

    cross_kv: tuple[Tensor, ...] = ()
    past_weight: float = 1.0

    def of_clean_frames(self) -> "Conditions":
        """For a pass that only gives keys and values to cache: it follows the text and nothing else."""
        return replace(self, past_weight=1.0)
