"""Which frames a stream attends to: the loop and its cache against a slow model of the specification."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from streaming.cache.kv_cache import Ring
from streaming.conditioning.prompts import PromptRequest
from streaming.loop import ChunkRequest, StepTimer, generate_chunk
from streaming.session import Session
from streaming.specs import (
    KREA_REALTIME_VIDEO,
    LONGLIVE,
    MEMFLOW,
    REWARD_FORCING,
    STREAMDIFFUSIONV2,
    TEXT,
    VIDEO,
    LoopSpec,
    OnPromptChange,
    PipelineSpec,
)
from tests.glass_model import SIZE, FrameNumbers, GlassModel
from tests.slow_stream import Ask, SlowStream


class EngineFailure(Exception):
    """What an engine of a test raises."""


def make_chunk(glass: GlassModel, session: Session, ask: Ask) -> None:
    """Noise alone decides about the latents, so that frames are their numbers."""
    request = ChunkRequest(
        prompt=PromptRequest(((str(ask.prompt), 1.0),)),
        steps=ask.steps,
        seed=0,
        mode=ask.mode,
        init_cache=ask.init,
        manage_cache=ask.manage,
        noise_scale=1.0,
        noise_controller=False,
        past_weight=ask.past_weight,
        video=np.zeros((12, SIZE, SIZE, 3), np.uint8),
    )
    for _ in generate_chunk(glass.loaded, session, request, FrameNumbers(), StepTimer()):
        pass


def run(glass: GlassModel, asks: list[Ask]) -> Session:
    session = Session.begin(glass.loaded)
    for ask in asks:
        make_chunk(glass, session, ask)
    return session


def loop_of(pipeline: PipelineSpec, **changes: object) -> LoopSpec:
    assert pipeline.loop is not None
    return replace(pipeline.loop, rope_positions=40, **changes)  # type: ignore[arg-type]


# A decay of a half, so that averages are exact numbers.
LOOPS = {
    "longlive": loop_of(LONGLIVE),
    "no_global_sink": loop_of(LONGLIVE, global_sink=False),
    "small_window": loop_of(LONGLIVE, local_attn_size=7, sink_size=2),
    "no_sink_nor_bank": loop_of(MEMFLOW, sink_size=0, record_interval=None),
    "streamdiffusionv2": loop_of(STREAMDIFFUSIONV2),
    "reward-forcing": loop_of(REWARD_FORCING, sink_ema_decay=0.5),
    "unequal_eviction": loop_of(REWARD_FORCING, sink_ema_decay=0.5, first_video_advance=None),
    "memflow": loop_of(MEMFLOW),
    "every_chunk_recorded": loop_of(MEMFLOW, record_interval=1, bank_size=2),
    "krea-realtime-video": loop_of(KREA_REALTIME_VIDEO),
    "bank_and_averaged_sink": loop_of(  # as no pipeline has them together
        MEMFLOW,
        frames_per_chunk=2,
        first_text_frames=2,
        first_video_frames=3,
        local_attn_size=5,
        sink_size=1,
        sink_ema_decay=0.5,
        on_prompt_change=OnPromptChange.KEEP,
        bank_size=2,
        record_interval=2,
    ),
}


class StreamMachine(RuleBasedStateMachine):
    """One stream of a pipeline. Every rule makes a chunk, or one that an engine ends early."""

    def __init__(self, spec: LoopSpec) -> None:
        super().__init__()
        self.spec, self.slow = spec, SlowStream(spec)
        self.fail_in: int | None = None  # engine calls until one fails
        self.compared = 0
        self.start(0, TEXT)

    @initialize(spare=st.sampled_from([0, 1, 2, 3]), mode=st.sampled_from([TEXT, VIDEO]))
    def start(self, spare: int, mode: str) -> None:
        """spare: slots that the engine has beyond what later chunks read; three hold the whole window."""
        self.glass = GlassModel(self.spec, self.spec.cache_frames + spare, before_call=self.count_down)
        self.session = Session.begin(self.glass.loaded)
        self.ask = Ask(mode=mode)

    def count_down(self) -> None:
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                raise EngineFailure

    def make(self, ask: Ask) -> None:
        make_chunk(self.glass, self.session, ask)
        self.slow.chunk(ask)
        self.ask = ask

    @rule(count=st.integers(1, 4))
    def more(self, count: int) -> None:
        for _ in range(count):
            self.make(self.ask)

    @rule(prompt=st.sampled_from([1, 2, 3, -1]), manage=st.booleans())
    def new_prompt(self, prompt: int, manage: bool) -> None:
        self.make(replace(self.ask, prompt=prompt, manage=manage))

    @rule()
    def other_mode(self) -> None:
        self.make(replace(self.ask, mode=TEXT if self.ask.mode == VIDEO else VIDEO))

    @rule()
    def reset(self) -> None:
        self.make(replace(self.ask, init=True))
        self.ask = replace(self.ask, init=False)

    @rule(steps=st.sampled_from([(1000, 500), (1000,)]), manage=st.booleans())
    def other_steps(self, steps: tuple[int, ...], manage: bool) -> None:
        self.make(replace(self.ask, steps=steps, manage=manage))

    @rule(weight=st.sampled_from([1.0, 0.5]))
    def other_weight_of_the_past(self, weight: float) -> None:
        if self.spec.padding_keys:
            self.make(replace(self.ask, past_weight=weight))

    @rule(prompt=st.sampled_from([1, 2]), after=st.integers(0, 9))
    def failing_chunk(self, prompt: int, after: int) -> None:
        """A chunk that fails is as if it had never been asked for."""
        ask, made = replace(self.ask, prompt=prompt), len(self.glass.calls)
        self.fail_in = after
        try:
            make_chunk(self.glass, self.session, ask)
        except EngineFailure:
            del self.glass.calls[made:]
        else:
            self.slow.chunk(ask)
            self.ask = ask
        finally:
            self.fail_in = None

    @invariant()
    def every_call_attends_to_what_the_specification_says(self) -> None:
        new = slice(self.compared, None)
        assert self.glass.calls[new] == self.slow.calls[new]
        assert self.session.start == self.slow.start
        self.compared = len(self.slow.calls)


@pytest.mark.parametrize("name", LOOPS)
def test_every_call_attends_to_the_frames_of_the_specification(name: str) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: StreamMachine(LOOPS[name]),
        settings=settings(max_examples=20, stateful_step_count=12, deadline=None),
    )


@pytest.mark.parametrize(("mode", "last"), [(TEXT, 1020), (VIDEO, 1018)])
def test_a_long_stream_starts_again_where_the_positions_end(mode: str, last: int) -> None:
    assert LONGLIVE.loop is not None
    glass = GlassModel(LONGLIVE.loop, LONGLIVE.loop.cache_frames)

    run(glass, [Ask(mode=mode, steps=(1000,))] * 345)

    firsts = [call.frames[0] for call in glass.calls if call.writes]
    again = firsts.index(0, 1)
    assert firsts[again - 1] == last
    assert firsts[again:] == firsts[: 345 - again]
    assert all(call.positions == tuple(map(int, call.frames)) for call in glass.calls)


@pytest.mark.parametrize("name", LOOPS)
def test_the_cache_stays_as_large_as_it_was_built_and_holds_no_more_than_the_window(name: str) -> None:
    spec = LOOPS[name]
    glass = GlassModel(spec, spec.cache_frames)

    session = run(glass, [Ask(prompt=k // 7) for k in range(60)])

    assert [layer.shape[2] for layer in session.kv.slots.layers] == [spec.cache_tokens(1)]
    assert len(session.kv.ring.frames) <= spec.cache_frames
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
        before = {entry.frame: entry.slot for entry in ring.frames}
        ring, placed = ring.extended(range(first, first + count))
        first += count
        after = {entry.frame: entry.slot for entry in ring.frames}

        assert all(before[frame] == slot for frame, slot in after.items() if frame in before)
        assert len(set(after.values())) == len(after) == min(first, capacity)
        recent = range(max(first - capacity, 0) + sink, first)
        assert list(after) == [*range(min(sink, first)), *recent]
        assert {after[first - count + index] for index in placed} == set(placed.values())
