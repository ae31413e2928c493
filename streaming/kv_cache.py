"""The self-attention cache: a ring of latent frames behind a sink that stays (pipelines-common.md 9).

Which frame lies in which slot is kept on the host; evicting a frame moves no data, its slot is simply taken
by a new frame. Attention does not depend on the order of the slots: positions are inside the rotated keys,
and `key_bias` hides the slots that are empty (serving.md 8.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from streaming.transformer import visible


@dataclass(frozen=True, slots=True)
class CachedFrame:
    """One latent frame in the ring."""

    slot: int
    frame: int  # its position in the stream


@dataclass(frozen=True, slots=True)
class Ring:
    """Which frames a cache holds. Lengths in latent frames; `held` is in order of age, oldest first.

    The first `sink` frames of `held` are never evicted.
    """

    capacity: int
    sink: int
    held: tuple[CachedFrame, ...] = ()

    def oldest(self, frames: int) -> "Ring":
        """Only the first `frames` of what is held; 0 clears the ring."""
        return replace(self, held=self.held[:frames])

    def with_room_for(self, frames: int, window: int) -> "Ring":
        """Evict so that what is held and `frames` new ones are at most `window` frames."""
        surplus = max(len(self.held) + frames - window, 0)
        return replace(self, held=self.held[: self.sink] + self.held[self.sink + surplus :])

    def extended(self, frames: Sequence[int]) -> tuple["Ring", dict[int, int]]:
        """With these frames after the held ones; those that do not fit behind the sink are evicted.

        Returns the ring, and for each new frame that it holds, its index in `frames` -> its slot. A frame
        that stays keeps its slot. When more frames come than fit, the surplus ones are never held.
        """
        candidates: list[CachedFrame | int] = [*self.held, *range(len(frames))]
        surplus = max(len(candidates) - self.capacity, 0)
        kept = candidates[: self.sink] + candidates[self.sink + surplus :]
        stay = [entry for entry in kept if isinstance(entry, CachedFrame)]
        taken = {entry.slot for entry in stay}
        free = [slot for slot in range(self.capacity) if slot not in taken]
        placed = dict(zip([entry for entry in kept if isinstance(entry, int)], free, strict=False))
        held = (*stay, *(CachedFrame(slot, frames[index]) for index, slot in placed.items()))
        return replace(self, held=held), placed


@dataclass(frozen=True, eq=False, slots=True)
class KVCache:
    """Keys and values of the frames in a ring.

    layers             per layer [2, B, S, N, D], keys (0) rotated and values (1); S is the capacity in tokens
    tokens_per_frame   tokens of one latent frame

    Only `append` writes to `layers`, and only to slots of frames that its result does not hold any more:
    until then, a cache that was derived from this one may be thrown away, and this one used again.
    """

    layers: tuple[Tensor, ...]
    ring: Ring
    tokens_per_frame: int

    def oldest(self, frames: int) -> "KVCache":
        """Only the first `frames` latent frames of what is held; 0 clears the cache."""
        return replace(self, ring=self.ring.oldest(frames))

    def with_room_for(self, frames: int, window: int) -> "KVCache":
        """Evict so that what is held and `frames` new ones are at most `window` latent frames."""
        return replace(self, ring=self.ring.with_room_for(frames, window))

    def key_bias(self, new_tokens: int) -> Tensor:
        """Key bias [1, 1, 1, S + new_tokens], float32: held frames and new tokens are visible.

        It is shared with other callers: do not change it.
        """
        return _key_bias(self.ring, self.tokens_per_frame, new_tokens)

    def append(self, new_kv: Sequence[Tensor], frames: Sequence[int]) -> "KVCache":
        """Write new frames into the ring, in place; this cache must not be used afterwards.

        new_kv   per layer [2, B, len(frames) * tokens_per_frame, N, D]
        frames   their positions in the stream, in order
        """
        ring, placed = self.ring.extended(frames)
        runs = _contiguous(placed)
        for layer, new in zip(self.layers, new_kv, strict=True):
            for index, slot, count in runs:
                layer[:, :, self._tokens(slot, count)] = new[:, :, self._tokens(index, count)]
        return replace(self, ring=ring)

    def rebuilt(self, new_kv: Sequence[Tensor], frames: Sequence[int]) -> "KVCache":
        """As `append`, but in memory of its own, so that this cache stays as it is."""
        held = self.ring.held
        fresh = replace(self, layers=tuple(map(torch.zeros_like, self.layers)), ring=self.ring.oldest(0))
        if held:
            kept = [self.in_order(layer) for layer in range(len(self.layers))]
            fresh = fresh.append(kept, [entry.frame for entry in held])
        return fresh.append(new_kv, frames)

    def in_order(self, layer: int) -> Tensor:
        """Keys and values of a layer by age, [2, B, held frames * tokens_per_frame, N, D]; a copy."""
        kv = self.layers[layer]
        frames = [kv[:, :, self._tokens(entry.slot, 1)] for entry in self.ring.held]
        return torch.cat([kv[:, :, :0], *frames], dim=2)

    def _tokens(self, frame: int, count: int) -> slice:
        return slice(frame * self.tokens_per_frame, (frame + count) * self.tokens_per_frame)


@lru_cache(maxsize=8)  # every step of a chunk asks for the same one
def _key_bias(ring: Ring, tokens_per_frame: int, new_tokens: int) -> Tensor:
    slots = torch.tensor([entry.slot for entry in ring.held], dtype=torch.int64)
    tokens = (slots.unsqueeze(1) * tokens_per_frame + torch.arange(tokens_per_frame)).flatten()
    return visible(tokens.tolist(), ring.capacity * tokens_per_frame, new_tokens)


def _contiguous(placed: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """(first index, first slot, count) of stretches that one copy can move."""
    stretches = [list(g) for _, g in groupby(sorted(placed.items()), key=lambda item: item[1] - item[0])]
    return [(*stretch[0], len(stretch)) for stretch in stretches]
