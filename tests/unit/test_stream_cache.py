"""Which frames a stream attends to: the loop and its ring against a slow model of the specification."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.kv_cache import Ring
from streaming.loop import ChunkRequest, StepTimer, generate_chunk
from streaming.prompts import PromptRequest
from streaming.session import Session
from streaming.specs import LONGLIVE, STREAMDIFFUSIONV2, TEXT, VIDEO, LoopSpec, OnPromptChange, PipelineSpec
from tests.glass_model import PROMPT, SIZE, Call, FrameNumbers, GlassModel


@dataclass(frozen=True)
class Ask:
    """What one chunk is asked for."""

    prompt: int = 1
    mode: str = TEXT
    init: bool = False
    steps: tuple[int, ...] = (1000, 500)
    manage: bool = True


@dataclass
class SlowStream:
    """pipelines-common.md 6 and 9 and pipeline-longlive.md 4, written as lists. A key is (frame, prompt)."""

    spec: LoopSpec
    start: int = 0
    cache: list[tuple[int, int]] = field(default_factory=list)
    last: Ask | None = None
    calls: list[Call] = field(default_factory=list)

    def chunk(self, ask: Ask) -> None:
        spec, last = self.spec, self.last
        forget = last is None or ask.init or ask.mode != last.mode
        updated = forget or last is None or ask.prompt != last.prompt
        steps_changed = last is not None and ask.steps != last.steps and ask.manage
        at_the_end = self.start >= spec.rope_positions - spec.frames_per_chunk
        if forget or steps_changed or at_the_end or (updated and ask.manage and ask.mode == VIDEO):
            self.start, self.cache = 0, []
        self.last = ask
        if updated and self.start > 0 and spec.on_prompt_change is OnPromptChange.RECACHE:
            self.recache(ask.prompt)
        count = spec.frames_per_chunk
        if self.start == 0:
            count = spec.first_video_frames if ask.mode == VIDEO else spec.first_text_frames
        new, sink = list(range(self.start, self.start + count)), spec.sink_size
        past = self.cache
        if len(past) + count > spec.local_attn_size:
            past = past[:sink] + past[len(past) - (spec.local_attn_size - count - sink) :]
        for _ in ask.steps:
            self.call(new, past, writes=False)
        self.call(new, past, writes=True)
        self.cache = past + [(frame, ask.prompt) for frame in new]
        self.start += count

    def recache(self, prompt: int) -> None:
        n = min(self.start, self.spec.local_attn_size)
        frames = list(range(self.start - n, self.start))
        kept = []
        if frames[0] > 0 and self.spec.global_sink:
            kept, frames = self.cache[: self.spec.sink_size], frames[self.spec.sink_size :]
        self.call(frames, kept, writes=True)
        self.cache = kept + [(frame, prompt) for frame in frames]

    def call(self, frames: list[int], past: list[tuple[int, int]], writes: bool) -> None:
        keys = sorted(frame + PROMPT * prompt for frame, prompt in past)
        self.calls.append(Call(tuple(frames), tuple(keys), rotated_right=True, writes=writes))


def run(glass: GlassModel, asks: list[Ask]) -> Session:
    """A stream of chunks; noise alone decides about the latents, so that frames are their numbers."""
    model, noise = glass.model(), FrameNumbers()
    session = Session.begin(model)
    for ask in asks:
        request = ChunkRequest(
            prompts=PromptRequest(((str(ask.prompt), 1.0),)),
            steps=ask.steps,
            seed=0,
            mode=ask.mode,
            init_cache=ask.init,
            manage_cache=ask.manage,
            noise_scale=1.0,
            noise_controller=False,
            video=np.zeros((12, SIZE, SIZE, 3), np.uint8),
        )
        for _ in generate_chunk(model, session, request, noise, StepTimer()):
            pass
    return session


def loop_of(pipeline: PipelineSpec, **changes: object) -> LoopSpec:
    assert pipeline.loop is not None
    return replace(pipeline.loop, rope_positions=40, **changes)  # type: ignore[arg-type]


LOOPS = {
    "longlive": loop_of(LONGLIVE),
    "no_global_sink": loop_of(LONGLIVE, global_sink=False),
    "small_window": loop_of(LONGLIVE, local_attn_size=7, sink_size=2),
    "no_sink": loop_of(LONGLIVE, sink_size=0),
    "streamdiffusionv2": loop_of(STREAMDIFFUSIONV2),
}
asks = st.builds(
    Ask,
    prompt=st.sampled_from([1, 1, 1, 1, 2, 3]),
    mode=st.sampled_from([TEXT] * 8 + [VIDEO]),
    init=st.sampled_from([False] * 15 + [True]),
    steps=st.sampled_from([(1000, 500)] * 9 + [(1000,)]),
    manage=st.sampled_from([True, True, False]),
)
video_asks = asks.map(lambda ask: replace(ask, mode=TEXT if ask.mode == VIDEO else VIDEO))


@pytest.mark.parametrize("name", LOOPS)
@settings(max_examples=40, deadline=None)
@given(
    spare=st.sampled_from([0, 0, 1, 3]),
    asked=st.lists(asks, min_size=1, max_size=16) | st.lists(video_asks, min_size=1, max_size=16),
)
def test_every_call_attends_to_the_frames_of_the_specification(
    name: str, spare: int, asked: list[Ask]
) -> None:
    spec = LOOPS[name]
    slow = SlowStream(spec)
    glass = GlassModel(spec, spec.cache_frames + spare)

    session = run(glass, asked)
    for ask in asked:
        slow.chunk(ask)

    assert glass.calls == slow.calls
    assert session.start == slow.start


@pytest.mark.parametrize(("mode", "last"), [(TEXT, 1020), (VIDEO, 1018)])
def test_a_long_stream_starts_again_where_the_positions_end(mode: str, last: int) -> None:
    assert LONGLIVE.loop is not None
    glass = GlassModel(LONGLIVE.loop, LONGLIVE.loop.cache_frames)

    run(glass, [Ask(mode=mode, steps=(1000,))] * 345)

    firsts = [call.frames[0] for call in glass.calls if call.writes]
    again = firsts.index(0, 1)
    assert firsts[again - 1] == last
    assert firsts[again:] == firsts[: 345 - again]
    assert all(call.rotated_right for call in glass.calls)


@pytest.mark.parametrize("name", LOOPS)
def test_the_cache_stays_as_large_as_it_was_built_and_holds_no_more_than_the_window(name: str) -> None:
    spec = LOOPS[name]
    glass = GlassModel(spec, spec.cache_frames)

    session = run(glass, [Ask(prompt=k // 7) for k in range(60)])

    assert [layer.shape[2] for layer in session.kv.slots.layers] == [spec.cache_frames]
    assert len(session.kv.ring.held) <= spec.cache_frames
    assert session.clean.shape[1] <= spec.local_attn_size


@settings(deadline=None)
@given(
    capacity=st.integers(3, 12),
    sink=st.integers(0, 3),
    batches=st.lists(st.integers(1, 14), min_size=1, max_size=12),
)
def test_a_frame_that_stays_in_the_ring_keeps_its_slot_and_no_slot_is_taken_twice(
    capacity: int, sink: int, batches: list[int]
) -> None:
    ring, first = Ring(capacity, sink), 0

    for count in batches:
        before = {entry.frame: entry.slot for entry in ring.held}
        ring, placed = ring.extended(range(first, first + count))
        first += count
        after = {entry.frame: entry.slot for entry in ring.held}

        assert all(before[frame] == slot for frame, slot in after.items() if frame in before)
        assert len(set(after.values())) == len(after) == min(first, capacity)
        recent = range(max(first - capacity, 0) + sink, first)
        assert list(after) == [*range(min(sink, first)), *recent]
        assert {after[first - count + index] for index in placed} == set(placed.values())
