"""What is done with a peer's pictures between the network and the ring, with real encoders and decoders."""

import asyncio
import fractions
import queue
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
import pytest
from aiortc.codecs import get_decoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from gateway.stream.pictures.video_input import VideoInput, fit
from gateway.webrtc.aiortc_patches.decoding import (
    MAX_PIXELS,
    DecodedVideo,
    DecodingFailed,
    VideoDecoder,
    _decoder_worker,
)
from streaming.network.video import resize

VP8 = RTCRtpCodecParameters("video/VP8", clockRate=90000, payloadType=97)
H264 = RTCRtpCodecParameters("video/H264", clockRate=90000, payloadType=99)
CODECS = pytest.mark.parametrize("codec", [VP8, H264], ids=lambda codec: codec.name)


def encoded(codec: RTCRtpCodecParameters, height: int, width: int, count: int = 3) -> Iterator[JitterFrame]:
    """A grey video: a key frame and others that need it."""
    context = av.CodecContext.create("libvpx" if codec is VP8 else "libx264", "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base = fractions.Fraction(30), fractions.Fraction(1, 30)
    fast = {"deadline": "realtime", "cpu-used": "-16", "lag-in-frames": "0"}
    context.options = fast if codec is VP8 else {"preset": "ultrafast", "tune": "zerolatency"}
    frame = av.VideoFrame.from_ndarray(np.full((height * 3 // 2, width), 100, np.uint8), format="yuv420p")
    for number in range(count):
        frame.pts = number
        for packet in context.encode(frame):
            yield JitterFrame(bytes(packet), number * 3000)


class Camera:
    """A decoder with a ring, without a connection. Its clock stands still."""

    def __init__(self, size: tuple[int, int] | None = (64, 80), frames: int = 12) -> None:
        self.mode = "video"
        self.now = 0.0
        self.refused: list[str] = []
        self.key_frames_asked = 0
        self.ring = VideoInput(lambda: self.mode == "video")
        self.ring.expect(frames, size)
        self.source = DecodedVideo(self.refused.append, lambda text: None)
        self.source.start(self.ring.feed(lambda: None))
        self.decoder = VideoDecoder(self.source, self._call, self._ask, lambda: self.now)

    def send(self, codec: RTCRtpCodecParameters, frames: Iterator[JitterFrame], behind: int = 0) -> None:
        for frame in frames:
            self.decoder.take(codec, frame, behind)

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        count = self.ring.buffered
        return [picture.shape[:2] for picture in self.ring.take(count) or ()] if count else []

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        function(*arguments)

    def _ask(self) -> None:
        self.key_frames_asked += 1


def moving(height: int, width: int) -> av.VideoFrame:
    rng = np.random.default_rng(height)
    plane = rng.integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    return av.VideoFrame.from_ndarray(plane, format="yuv420p")


@pytest.mark.parametrize("camera", [(1080, 1920), (480, 640), (240, 1280), (1280, 720), (64, 96), (33, 65)])
def test_a_fitted_picture_is_what_the_pipeline_would_have_made_of_it(camera: tuple[int, int]) -> None:
    height, width = 320, 576
    original = moving(*(side + side % 2 for side in camera))
    as_it_came = original.to_ndarray(format="rgb24")

    fitted = fit(original, (height, width), VideoReformatter())

    finished = resize(fitted[None], height, width)
    assert np.abs(finished - resize(as_it_came[None], height, width)).max() <= 0.502
    assert all(side <= limit for side, limit in zip(fitted.shape[:2], (height, width), strict=True))


def test_a_picture_of_the_pipelines_size_is_left_as_it_is() -> None:
    frame = moving(320, 576)

    fitted = fit(frame, (320, 576), VideoReformatter())

    assert np.array_equal(fitted, frame.to_ndarray(format="rgb24"))


@CODECS
def test_pictures_are_kept_in_the_size_of_the_loaded_pipeline(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()

    camera.send(codec, encoded(codec, 720, 1280))

    assert camera.sizes == [(64, 80)] * 3


@CODECS
def test_pictures_that_turn_and_grow_within_a_stream_are_all_fitted(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()

    for size in ((480, 640), (640, 480), (48, 48), (96, 64)):
        camera.send(codec, encoded(codec, *size, count=1))

    assert camera.sizes == [(64, 80), (64, 80), (48, 48), (64, 64)]


def test_passthrough_gets_the_pictures_of_the_camera() -> None:
    camera = Camera(size=None, frames=2)

    camera.send(VP8, encoded(VP8, 720, 1280))

    assert camera.sizes == [(720, 1280)] * 3


@CODECS
def test_pictures_above_the_limit_are_refused_with_their_size(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()

    camera.send(codec, encoded(codec, 2160, 3840))

    assert camera.sizes == []
    assert {text.partition(":")[0] for text in camera.refused} == {
        "Pictures of 3840x2160 pixels are too large"
    }


@CODECS
def test_a_camera_that_was_too_large_is_taken_when_it_gets_smaller(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()
    camera.send(codec, encoded(codec, 2160, 3840))

    camera.send(codec, encoded(codec, 480, 640))

    assert camera.sizes == [(64, 80)] * 3


def test_the_largest_pictures_of_usual_cameras_are_below_the_limit() -> None:
    assert 2560 * 1600 <= MAX_PIXELS < 3840 * 2160


@CODECS
def test_nothing_is_decoded_or_kept_in_text_mode(
    codec: RTCRtpCodecParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "gateway.webrtc.aiortc_patches.decoding.get_decoder",
        lambda codec: opened.append(codec.name) or get_decoder(codec),
    )
    camera = Camera()
    camera.mode = "text"

    camera.send(codec, encoded(codec, 480, 640))

    assert (opened, camera.ring.buffered, camera.ring.frames_in) == ([], 0, 3)


@CODECS
def test_a_camera_that_is_no_longer_the_source_feeds_nothing(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()
    camera.source.stop()

    camera.send(codec, encoded(codec, 480, 640))

    assert (camera.ring.buffered, camera.ring.frames_in) == (0, 0)


@CODECS
def test_video_mode_begins_with_a_key_frame_that_is_asked_for(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()
    camera.mode = "text"
    stream = encoded(codec, 480, 640)
    camera.send(codec, iter([next(stream)]))
    camera.mode = "video"

    camera.send(codec, stream)
    asked, without = camera.key_frames_asked, camera.ring.buffered
    camera.send(codec, encoded(codec, 480, 640))

    assert (asked, without) == (1, 0)
    assert camera.sizes == [(64, 80)] * 3


def test_pictures_fitted_for_another_pipeline_are_dropped() -> None:
    ring = VideoInput(lambda: True)
    ring.expect(4, (64, 80))

    ring.expect(4, (320, 576))
    ring.push(np.zeros((64, 80, 3), np.uint8), (64, 80))

    assert ring.buffered == 0


def test_the_ring_holds_two_requests() -> None:
    camera = Camera(frames=4)

    camera.send(VP8, encoded(VP8, 96, 128, count=20))

    assert camera.ring.buffered == 8


def test_a_decoder_that_is_far_behind_goes_on_with_the_next_key_frame() -> None:
    camera = Camera()
    stream = encoded(VP8, 480, 640, count=5)
    camera.send(VP8, iter([next(stream)]))

    camera.send(VP8, stream, behind=100)
    camera.send(VP8, encoded(VP8, 480, 640), behind=0)

    assert (len(camera.sizes), camera.key_frames_asked) == (4, 1)


@CODECS
def test_video_that_is_never_valid_ends_with_a_sentence(codec: RTCRtpCodecParameters) -> None:
    camera = Camera()
    broken = JitterFrame(b"\0\0\0\1\x65" + b"\xff" * 40 if codec is H264 else b"\x10" + b"\xff" * 40, 0)
    camera.send(codec, iter([broken]))
    camera.now = 11.0

    with pytest.raises(DecodingFailed, match="cannot be decoded"):
        camera.send(codec, iter([broken]))


async def test_the_thread_survives_until_its_end_and_says_why() -> None:
    """A failure of the decoder itself ends the thread in order, so that nobody waits for it."""
    ended: asyncio.Queue[str | None] = asyncio.Queue()
    ring = VideoInput(lambda: True)
    ring.expect(1, None)
    packets: queue.Queue[Any] = queue.Queue()
    unknown = RTCRtpCodecParameters("video/AV9", clockRate=90000, payloadType=97)
    packets.put((unknown, JitterFrame(b"\x10", 0)))
    source = DecodedVideo(print, ended.put_nowait)
    source.start(ring.feed(lambda: None))

    await asyncio.to_thread(_decoder_worker, asyncio.get_running_loop(), packets, source)

    assert "internal error" in str(await ended.get())
