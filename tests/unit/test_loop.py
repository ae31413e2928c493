"""Whole streams on real graphs with random weights: seeds, sessions, resets, and chunks that end early."""

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streaming.engines.engine import Engine, EngineWrapper
from streaming.errors import NotFiniteError, WanstreamError
from streaming.network.video import to_model
from streaming.noise import SeededNoise, motion_noise_scale
from streaming.session import Session
from streaming.specs import LONGLIVE, SPECS, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline, ModelStream, chunk_request
from streaming.triton.sessions import ChunkCancelled, Images, Stream, StreamSession
from tests.tiny_pipeline import HEIGHT, VAES, WIDTH, Hook, camera, chunk, parameters, tiny_pipeline

BIRD = [{"text": "a bird", "weight": 1.0}]


def frames_of(stream: Stream, chunks: int, **changes: Any) -> list[Images]:
    return [chunk(stream, **changes)[0] for _ in range(chunks)]


def assert_same(actual: list[Images], expected: list[Images]) -> None:
    assert [pictures.shape for pictures in actual] == [pictures.shape for pictures in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def session_of(stream: Stream) -> Any:
    assert isinstance(stream, ModelStream)
    return stream.session


def test_a_seed_gives_the_same_frames_in_every_stream() -> None:
    pipeline = tiny_pipeline()

    first = frames_of(pipeline.open_stream(), 6, base_seed=7)

    assert_same(frames_of(pipeline.open_stream(), 6, base_seed=7), first)
    assert not np.array_equal(frames_of(pipeline.open_stream(), 1, base_seed=8)[0], first[0])


@pytest.mark.parametrize("spec", [spec for spec in SPECS.values() if spec.loop], ids=lambda spec: spec.id)
def test_two_sessions_give_what_each_gives_alone(spec: PipelineSpec) -> None:
    """Until windows have moved on and banks are full; prompts, seeds and modes differ and change."""
    assert spec.loop is not None
    often = replace(spec.loop, record_interval=1) if spec.loop.bank_size else spec.loop
    pipeline = tiny_pipeline(spec=replace(spec, loop=often))
    kinds: list[list[dict[str, Any]]] = [
        [{"base_seed": 1}] * 6 + [{"base_seed": 1, "prompts": BIRD}] * 2,
        [{"base_seed": 2, "prompts": BIRD}] * 5 + [{"base_seed": 2, "video": camera(k)} for k in range(3)],
    ]
    alone = [[chunk(stream, **step)[0] for step in kind] for kind, stream in opened(pipeline, kinds)]

    streams = opened(pipeline, kinds)
    turns = [[chunk(stream, **kind[k])[0] for kind, stream in streams] for k in range(8)]

    for i, expected in enumerate(alone):
        assert_same([turn[i] for turn in turns], expected)


def opened(pipeline: ModelPipeline, kinds: list[list[dict[str, Any]]]) -> list[tuple[Any, Stream]]:
    return [(kind, pipeline.open_stream()) for kind in kinds]


@pytest.mark.parametrize("vae_type", VAES)
def test_frame_counts_are_those_of_the_specification(vae_type: str) -> None:
    stream = tiny_pipeline(vae_type=vae_type).open_stream()

    text = [len(frames) for frames in frames_of(stream, 3)]
    video = [len(chunk(stream, camera(k))[0]) for k in range(3)]

    assert text == [9, 12, 12]
    assert video == [13, 12, 12]
    assert session_of(stream).start == 10


def test_a_bfloat16_stream_shows_what_the_float32_one_shows() -> None:
    streams = [tiny_pipeline(dtype=dtype).open_stream() for dtype in (torch.float32, torch.bfloat16)]

    for changes in ({}, {}, SWITCH, SWITCH):
        full, half = (chunk(stream, **changes)[0].astype(np.float32).ravel() for stream in streams)
        assert np.corrcoef(full, half)[0, 1] > 0.99

    assert all(layer.dtype == torch.bfloat16 for layer in session_of(streams[1]).kv.slots.layers)


def test_pictures_come_with_each_decoded_latent_frame_and_the_end_is_marked() -> None:
    stream = tiny_pipeline().open_stream()

    groups = list(stream.next_chunk(parameters(), None, lambda: False))

    assert [len(pictures) for pictures, _ in groups] == [1, 4, 4, 0]
    assert [meta.get("last", False) for _, meta in groups] == [False, False, False, True]
    assert groups[0][0].shape == (1, HEIGHT, WIDTH, 3)
    assert groups[-1][1]["timings_ms"].keys() == {"text", "denoise", "decode", "clean"}


def stop_at(k: int) -> Callable[[int], None]:
    def action(number: int) -> None:
        if number == k:
            raise WanstreamError("the engine was told to fail")

    return action


def engine_calls(**changes: Any) -> int:
    """How many engine calls the chunk has that the tests below end early."""
    hook = Hook()
    stream = before_the_chunk(hook)
    hook.calls = 0
    chunk(stream, **changes)
    return hook.calls


def before_the_chunk(hook: Hook) -> Stream:
    """A stream whose window has moved on, so that all steps are behind it once."""
    stream = tiny_pipeline(hook).open_stream()
    assert isinstance(stream, ModelStream)
    stream.session = copy.deepcopy(session_after_five_chunks())
    return stream


@cache
def session_after_five_chunks() -> Session:
    stream = tiny_pipeline().open_stream()
    frames_of(stream, 5)
    assert isinstance(stream, ModelStream)
    return stream.session


@cache
def frames_after_it(retry: str) -> list[Images]:
    """The next chunks of that stream when nothing goes wrong."""
    return frames_of(before_the_chunk(Hook()), 2, **RETRIES[retry])


SWITCH: dict[str, Any] = {"prompts": BIRD}  # re-caches: text, re-cache, 2 denoise, 3 decode, clean
RETRIES: dict[str, dict[str, Any]] = {"same prompt again": SWITCH, "old prompt again": {}}


def test_a_prompt_switch_has_the_calls_that_are_ended_below() -> None:
    assert engine_calls(**SWITCH) == 8


@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("k", range(8))
def test_a_chunk_that_fails_at_any_engine_call_leaves_no_trace(k: int, retry: str) -> None:
    hook = Hook()
    stream = before_the_chunk(hook)

    hook.calls, hook.action = 0, stop_at(k)
    with pytest.raises(WanstreamError, match="told to fail"):
        chunk(stream, **SWITCH)
    hook.action = lambda number: None

    assert_same(frames_of(stream, 2, **RETRIES[retry]), frames_after_it(retry))


@pytest.mark.parametrize("k", range(8))
def test_a_chunk_that_is_cancelled_before_any_engine_call_leaves_no_trace(k: int) -> None:
    hook = Hook()
    stream = before_the_chunk(hook)

    hook.calls = 0
    with pytest.raises(ChunkCancelled):
        for _ in stream.next_chunk(parameters(**SWITCH), None, lambda: hook.calls >= k):
            pass

    assert hook.calls == k
    assert_same(frames_of(stream, 2), frames_after_it("old prompt again"))


@pytest.mark.parametrize("k", range(8))
def test_a_first_chunk_of_video_is_cancelled_before_any_of_its_engine_calls(k: int) -> None:
    hook = Hook()
    stream, fresh = tiny_pipeline(hook).open_stream(), tiny_pipeline().open_stream()

    with pytest.raises(ChunkCancelled):  # text, 2 encode, 2 denoise, 4 decode, clean
        for _ in stream.next_chunk(parameters(input_mode="video"), camera(), lambda: hook.calls >= k):
            pass

    assert hook.calls == k
    assert_same([chunk(stream, camera())[0]], [chunk(fresh, camera())[0]])


def test_a_chunk_that_is_abandoned_after_its_first_pictures_leaves_no_trace() -> None:
    stream = before_the_chunk(Hook())

    groups = iter(stream.next_chunk(parameters(**SWITCH), None, lambda: False))
    next(groups)
    del groups

    assert_same(frames_of(stream, 2), frames_after_it("old prompt again"))


def test_a_failed_chunk_in_video_mode_keeps_the_encoder_and_the_noise_controller() -> None:
    plain, hook = tiny_pipeline().open_stream(), Hook()
    stream = tiny_pipeline(hook).open_stream()
    for k in range(2):
        chunk(plain, camera(k))
        chunk(stream, camera(k))

    hook.calls, hook.action = 0, stop_at(2)
    with pytest.raises(WanstreamError):
        chunk(stream, camera(9))
    hook.action = lambda number: None

    assert_same([chunk(stream, camera(2))[0]], [chunk(plain, camera(2))[0]])


class Overflow(EngineWrapper):
    """An engine whose call number `at` comes to values that are no numbers."""

    def __init__(self, engine: Engine, at: int) -> None:
        super().__init__(engine)
        self.at, self.calls = at, 0

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        made = super().run(inputs, outputs)
        self.calls += 1
        spoilt = self.calls - 1 == self.at
        return {name: torch.full_like(v, torch.inf) for name, v in made.items()} if spoilt else made


@pytest.mark.parametrize("call", [0, 1, 2], ids=["denoise, first step", "denoise, last step", "clean pass"])
def test_an_overflow_fails_the_chunk_and_leaves_no_trace(call: int) -> None:
    pipeline = tiny_pipeline()
    model = pipeline.model
    overflow = Overflow(model.engines.transformer, at=6 + call)  # two chunks of three calls before
    pipeline.model = replace(model, engines=replace(model.engines, transformer=overflow))
    stream = pipeline.open_stream()
    frames_of(stream, 2)

    with pytest.raises(NotFiniteError, match="was thrown away"):
        chunk(stream)

    assert_same(frames_of(stream, 2), frames_of(tiny_pipeline().open_stream(), 4)[2:])


def test_a_session_of_the_server_makes_a_chunk_after_a_failed_one_as_if_that_had_not_been() -> None:
    hook = Hook()
    session = StreamSession(tiny_pipeline(hook).open_stream)
    reference = StreamSession(tiny_pipeline().open_stream)
    good = parameters()
    for each in (session, reference):
        for _ in range(2):
            list(each.generate(good, None, lambda: False))

    hook.calls, hook.action = 0, stop_at(3)
    with pytest.raises(WanstreamError):
        list(session.generate({**good, "prompts": BIRD}, None, lambda: False))
    hook.action = lambda number: None

    retried = list(session.generate(good, None, lambda: False))
    expected = list(reference.generate(good, None, lambda: False))
    assert_same([pictures for pictures, _ in retried], [pictures for pictures, _ in expected])
    assert [meta["chunk"] for _, meta in retried] == [2] * 4


def test_a_stream_passes_the_end_of_the_positions_by_starting_again() -> None:
    stream = tiny_pipeline(rope_positions=18).open_stream()

    pictures = frames_of(stream, 12)

    assert [len(frames) for frames in pictures] == [9, 12, 12, 12, 12] * 2 + [9, 12]
    assert_same(pictures[5:10], pictures[:5])
    assert session_of(stream).start == 6


def test_many_passes_over_the_positions_leave_a_session_as_large_as_the_first_one_and_finite() -> None:
    """With a new prompt in every pass, so that nothing of an earlier one may be kept."""
    stream = tiny_pipeline(rope_positions=18).open_stream()
    passes: list[list[int]] = []

    for number in range(3):
        sizes = []
        for k in range(5):
            chunk(stream, prompts=f"prompt {number}" if k >= 2 else f"prompt {number - 1}")
            sizes.append(len(pickle.dumps(session_of(stream))))  # with the whole storage of every view
            assert session_of(stream).clean.isfinite().all()
        passes.append(sizes)

    assert session_of(stream).start == 15
    for sizes in passes[1:]:
        assert sizes == pytest.approx(passes[0], rel=0.01)


def test_d1_a_change_of_mode_starts_everything_again() -> None:
    pipeline = tiny_pipeline()
    stream, fresh = pipeline.open_stream(), pipeline.open_stream()
    frames_of(stream, 3)

    changed = [chunk(stream, camera(k), manage_cache=False)[0] for k in range(2)]

    assert_same(changed, [chunk(fresh, camera(k), manage_cache=False)[0] for k in range(2)])


def test_a_new_seed_takes_effect_at_the_next_reset() -> None:
    pipeline = tiny_pipeline()
    stream, seed_1, seed_2 = (pipeline.open_stream() for _ in range(3))
    chunk(stream, base_seed=1)

    later = chunk(stream, base_seed=2)[0]
    again = chunk(stream, base_seed=2, init_cache=True)[0]

    assert_same([later], frames_of(seed_1, 2, base_seed=1)[1:])
    assert_same([again], frames_of(seed_2, 1, base_seed=2))


def test_a_prompt_changes_the_next_chunk() -> None:
    pipeline = tiny_pipeline()
    stays, changes = pipeline.open_stream(), pipeline.open_stream()
    assert_same(frames_of(stays, 2), frames_of(changes, 2))

    assert not np.array_equal(chunk(changes, prompts=BIRD)[0], chunk(stays)[0])


def test_a_transition_is_reported_until_its_last_chunk() -> None:
    stream = tiny_pipeline().open_stream()
    chunk(stream)
    transition = {"target_prompts": BIRD, "num_steps": 3, "temporal_interpolation_method": "slerp"}

    active = [chunk(stream, transition=transition)[1]["transition_active"] for _ in range(3)]

    assert active == [True, True, False]


def test_video_mode_without_pictures_is_refused_with_a_way_out() -> None:
    stream = tiny_pipeline().open_stream()

    with pytest.raises(WanstreamError, match="start a camera"):
        list(stream.next_chunk(parameters(input_mode="video"), None, lambda: False))


def test_the_noise_controller_forgets_its_picture_only_when_a_reset_was_asked_for() -> None:
    stream = tiny_pipeline().open_stream()
    chunk(stream, camera(0))
    kept = session_of(stream).last_input

    chunk(stream, camera(1), noise_controller=False, prompts=BIRD)  # resets by itself
    assert session_of(stream).start == 4
    assert session_of(stream).last_input is kept

    chunk(stream, camera(2), noise_controller=False, init_cache=True)
    assert session_of(stream).last_input is None


def test_warming_up_leaves_no_trace() -> None:
    pipeline = tiny_pipeline()
    stream = pipeline.open_stream()
    expected = frames_of(tiny_pipeline().open_stream(), 2)

    chunk(stream)
    pipeline.warm_up()

    assert_same(frames_of(stream, 1), expected[1:])


def test_what_is_not_sent_takes_its_default_in_both_modes() -> None:
    text = chunk_request({"prompts": "a boat"}, None, LONGLIVE, 42)
    video = chunk_request({"prompts": ["a boat"]}, camera(), LONGLIVE, 42)

    for request in (text, video):
        assert request.prompt.prompts == (("a boat", 1.0),)
        assert request.steps == (1000, 750, 500, 250)  # defect D6: in video mode too
        assert (request.noise_scale, request.noise_controller, request.seed) == (0.7, True, 42)
        assert request.manage_cache
        assert not request.init_cache
    assert (text.mode, video.mode) == ("text", "video")


def test_a_parameter_with_the_name_of_a_field_is_its_value() -> None:
    told = {"prompts": "a boat", "noise_scale": 0.25, "manage_cache": False, "init_cache": True, "other": 1}

    request = chunk_request(told, None, LONGLIVE, 42)

    assert (request.noise_scale, request.manage_cache, request.init_cache) == (0.25, False, True)
    assert request.noise_controller


def test_pictures_that_come_in_text_mode_are_ignored() -> None:
    request = chunk_request({"prompts": "a boat", "input_mode": "text"}, camera(), LONGLIVE, 42)

    assert request.video is None


def test_the_noise_of_a_seed_is_the_same_however_it_is_drawn() -> None:
    together, apart = SeededNoise().chunk(45), SeededNoise().chunk(45)

    drawn = together((1, 3, 16, 4, 6))

    assert torch.equal(drawn, apart((3, 16, 4, 6)).unsqueeze(0))
    assert not torch.equal(drawn, together((1, 3, 16, 4, 6)))


def test_a_seed_of_any_size_is_accepted() -> None:
    assert SeededNoise().chunk(2**64 + 3)((2, 8)).tolist() == SeededNoise().chunk(3)((2, 8)).tolist()


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 0, 0.79), (0, 255, 0.61)])
def test_still_pictures_get_more_noise_than_moving_ones(low: int, high: int, expected: float) -> None:
    pictures = np.full((12, 4, 4, 3), low, np.uint8)
    pictures[::2] = high

    assert motion_noise_scale(to_model([pictures], 4, 4), None, 3, 0.7) == pytest.approx(expected)
