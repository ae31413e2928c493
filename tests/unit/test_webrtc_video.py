"""Input ring, output pacing and encoders of the WebRTC side."""

import asyncio
import fractions
import itertools

import av
import numpy as np
import pytest
from aiortc.codecs.h264 import H264Decoder
from aiortc.codecs.vpx import Vp8Decoder, VpxPayloadDescriptor
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import MediaStreamError
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.hub import Hub
from gateway.stream.video_input import VideoInput, choose, stack
from gateway.webrtc.aiortc_patches import codecs
from gateway.webrtc.track import GeneratedTrack, to_frame


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
    frame = to_frame(picture(90, 33, 49))

    assert (frame.width, frame.height, frame.format.name) == (48, 32, "rgb24")


async def test_frames_come_out_in_order_with_growing_timestamps() -> None:
    hub = Hub(lambda: None)
    track = GeneratedTrack(hub.join(), on_demand=lambda: None)
    hub.chunk_done(0.001, 4)
    hub.put(np.stack([picture(v) for v in (10, 60, 110, 160)]))

    frames = [await track.recv() for _ in range(4)]

    levels = [int(f.to_ndarray(format="rgb24")[0, 0, 0]) for f in frames]
    assert levels == pytest.approx([10, 60, 110, 160], abs=3)
    stamps = [f.pts for f in frames]
    assert all(b > a for a, b in itertools.pairwise(stamps))


async def test_the_track_asks_for_generation_when_the_first_frame_is_wanted() -> None:
    begun: list[bool] = []
    hub = Hub(lambda: None)
    track = GeneratedTrack(hub.join(), on_demand=lambda: begun.append(True))
    hub.put(picture(1)[None])
    hub.put(picture(2)[None])

    before = list(begun)
    await track.recv()
    await track.recv()

    assert before == []
    assert begun == [True]


async def test_a_paused_track_repeats_the_last_picture_with_new_timestamps() -> None:
    hub = Hub(lambda: None)
    track = GeneratedTrack(hub.join(), on_demand=lambda: None)
    hub.put(picture(77)[None])
    first = await track.recv()
    hub.paused = True

    second, third = await track.recv(), await track.recv()

    assert second is not first
    assert first.pts < second.pts < third.pts
    assert int(third.to_ndarray(format="rgb24")[0, 0, 0]) == pytest.approx(77, abs=3)


async def test_a_closed_hub_ends_the_track() -> None:
    hub = Hub(lambda: None)
    track = GeneratedTrack(hub.join(), on_demand=lambda: None)
    hub.close()

    with pytest.raises(MediaStreamError):
        await track.recv()


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
    await asyncio.wait_for(waiting, 1)

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


async def test_a_late_track_shows_the_newest_picture_at_once() -> None:
    hub = Hub(lambda: None)
    first = GeneratedTrack(hub.join(), on_demand=lambda: None)
    for value in (40, 80):
        hub.put(picture(value)[None])
        await first.recv()

    late = GeneratedTrack(hub.join(), on_demand=lambda: None)
    frame = await late.recv()
    hub.put(picture(120)[None])
    both = [await track.recv() for track in (first, late)]

    assert int(frame.to_ndarray(format="rgb24")[0, 0, 0]) == 80
    assert [int(f.to_ndarray(format="rgb24")[0, 0, 0]) for f in both] == [120, 120]


def textured(index: int, height: int = 128, width: int = 160) -> av.VideoFrame:
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x + 5 * index) % 256, (y * 2) % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    frame = to_frame(image)
    frame.pts, frame.time_base = index * 3000, fractions.Fraction(1, 90000)
    return frame


def decode_vp8(payloads: list[bytes], pts: int) -> list[av.VideoFrame]:
    data = b"".join(VpxPayloadDescriptor.parse(p)[1] for p in payloads)
    return Vp8Decoder().decode(JitterFrame(data, pts))


def test_vp8_decodes_and_a_wanted_key_frame_stands_alone() -> None:
    encoder = codecs.TunedVp8Encoder()
    for index in range(3):
        encoder.encode(textured(index))

    payloads, timestamp = encoder.encode(textured(3), force_keyframe=True)
    decoded = decode_vp8(payloads, timestamp)

    assert timestamp == 9000
    assert len(decoded) == 1
    expected = textured(3).to_ndarray(format="rgb24").astype(int)
    assert np.abs(decoded[0].to_ndarray(format="rgb24").astype(int) - expected).mean() < 12


def noise(rng: np.random.Generator, index: int) -> av.VideoFrame:
    frame = to_frame(rng.integers(0, 256, (480, 640, 3), np.uint8))
    frame.pts, frame.time_base = index * 3000, fractions.Fraction(1, 90000)
    return frame


def test_vp8_pictures_that_are_left_out_leave_no_gap_in_the_numbers() -> None:
    encoder = codecs.TunedVp8Encoder()
    encoder.picture_id = 0
    rng = np.random.default_rng(0)
    sent = [encoder.encode(noise(rng, 0))[0]]
    encoder._tuned.link.lost(0.5)
    encoder.target_bitrate = 100_000

    sent += [encoder.encode(noise(rng, index))[0] for index in range(1, 30)]

    shown = [payloads for payloads in sent if payloads]
    assert 1 < len(shown) < len(sent)
    assert [VpxPayloadDescriptor.parse(p[0])[0].picture_id for p in shown] == list(range(len(shown)))


def test_h264_decodes_and_a_wanted_key_frame_stands_alone() -> None:
    encoder = codecs.TunedH264Encoder()
    for index in range(3):
        encoder.encode(textured(index))

    frame = textured(3)
    data = b"".join(b"\x00\x00\x00\x01" + nal for nal in encoder.nal_units(frame, force_keyframe=True))
    decoded = H264Decoder().decode(JitterFrame(data, 9000))

    assert len(decoded) == 1
    assert (decoded[0].width, decoded[0].height) == (160, 128)


def test_a_frame_object_that_was_a_key_frame_once_does_not_stay_one() -> None:
    encoder = codecs.TunedVp8Encoder()
    frame = textured(0)
    encoder.encode(frame, force_keyframe=True)
    sizes = []
    for index in range(1, 6):
        frame.pts = index * 3000
        sizes.append(sum(map(len, encoder.encode(frame)[0])))

    key_size = sum(map(len, encoder.encode(textured(9), force_keyframe=True)[0]))

    assert max(sizes) < key_size / 2


def test_encoders_follow_a_change_of_picture_size() -> None:
    encoder = codecs.TunedVp8Encoder()
    encoder.encode(textured(0))

    payloads, timestamp = encoder.encode(textured(1, 64, 96))

    decoded = decode_vp8(payloads, timestamp)
    assert (decoded[0].width, decoded[0].height) == (96, 64)


async def test_the_first_picture_is_not_delayed() -> None:
    hub = Hub(lambda: None)
    track = GeneratedTrack(hub.join(), on_demand=lambda: None)
    hub.put(picture(5)[None])

    frame = await track.recv()

    assert frame.pts == 0
