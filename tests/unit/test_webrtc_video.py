"""Input ring, output pacing and video encoders of a stream."""

import asyncio
import itertools

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.encoding.codecs import CODECS, VideoEncoder
from gateway.stream.pictures.hub import Hub, Sink
from gateway.stream.pictures.picture import Picture, YuvConverter
from gateway.stream.pictures.video_input import VideoInput, choose, stack

BITRATE = 1_000_000


def picture(value: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def ring_of(capacity: int) -> VideoInput:
    """A ring in video mode that keeps `capacity` pictures, an even number, of any size."""
    ring = VideoInput(lambda: True)
    ring.expect(capacity // 2, None)
    return ring


def test_eight_buffered_frames_give_every_second_one() -> None:
    assert choose(8, 4) == [0, 2, 4, 6]


@given(st.integers(1, 30), st.integers(1, 30))
def test_chosen_frames_are_in_order_and_exist(wanted: int, extra: int) -> None:
    buffered = wanted + extra

    indices = choose(buffered, wanted)

    assert indices == sorted(set(indices))
    assert len(indices) == wanted
    assert 0 <= indices[0] <= indices[-1] < buffered


def test_taking_frames_leaves_those_after_the_last_taken() -> None:
    ring = ring_of(8)
    for value in range(8):
        ring.push(picture(value), None)

    taken = ring.take(4)

    assert taken is not None
    assert stack(taken)[:, 0, 0, 0].tolist() == [0, 2, 4, 6]
    assert ring.buffered == 1


def test_too_few_frames_are_left_alone() -> None:
    ring = ring_of(8)
    ring.push(picture(1), None)

    assert ring.take(4) is None
    assert ring.buffered == 1


def test_a_full_ring_drops_the_oldest_frame() -> None:
    ring = ring_of(4)
    for value in (0, 10, 20, 30, 40):
        ring.push(picture(value), None)

    taken = ring.take(4)

    assert taken is not None
    assert stack(taken)[:, 0, 0, 0].tolist() == [10, 20, 30, 40]


def test_single_frame_chunks_do_not_work_through_a_backlog() -> None:
    ring = ring_of(30)
    for value in range(20):
        ring.push(picture(value * 10), None)

    taken = ring.take(1)

    assert taken is not None
    assert int(stack(taken)[0, 0, 0, 0]) == 180
    assert ring.buffered == 1


def test_frames_of_another_size_take_the_size_of_the_first() -> None:
    images = stack([picture(50, 32, 48), picture(60, 64, 64)])

    assert images.shape == (2, 32, 48, 3)
    assert images[1].mean() == pytest.approx(60, abs=2)


def test_odd_pictures_are_cropped_to_even_sizes() -> None:
    frame = frame_of(picture(90, 33, 49), 7)

    assert (frame.width, frame.height, frame.format.name, frame.pts) == (48, 32, "yuv420p", 7)


async def shown(sink: Sink) -> Picture:
    """The next picture of a sink."""
    picture = await sink.next_picture()
    assert picture is not None
    return picture


async def test_pictures_come_out_in_order_with_growing_timestamps() -> None:
    hub = Hub(lambda: None)
    sink = hub.join()
    hub.chunk_done(0.001, 4)
    hub.put(np.stack([picture(v) for v in (10, 60, 110, 160)]))

    pictures = [await shown(sink) for _ in range(4)]

    assert [int(each.image[0, 0, 0]) for each in pictures] == [10, 60, 110, 160]
    assert pictures[0].pts == 0
    assert all(b.pts > a.pts for a, b in itertools.pairwise(pictures))


async def test_a_paused_hub_repeats_the_last_picture_with_new_timestamps() -> None:
    hub = Hub(lambda: None)
    sink = hub.join()
    hub.put(picture(77)[None])
    first = await shown(sink)
    hub.paused = True

    second, third = await shown(sink), await shown(sink)

    assert first.pts < second.pts < third.pts
    assert [each.repeated for each in (first, second, third)] == [False, True, True]
    assert second.frame() is not third.frame()
    assert int(third.frame().to_ndarray(format="rgb24")[0, 0, 0]) == pytest.approx(77, abs=3)


async def test_a_closed_hub_ends_its_sinks() -> None:
    hub = Hub(lambda: None)
    sink = hub.join()
    hub.close()

    assert await sink.next() is None


async def test_overload_drops_whole_old_chunks() -> None:
    hub = Hub(lambda: None)
    sink = hub.join()
    hub.chunk_done(1.0, 4)
    for base in (0, 10, 20, 30, 40):
        hub.put(np.stack([picture(base + i) for i in range(4)]))

    first = await sink.next()

    assert hub.frames_dropped > 0
    assert hub.frames_dropped % 4 == 0
    assert first is not None
    assert int(first[0, 0, 0]) % 10 == 0


async def test_generation_waits_while_more_than_half_a_chunk_is_queued() -> None:
    hub = Hub(lambda: None)
    sink = hub.join()
    hub.chunk_done(0.1, 4)
    hub.put(np.stack([picture(i) for i in range(4)]))
    waiting = asyncio.ensure_future(hub.wait_room())
    await asyncio.sleep(0)
    blocked = not waiting.done()

    for _ in range(2):
        await sink.next()
    await asyncio.wait_for(waiting, 30)

    assert blocked


def test_the_shown_rate_follows_the_slower_of_input_and_pipeline() -> None:
    hub = Hub(lambda: 20.0)

    hub.chunk_done(0.1, 4)

    assert hub.fps == pytest.approx(20.0)
    hub.chunk_done(2.0, 4)
    assert hub.fps == pytest.approx(8 / 2.1)


async def test_a_slow_sink_misses_pictures_and_slows_no_other() -> None:
    hub = Hub(lambda: None)
    quick, slow = hub.join(), hub.join()
    seen = []
    for value in range(10):
        hub.put(picture(value)[None])
        seen.append(await quick.next())

    late = [await slow.next(), await slow.next()]

    assert [int(p[0, 0, 0]) for p in seen if p is not None] == list(range(10))
    assert [int(p[0, 0, 0]) for p in late if p is not None] == [8, 9]
    assert (hub.frames_out, hub.frames_dropped, slow.frames_dropped) == (10, 0, 8)
    assert len(hub) == 0  # generation waits for the quick one only


async def test_sinks_that_wait_together_are_shown_the_same_pictures_even_if_one_leaves() -> None:
    hub = Hub(lambda: None)
    first, second = hub.join(), hub.join()
    hub.chunk_done(0.1, 2)
    waiting = [asyncio.ensure_future(sink.next()) for sink in (first, second)]
    await asyncio.sleep(0)
    hub.put(np.stack([picture(1), picture(2)]))
    shown = [await task for task in waiting]

    leaving = asyncio.ensure_future(first.next())  # it has taken the second picture, which is not due yet
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    first.close()
    last = await second.next()

    assert [int(p[0, 0, 0]) for p in shown if p is not None] == [1, 1]
    assert last is not None
    assert int(last[0, 0, 0]) == 2


async def test_a_sink_that_leaves_while_it_waits_is_shown_nothing() -> None:
    hub = Hub(lambda: None)
    stays, leaves = hub.join(), hub.join()
    waiting = [asyncio.ensure_future(sink.next()) for sink in (leaves, stays)]
    await asyncio.sleep(0)

    leaves.close()
    hub.put(picture(3)[None])
    nothing, shown = [await task for task in waiting]

    assert nothing is None
    assert shown is not None


async def test_a_late_sink_shows_the_newest_picture_at_once() -> None:
    hub = Hub(lambda: None)
    first = hub.join()
    for value in (40, 80):
        hub.put(picture(value)[None])
        before = await shown(first)

    late = hub.join()
    newest = await shown(late)
    hub.put(picture(120)[None])
    both = [await shown(sink) for sink in (first, late)]

    assert int(newest.image[0, 0, 0]) == 80
    assert newest.repeated
    assert newest.pts > before.pts
    assert [int(each.image[0, 0, 0]) for each in both] == [120, 120]


async def test_a_still_stream_shows_its_last_picture_again_on_request() -> None:
    hub = Hub(lambda: None)
    sinks = hub.join(), hub.join()
    hub.put(picture(40)[None])
    before = [await shown(sink) for sink in sinks]

    waiting = [asyncio.ensure_future(shown(sink)) for sink in sinks]
    await asyncio.sleep(0)
    hub.repeat()
    again = [await task for task in waiting]

    assert [int(each.image[0, 0, 0]) for each in again] == [40, 40]
    assert all(b.pts > a.pts for a, b in zip(before, again, strict=True))
    assert again[0] is again[1]


def frame_of(image: np.ndarray, pts: int) -> av.VideoFrame:
    return Picture.of(image, YuvConverter(), pts).frame()


def test_chroma_is_the_mean_of_the_pixels_that_it_covers() -> None:
    """BT.601 in limited range, to the rounding; libswscale's default errs by 20 and more here."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    red, green, blue = np.moveaxis(image / 255, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [(blue - luma) / 1.772, (red - luma) / 1.402]

    planes = YuvConverter().planes(image).astype(float)

    halves = planes[64:].reshape(2, 32, 48)
    assert np.abs(planes[:64] - (16 + 219 * luma)).max() < 1
    for plane, exact in zip(halves, chroma, strict=True):
        mean = exact.reshape(32, 2, 48, 2).mean(axis=(1, 3))
        assert np.abs(plane - (128 + 224 * mean)).max() < 1.5


def textured(index: int, height: int = 128, width: int = 160) -> av.VideoFrame:
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x + 5 * index) % 256, (y * 2) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    return frame_of(image, index * 3000)


def decode(codec: str, packets: list[av.Packet]) -> list[av.VideoFrame]:
    """The pictures of packets, by a decoder that has seen nothing else."""
    decoder = av.CodecContext.create({"VP8": "vp8", "H264": "h264"}[codec], "r")
    return [frame for packet in (*packets, None) for frame in decoder.decode(packet)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_wanted_key_frame_stands_alone(codec: str) -> None:
    encoder = VideoEncoder(codec)
    for index in range(3):
        encoder.encode(textured(index), BITRATE)

    packets = encoder.encode(textured(3), BITRATE, key_frame=True)
    decoded = decode(codec, packets)

    assert [(packet.pts, packet.is_keyframe) for packet in packets] == [(9000, True)]
    assert len(decoded) == 1
    expected = textured(3).to_ndarray(format="rgb24").astype(int)
    assert np.abs(decoded[0].to_ndarray(format="rgb24").astype(int) - expected).mean() < 12


def test_pictures_are_left_out_where_the_network_carries_less_than_they_need() -> None:
    encoder = VideoEncoder("VP8")
    rng = np.random.default_rng(0)
    noise = [frame_of(rng.integers(0, 256, (480, 640, 3), np.uint8), 3000 * index) for index in range(30)]

    sent = [encoder.encode(frame, 100_000, narrow=True) for frame in noise]

    assert 1 < sum(map(bool, sent)) < len(sent)


def test_a_frame_object_that_was_a_key_frame_once_does_not_stay_one() -> None:
    encoder = VideoEncoder("VP8")
    frame = textured(0)
    encoder.encode(frame, BITRATE, key_frame=True)
    kinds = []
    for index in range(1, 6):
        frame.pts = index * 3000
        kinds += [packet.is_keyframe for packet in encoder.encode(frame, BITRATE)]

    assert kinds == [False] * 5


@pytest.mark.parametrize("codec", CODECS)
def test_encoders_follow_a_change_of_picture_size(codec: str) -> None:
    encoder = VideoEncoder(codec)
    encoder.encode(textured(0), BITRATE)

    decoded = decode(codec, encoder.encode(textured(1, 64, 96), BITRATE))

    assert [(frame.width, frame.height) for frame in decoded] == [(96, 64)]
