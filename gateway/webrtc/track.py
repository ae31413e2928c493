"""Outgoing video: a sink's pictures become the frames of one WebRTC track (api.md 10.3)."""

import time
from collections.abc import Callable

import av
import numpy as np
from aiortc import VideoStreamTrack
from aiortc.mediastreams import VIDEO_CLOCK_RATE, VIDEO_TIME_BASE, MediaStreamError

from gateway.serving.interface import Images
from gateway.stream.hub import Sink
from streaming.errors import WanstreamError


class PictureTooSmall(WanstreamError):
    """No video codec takes a picture of this size."""


def to_frame(image: Images) -> av.VideoFrame:
    """A new frame on an image's memory, uint8 [H, W, 3] RGB; an odd last row or column is cropped.

    Quick: the conversion to YUV is the encoder's, in its own thread. Raises PictureTooSmall.
    """
    height, width = image.shape[0] & ~1, image.shape[1] & ~1
    if not (height and width):
        raise PictureTooSmall(
            f"A picture of {image.shape[1]}x{image.shape[0]} pixels cannot be sent, video needs 2x2. "
            "Choose a larger picture size for the camera."
        )
    return av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image[:height, :width]), format="rgb24")


class GeneratedTrack(VideoStreamTrack):
    """The track that the peer sees. RTP timestamps follow a monotonic clock, never stand still or go back."""

    def __init__(self, sink: Sink, on_demand: Callable[[], None]) -> None:
        super().__init__()
        self._sink = sink
        self._on_demand: Callable[[], None] | None = on_demand
        self._origin: float | None = None
        self._pts = -1
        self.failure: str | None = None  # why no more frames come, for the user

    async def recv(self) -> av.VideoFrame:
        # The connection is up and the sender wants frames: generation may begin.
        if self._on_demand is not None:
            self._on_demand()
            self._on_demand = None
        image = await self._sink.next()
        if image is None:
            self.stop()
            raise MediaStreamError("the session ended")
        frame = self._frame(image)
        frame.pts, frame.time_base = self._clock_pts(time.monotonic()), VIDEO_TIME_BASE
        return frame

    def stop(self) -> None:
        super().stop()
        self._sink.close()

    def _frame(self, image: Images) -> av.VideoFrame:
        try:
            return to_frame(image)
        except PictureTooSmall as error:
            self.failure = str(error)
            self.stop()
            raise MediaStreamError(self.failure) from error

    def _clock_pts(self, now: float) -> int:
        if self._origin is None:
            self._origin = now
        self._pts = max(self._pts + 1, int((now - self._origin) * VIDEO_CLOCK_RATE))
        return self._pts
