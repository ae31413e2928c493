"""What a chunk is made under, as one object for the transformer's inputs (`streaming/network/inputs.py`)."""

from dataclasses import dataclass, replace

from torch import Tensor

from streaming.adapters.stack import ScaledStack


@dataclass(frozen=True, eq=False, slots=True)
class VaceContext:
    """What the VACE branch makes its hints from, in all denoising calls of one chunk (vace.md 4 and 6).

    latents    [1, F', 96, h, w]; frames beyond the chunk's fall away, frames of the chunk beyond these have
               no context
    scale      of the hints
    cross_kv   keys and values of the prompt, per block of the branch [2, 1, text_len, N, D]
    padding    whether the zero keys of the reference's attention take part
    """

    latents: Tensor
    scale: float
    cross_kv: tuple[Tensor, ...]
    padding: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Conditions:
    """What conditions the chunks of a session, from the current one on. A new object wherever one changes.

    cross_kv      keys and values of the prompt, per layer [2, 1, text_len, N, D]; empty: not computed yet
    past_weight   of cached frames in the attention, see `KVCache.key_bias`; 1: plain
    vace          of this chunk alone; None: no hints
    adapters      LoRA files beside the weights, and their scales; None: the engines take none
    """

    cross_kv: tuple[Tensor, ...] = ()
    past_weight: float = 1.0
    vace: VaceContext | None = None
    adapters: ScaledStack | None = None

    def of_clean_frames(self) -> "Conditions":
        """For a pass that only gives keys and values to cache: it follows the text and the adapters."""
        return replace(self, past_weight=1.0, vace=None)
