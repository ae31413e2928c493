"""VACE in the loop: which chunks follow a context, and that nothing else changes."""

from typing import Any

import numpy as np
import pytest

from streaming.errors import WanstreamError
from streaming.specs import LONGLIVE, SPECS, STREAMDIFFUSIONV2, PipelineSpec
from tests.tiny_pipeline import HEIGHT, WIDTH, Hook, camera, chunk, tiny_pipeline

PIPELINES = [spec for spec in SPECS.values() if spec.loop is not None]
STEPS = 2  # of `chunk`


def image(seed: int = 7, size: tuple[int, int] = (20, 30)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def with_branch(spec: PipelineSpec = LONGLIVE, hook: Hook | None = None) -> Any:
    return tiny_pipeline(spec=spec, branch_hook=hook or Hook())


@pytest.mark.parametrize("spec", PIPELINES, ids=lambda spec: str(spec.id))
def test_scale_0_gives_exactly_the_pictures_without_vace(spec: PipelineSpec) -> None:
    hook = Hook()
    plain, stream = tiny_pipeline(spec=spec).open_stream(), with_branch(spec, hook).open_stream()

    for sent in ({"vace_ref_images": [image()]}, {"first_frame_image": image()}, {}):
        expected, _ = chunk(plain)
        found, _ = chunk(stream, vace_context_scale=0.0, **sent)
        np.testing.assert_array_equal(found, expected)

    assert hook.calls == 0


@pytest.mark.parametrize("spec", PIPELINES, ids=lambda spec: str(spec.id))
def test_a_reference_reaches_the_denoising_of_its_chunk_alone(spec: PipelineSpec) -> None:
    hook = Hook()
    plain, stream = tiny_pipeline(spec=spec).open_stream(), with_branch(spec, hook).open_stream()

    before, _ = chunk(stream)
    np.testing.assert_array_equal(before, chunk(plain)[0])
    assert hook.calls == 0
    second, _ = chunk(stream, vace_ref_images=[image()])
    assert hook.calls == STEPS
    third, _ = chunk(stream)

    assert hook.calls == STEPS  # the passes that fill the cache were made without, and the third chunk
    assert not np.array_equal(second, chunk(plain)[0])
    assert second.shape[1:] == (HEIGHT, WIDTH, 3)
    assert not np.array_equal(third, chunk(plain)[0])  # by the cache


@pytest.mark.parametrize("spec", PIPELINES, ids=lambda spec: str(spec.id))
def test_a_control_video_makes_a_chunk_of_text_mode(spec: PipelineSpec) -> None:
    hook = Hook()
    stream, plain = with_branch(spec, hook).open_stream(), tiny_pipeline(spec=spec).open_stream()
    frames = spec.input_frames_per_chunk

    for number in range(3):
        found, _ = chunk(stream, camera(number, frames), noise_scale=0.1)
        expected, _ = chunk(plain)
        assert found.shape == expected.shape
        assert not np.array_equal(found, expected)

    assert hook.calls == 3 * STEPS


def test_scale_decides_how_much_a_control_video_counts() -> None:
    plain, _ = chunk(tiny_pipeline().open_stream())

    def distance(scale: float) -> float:
        found, _ = chunk(with_branch().open_stream(), camera(), vace_context_scale=scale)
        return float(np.abs(found.astype(float) - plain.astype(float)).mean())

    distances = [distance(scale) for scale in (0.0, 0.1, 0.5)]
    assert distances[0] == 0 < distances[1] < distances[2]


def test_the_input_video_goes_where_the_parameters_say() -> None:
    video = camera()
    expected, _ = chunk(tiny_pipeline().open_stream(), video)

    for off in ({"vace_use_input_video": False}, {"vace_enabled": False}):
        found, _ = chunk(with_branch().open_stream(), video, **off)
        np.testing.assert_array_equal(found, expected)
    control, _ = chunk(with_branch().open_stream(), video, vace_use_input_video=None)
    assert not np.array_equal(control[: len(expected)], expected)


def test_sessions_with_different_references_do_not_touch_each_other() -> None:
    def run(stream: Any, seed: int) -> list[Any]:
        return [chunk(stream, vace_ref_images=[image(seed + i)])[0] for i in range(2)]

    alone = [run(with_branch().open_stream(), seed) for seed in (1, 10)]
    pipeline = with_branch()
    streams = [pipeline.open_stream() for _ in range(2)]
    together: list[list[Any]] = [[], []]
    for number in range(2):
        for each, stream, seed in zip(together, streams, (1, 10), strict=True):
            each.append(chunk(stream, vace_ref_images=[image(seed + number)])[0])

    for expected, found in zip(alone, together, strict=True):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_reset_forgets_the_control_video_before() -> None:
    stream = with_branch().open_stream()
    first, _ = chunk(stream, camera(1))
    chunk(stream, camera(2))

    again, _ = chunk(stream, camera(1), init_cache=True)

    np.testing.assert_array_equal(again, first)


def test_the_context_follows_a_new_prompt() -> None:
    other = [{"text": "a cat", "weight": 1.0}]
    stream = with_branch().open_stream()
    chunk(stream, camera(1))

    found, _ = chunk(stream, camera(1), prompts=other)  # a reset, as in video mode
    expected, _ = chunk(with_branch().open_stream(), camera(1), prompts=other)

    np.testing.assert_array_equal(found, expected)


def test_images_begin_and_end_a_chunk() -> None:
    plain, _ = chunk(tiny_pipeline().open_stream())
    made = [
        chunk(with_branch().open_stream(), **sent)[0]
        for sent in (
            {"first_frame_image": image(1)},
            {"last_frame_image": image(1)},
            {"first_frame_image": image(1), "last_frame_image": image(2)},
            {"first_frame_image": image(1), "vace_ref_images": [image(3), image(4)]},
        )
    ]
    for i, found in enumerate(made):
        assert found.shape == plain.shape
        assert not any(np.array_equal(found, other) for other in (plain, *made[:i]))


def test_two_images_are_too_many_for_chunks_of_one_latent_frame() -> None:
    stream = with_branch(STREAMDIFFUSIONV2).open_stream()

    with pytest.raises(WanstreamError, match=r"4 frames at a time.* Send one of them\."):
        chunk(stream, first_frame_image=image(), last_frame_image=image())

    found, _ = chunk(stream)
    np.testing.assert_array_equal(found, chunk(tiny_pipeline(spec=STREAMDIFFUSIONV2).open_stream())[0])


def test_an_image_after_other_chunks_begins_with_an_empty_encoder() -> None:
    stream = with_branch().open_stream()
    chunk(stream)

    found, _ = chunk(stream, first_frame_image=image())

    assert len(found) == 12


def test_without_a_branch_vace_is_ignored() -> None:
    expected, _ = chunk(tiny_pipeline().open_stream())

    found, _ = chunk(tiny_pipeline().open_stream(), vace_ref_images=[image()], vace_context_scale=2.0)

    np.testing.assert_array_equal(found, expected)


def test_warming_up_runs_the_branch() -> None:
    hook = Hook()

    with_branch(hook=hook).warm_up()

    assert hook.calls > 0
