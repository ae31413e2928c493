"""The self-attention cache: a ring of latent frames behind a sink that stays (pipelines-common.md 9).

Which frame lies in which slot is kept on the host; evicting a frame moves no data, its slot is simply taken
by a new frame. Attention does not depend on the order of the slots: positions are inside the rotated keys or
come as tables by slot, and `key_bias` hides the slots that are empty (serving.md 8.3).

Frames that are worth more than their slot (a sink that is averaged, a memory bank) are kept as tensors of
their own that nothing changes, so that a chunk that fails leaves no trace; `ready` copies those that changed
to their slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from streaming.cache.attention_bias import key_bias
from streaming.cache.ema_sink import EmaSink


@dataclass(frozen=True, slots=True)
class CachedFrame:
    """One latent frame in the ring."""

    slot: int
    frame: int  # its position in the stream


@dataclass(frozen=True, slots=True)
class Ring:
    """Which frames a cache holds. Lengths in latent frames; `frames` is in order of age, oldest first.

    The first `sink` of `frames` are never evicted. When frames do not fit, so many are evicted at once
    that `keep` are left: all that later chunks read. A sink that averages sees the same evictions then,
    whatever the capacity.
    """

    capacity: int
    sink: int
    frames: tuple[CachedFrame, ...] = ()
    keep: int | None = None  # None: as many as fit

    def oldest(self, frames: int) -> "Ring":
        """Only the first `frames` of what is held; 0 clears the ring."""
        return replace(self, frames=self.frames[:frames])

    def before(self, frame: int) -> "Ring":
        """Only frames before this position in the stream."""
        return replace(self, frames=tuple(entry for entry in self.frames if entry.frame < frame))

    def with_room_for(self, frames: int, window: int) -> "Ring":
        """Evict so that what is held and `frames` new ones are at most `window` frames."""
        surplus = max(len(self.frames) + frames - window, 0)
        return replace(self, frames=self.frames[: self.sink] + self.frames[self.sink + surplus :])

    def extended(self, frames: Sequence[int]) -> tuple["Ring", dict[int, int]]:
        """With these frames after the held ones; those that do not fit behind the sink are evicted.

        Returns the ring, and for each new frame that it holds, its index in `frames` -> its slot. A frame
        that stays keeps its slot. When more frames come than fit, the surplus ones are never held.
        """
        candidates: list[CachedFrame | int] = [*self.frames, *range(len(frames))]
        keep = self.capacity if self.keep is None else self.keep
        surplus = len(candidates) - keep if len(candidates) > self.capacity else 0
        kept = candidates[: self.sink] + candidates[self.sink + surplus :]
        stay = [entry for entry in kept if isinstance(entry, CachedFrame)]
        taken = {entry.slot for entry in stay}
        free = [slot for slot in range(self.capacity) if slot not in taken]
        placed = dict(zip([entry for entry in kept if isinstance(entry, int)], free, strict=False))
        after = (*stay, *(CachedFrame(slot, frames[index]) for index, slot in placed.items()))
        return replace(self, frames=after), placed


@dataclass(frozen=True, eq=False, slots=True)
class Slots:
    """The memory of a cache: slots of one latent frame each, per layer.

    layers             per layer [2, B, S, N, D], keys (0) and values (1); S in tokens
    tokens_per_frame   tokens of one latent frame
    copies             per layer, slot -> the kept frame whose copy it holds
    """

    layers: tuple[Tensor, ...]
    tokens_per_frame: int
    copies: tuple[dict[int, Tensor], ...]

    @staticmethod
    def of(layers: tuple[Tensor, ...], tokens_per_frame: int) -> "Slots":
        return Slots(layers, tokens_per_frame, tuple({} for _ in layers))

    def read(self, layer: int, slot: int) -> Tensor:
        """A frame as it lies there: a view [2, B, tokens_per_frame, N, D]."""
        return self.layers[layer][:, :, self._tokens(slot, 1)]

    def write(self, layer: int, slot: int, kv: Tensor) -> None:
        """Write whole frames [2, B, n * tokens_per_frame, N, D] to the slots from `slot`."""
        count = kv.shape[2] // self.tokens_per_frame
        self.layers[layer][:, :, self._tokens(slot, count)] = kv
        for written in range(slot, slot + count):
            self.copies[layer].pop(written, None)

    def copy(self, layer: int, slot: int, frame: Tensor) -> None:
        """Copy a kept frame to a slot, unless it is there."""
        if self.copies[layer].get(slot) is not frame:
            self.write(layer, slot, frame)
            self.copies[layer][slot] = frame

    def _tokens(self, frame: int, count: int) -> slice:
        return slice(frame * self.tokens_per_frame, (frame + count) * self.tokens_per_frame)


@dataclass(frozen=True, eq=False, slots=True)
class KVCache:
    """Keys and values of the frames in a ring, and of a memory bank in the slots after the ring's.

    sink      averages evicted frames into the sink; None: they are gone
    bank      per layer the blocks of the bank, each [2, B, tokens_per_frame, N, D] and never changed; the
              same number in every layer
    padding   tokens at the end of the memory that stay zero, see `streaming/cache/attention_bias.py`

    Only `append` writes frames of the ring, and only to slots of frames that its result does not hold any
    more: until then, a cache that was derived from this one may be thrown away, and this one used again.
    """

    slots: Slots
    ring: Ring
    sink: EmaSink | None = None
    bank: tuple[tuple[Tensor, ...], ...] = ()
    padding: int = 0

    @property
    def bank_frames(self) -> int:
        """Latent frames of the bank that can be seen."""
        return len(self.bank[0]) if self.bank else 0

    def oldest(self, frames: int) -> "KVCache":
        """Only the first `frames` latent frames of what the ring holds; 0 clears it."""
        return self._without_later(self.ring.oldest(frames))

    def before(self, frame: int) -> "KVCache":
        """Without the frames from this position of the stream on, which are going to be made again."""
        return self._without_later(self.ring.before(frame))

    def with_room_for(self, frames: int, window: int) -> "KVCache":
        """Evict so that what is held and `frames` new ones are at most `window` latent frames."""
        return self._with_ring(self.ring.with_room_for(frames, window))

    def with_bank(self, bank: tuple[tuple[Tensor, ...], ...]) -> "KVCache":
        """With these blocks in sight; there have to be slots for them."""
        return replace(self, bank=bank)

    def key_bias(self, new_tokens: int, past_weight: float = 1.0) -> Tensor:
        """Key bias [1, 1, 1, S + new_tokens], float32: held frames, bank and new tokens are visible.

        past_weight   of all cached frames but the oldest, see `streaming/cache/attention_bias.py`

        It is shared with other callers: do not change it.
        """
        bank = range(self.ring.capacity, self.ring.capacity + self.bank_frames)
        slots = (*(entry.slot for entry in self.ring.frames), *bank)
        cached = self.slots.layers[0].shape[2] - self.padding
        return key_bias(slots, self.slots.tokens_per_frame, cached, self.padding, new_tokens, past_weight)

    def positions(self) -> list[int]:
        """By slot of the whole memory, the place of its frame in the order of age; 0 where there is none."""
        places = {entry.slot: place for place, entry in enumerate(self.ring.frames)}
        count = self.slots.layers[0].shape[2] // self.slots.tokens_per_frame
        return [places.get(slot, 0) for slot in range(count)]

    def ready(self) -> tuple[Tensor, ...]:
        """The memory, per layer [2, B, S, N, D], with kept frames that changed copied to their slots."""
        for layer in range(len(self.slots.layers)):
            for entry, frame in zip(self.ring.frames, self._sink_frames(layer), strict=False):
                self.slots.copy(layer, entry.slot, frame)
            for i, block in enumerate(self.bank[layer] if self.bank else ()):
                self.slots.copy(layer, self.ring.capacity + i, block)
        return self.slots.layers

    def append(self, new_kv: Sequence[Tensor], frames: Sequence[int]) -> "KVCache":
        """Write new frames into the ring, in place; this cache must not be used afterwards.

        new_kv   per layer [2, B, len(frames) * tokens_per_frame, N, D]
        frames   their positions in the stream, in order
        """
        ring, placed = self.ring.extended(frames)
        after = self._with_ring(ring)
        tokens = self.slots.tokens_per_frame
        for layer, new in enumerate(new_kv):
            for index, slot, count in _contiguous(placed):
                self.slots.write(layer, slot, new[:, :, index * tokens : (index + count) * tokens])
        return after._with_kept_sink()

    def rebuilt(self, new_kv: Sequence[Tensor], frames: Sequence[int]) -> "KVCache":
        """As `append`, but in memory of its own, so that this cache stays as it is."""
        before = self.ring.frames
        memory = Slots.of(tuple(map(torch.zeros_like, self.slots.layers)), self.slots.tokens_per_frame)
        fresh = replace(self, slots=memory, ring=self.ring.oldest(0))
        if before:
            kept = [self.in_order(layer) for layer in range(len(self.slots.layers))]
            fresh = fresh.append(kept, [entry.frame for entry in before])
        return fresh.append(new_kv, frames)

    def in_order(self, layer: int) -> Tensor:
        """Keys and values of a layer by age, [2, B, held frames * tokens_per_frame, N, D]; a copy."""
        kept = self._sink_frames(layer)
        others = [self.slots.read(layer, entry.slot) for entry in self.ring.frames[len(kept) :]]
        like = self.slots.layers[layer]
        return torch.cat([like[:, :, :0], *(frame.to(like.dtype) for frame in kept), *others], dim=2)

    def _sink_frames(self, layer: int) -> Sequence[Tensor]:
        return self.sink.frames[layer] if self.sink is not None and self.sink.frames else ()

    def _without_later(self, ring: Ring) -> "KVCache":
        sink = self.sink
        if sink is not None and len(ring.frames) < ring.sink:
            sink = sink.forgetting()
        return replace(self, ring=ring, sink=sink)

    def _with_kept_sink(self) -> "KVCache":
        """With a sink that is kept as it is made: its slots are going to hold averages."""
        if self.sink is None or self.sink.frames or len(self.ring.frames) < self.ring.sink:
            return self
        slots = [entry.slot for entry in self.ring.frames[: self.ring.sink]]
        layers = range(len(self.slots.layers))
        made = tuple(tuple(self.slots.read(i, slot).clone() for slot in slots) for i in layers)
        return replace(self, sink=replace(self.sink, frames=made))

    def _with_ring(self, ring: Ring) -> "KVCache":
        """Go on to this ring; what it does not hold any more is evicted."""
        evicted = [entry.slot for entry in self.ring.frames if entry not in ring.frames]
        if self.sink is None or not evicted:
            return replace(self, ring=ring)
        gone = [[self.slots.read(i, slot) for slot in evicted] for i in range(len(self.slots.layers))]
        return replace(self, ring=ring, sink=self.sink.absorbing(gone))


def _contiguous(placed: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """(first index, first slot, count) of stretches that one copy can move."""
    stretches = [list(g) for _, g in groupby(sorted(placed.items()), key=lambda item: item[1] - item[0])]
    return [(*stretch[0], len(stretch)) for stretch in stretches]
