"""Outgoing video: queued pictures become evenly paced frames of one WebRTC track (api.md 10.3)."""

import asyncio
import time
from collections.abc import Callable

import av
import numpy as np
from aiortc import VideoStreamTrack
from aiortc.mediastreams import VIDEO_CLOCK_RATE, VIDEO_TIME_BASE, MediaStreamError

from gateway.serving.interface import Images
from gateway.stream.frame_queue import FrameQueue
from streaming.errors import WanstreamError

_CATCH_UP = 0.85  # share of the period while more is queued than the next frame


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

    def __init__(self, frames: FrameQueue, on_demand: Callable[[], None]) -> None:
        super().__init__()
        self._frames = frames
        self._on_demand: Callable[[], None] | None = on_demand
        self._origin: float | None = None
        self._due = 0.0
        self._pts = -1
        self.failure: str | None = None  # why no more frames come, for the user

    async def recv(self) -> av.VideoFrame:
        # The connection is up and the sender wants frames: generation may begin.
        if self._on_demand is not None:
            self._on_demand()
            self._on_demand = None
        image = await self._frames.next(repeat_after_s=self._delay(time.monotonic()))
        if image is None:
            self.stop()
            raise MediaStreamError("the session ended")
        if self._frames.paced:
            await asyncio.sleep(self._delay(time.monotonic()))
        frame = self._frame(image)
        now = time.monotonic()
        period = (1.0 if not len(self._frames) else _CATCH_UP) / self._frames.fps
        self._due = max(self._due, now - period) + period  # no burst after a late frame
        frame.pts, frame.time_base = self._clock_pts(now), VIDEO_TIME_BASE
        return frame

    def _frame(self, image: Images) -> av.VideoFrame:
        try:
            return to_frame(image)
        except PictureTooSmall as error:
            self.failure = str(error)
            self.stop()
            raise MediaStreamError(self.failure) from error

    def _delay(self, now: float) -> float:
        return max(0.0, self._due - now)

    def _clock_pts(self, now: float) -> int:
        if self._origin is None:
            self._origin = now
        self._pts = max(self._pts + 1, int((now - self._origin) * VIDEO_CLOCK_RATE))
        return self._pts
