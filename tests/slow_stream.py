"""What a stream attends to, written from the specification as lists, for one token per latent frame.

Sources: pipelines-common.md 6 and 9, pipeline-longlive.md 4, pipeline-reward-forcing.md 3 and 4,
pipeline-memflow.md 4 and 5, pipeline-krea-realtime-video.md 4 and 5. Contents of keys as in `glass_model`.
"""

from dataclasses import dataclass, field

from streaming.specs import TEMPORAL_FACTOR, TEXT, VIDEO, CachedKeys, LoopSpec, OnPromptChange
from tests.glass_model import PICTURES, PROMPT, Call, Key


@dataclass(frozen=True)
class Ask:
    """What one chunk is asked for."""

    prompt: int = 1
    mode: str = TEXT
    init: bool = False
    steps: tuple[int, ...] = (1000, 500)
    manage: bool = True
    past_weight: float = 1.0


@dataclass
class Cached:
    """A frame in the cache: its number, and what its keys hold."""

    frame: int
    content: float


@dataclass
class SlowStream:
    """A stream chunk by chunk; `calls` is what the transformer has to be asked."""

    spec: LoopSpec
    start: int = 0
    index: int = 0
    cache: list[Cached] = field(default_factory=list)
    bank: list[float] = field(default_factory=list)
    pending: float = 0.0
    records: int = 0
    pictures: list[float] = field(default_factory=list)  # all of them since the last reset
    last: Ask | None = None
    calls: list[Call] = field(default_factory=list)

    def chunk(self, ask: Ask) -> None:
        spec, last = self.spec, self.last
        forget = last is None or ask.init or ask.mode != last.mode
        updated = forget or last is None or ask.prompt != last.prompt
        steps_changed = last is not None and ask.steps != last.steps and ask.manage
        at_the_end = self.start >= spec.rope_positions - spec.frames_per_chunk
        if forget or steps_changed or at_the_end or (updated and ask.manage and ask.mode == VIDEO):
            self.reset()
        self.last = ask
        first = self.start == 0
        count = spec.frames_per_chunk
        if first:
            count = spec.first_video_frames if ask.mode == VIDEO else spec.first_text_frames
        new = list(range(self.start, self.start + count))
        if spec.cached_keys is CachedKeys.RECOMPUTED:
            self.recompute(ask)
        else:
            self.roll(ask, updated, count)
        for _ in ask.steps:
            self.call(new, ask.past_weight, writes=False)
        if spec.cached_keys is not CachedKeys.RECOMPUTED:
            self.call(new, 1.0, writes=True)
            if spec.bank_size and spec.record_interval and self.index % spec.record_interval == 0:
                self.pending = new[0] + PROMPT * ask.prompt
                self.records += 1
            self.cache += [Cached(frame, frame + PROMPT * ask.prompt) for frame in new]
        for frame in new:
            parts = TEMPORAL_FACTOR if self.pictures else 1
            self.pictures += [frame + i / PICTURES for i in range(parts)]
        shorter = first and ask.mode == VIDEO and spec.first_video_advance is not None
        self.start += (spec.first_video_advance or 0) if shorter else count
        self.index += 1

    def reset(self) -> None:
        self.start = self.index = self.records = 0
        self.cache, self.bank, self.pictures = [], [], []

    def roll(self, ask: Ask, updated: bool, count: int) -> None:
        """The cache that a clean pass writes: a new prompt, the memory bank, eviction."""
        spec, text = self.spec, None if updated else ask.prompt
        self.cache = [entry for entry in self.cache if entry.frame < self.start]
        if updated and self.start > 0:
            self.flush(text)
            if spec.on_prompt_change is OnPromptChange.RECACHE:
                self.recache(ask.prompt)
        self.flush(text)
        sink, over = spec.sink_size, len(self.cache) + count - spec.local_attn_size
        if over > 0:
            gone = self.cache[sink : sink + over]
            del self.cache[sink : sink + over]
            if spec.sink_ema_decay is not None:
                self.average(gone, spec.sink_ema_decay)

    def average(self, gone: list[Cached], decay: float) -> None:
        sink = self.cache[: self.spec.sink_size]
        for kept, evicted in zip(sink, gone, strict=False):
            weight = decay if len(gone) == len(sink) else 0.0
            kept.content = weight * kept.content + (1 - weight) * evicted.content

    def flush(self, text: int | None) -> None:
        if self.records == 0:
            return
        if self.records <= self.spec.bank_size:
            self.bank = [*self.bank[: self.records - 1], self.pending]
        else:
            best_first = sorted(self.bank, key=lambda key: -key * (text or 0))
            self.bank = [*best_first[: self.spec.bank_size - 1], self.pending]

    def recache(self, prompt: int) -> None:
        n = min(self.start, self.spec.local_attn_size)
        frames = list(range(self.start - n, self.start))
        kept = []
        if frames[0] > 0 and self.spec.global_sink:
            kept, frames = self.cache[: self.spec.sink_size], frames[self.spec.sink_size :]
        self.cache = kept
        self.call(frames, 1.0, writes=True)
        self.cache = kept + [Cached(frame, frame + PROMPT * prompt) for frame in frames]

    def recompute(self, ask: Ask) -> None:
        """The cache that is made anew of clean frames before every chunk but the first."""
        self.cache = []
        if self.start == 0:
            return
        context = self.spec.context_frames
        first: float = 0
        if self.start - self.spec.frames_per_chunk >= context:
            first = self.pictures[-(1 + (context - 1) * TEMPORAL_FACTOR)]
        frames = [first, *range(self.start - context + 1, self.start)]
        self.call(frames, 1.0, writes=True, position=0)
        self.cache = [Cached(i, frame + PROMPT * ask.prompt) for i, frame in enumerate(frames)]

    def call(
        self, frames: list[int] | list[float], past_weight: float, writes: bool, position: int | None = None
    ) -> None:
        read_in_place = self.spec.cached_keys is CachedKeys.UNROTATED
        keys: list[Key] = []
        for place, entry in enumerate(self.cache):
            weight = past_weight if place > 0 else 1.0
            keys.append((entry.content, place if read_in_place else None, weight))
        keys += [(content, None, 1.0) for content in self.bank]
        padding = self.spec.padding_keys
        missing = -(len(self.cache) + len(frames)) % 128 if past_weight != 1 and padding else 0
        if missing:
            keys += [(0.0, None, round(missing / padding, 4))] * padding
        absolute = self.spec.cached_keys is CachedKeys.ROTATED
        start = int(frames[0]) if absolute else len(self.cache)
        positions = tuple(range(start, start + len(frames)))
        self.calls.append(Call(tuple(map(float, frames)), positions, tuple(sorted(keys)), writes))
