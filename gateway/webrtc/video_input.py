"""Incoming video: a ring of the newest frames and the choice of those that make a chunk (api.md 10.1)."""

import asyncio
import time
from collections import deque

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gateway.serving import Images

RING_FRAMES = 30
_FPS_WINDOW = 30
_SINGLE_FRAME_BACKLOG = 2  # two frames may arrive at once by jitter alone
_FPS_MINIMUM_SAMPLES = 5


def choose(buffered: int, wanted: int) -> list[int]:
    """Indices of `wanted` out of `buffered` frames, spread evenly: round(i * m / n), halves to even."""
    return [round(i * buffered / wanted) for i in range(wanted)]


class VideoInput:
    """The newest decoded frames of a peer's camera; the oldest is dropped when the ring is full."""

    def __init__(self, capacity: int = RING_FRAMES) -> None:
        self._ring: deque[av.VideoFrame] = deque(maxlen=capacity)
        self._arrivals: deque[float] = deque(maxlen=_FPS_WINDOW)
        self._arrived = asyncio.Event()
        self._reformatter = VideoReformatter()  # kept: a new one per frame costs more than the conversion
        self.frames_in = 0

    def push(self, frame: av.VideoFrame) -> None:
        self._ring.append(frame)
        self._arrivals.append(time.monotonic())
        self.frames_in += 1
        self._arrived.set()

    def clear(self) -> None:
        self._ring.clear()

    @property
    def fps(self) -> float | None:
        """Frames per second over the last 30 arrivals, 1..60; None before the fifth frame."""
        if len(self._arrivals) < _FPS_MINIMUM_SAMPLES:
            return None
        span = self._arrivals[-1] - self._arrivals[0]
        return min(60.0, max(1.0, (len(self._arrivals) - 1) / span)) if span > 0 else 60.0

    @property
    def buffered(self) -> int:
        return len(self._ring)

    def take(self, wanted: int) -> list[av.VideoFrame] | None:
        """`wanted` frames in order, None while fewer are buffered; what lies before the last is discarded."""
        if len(self._ring) < wanted:
            self._arrived.clear()
            return None
        if wanted == 1:  # no spread to keep: a backlog would only be delay
            while len(self._ring) > _SINGLE_FRAME_BACKLOG:
                self._ring.popleft()
        indices = choose(len(self._ring), wanted)
        frames = [self._ring[i] for i in indices]
        for _ in range(indices[-1] + 1):
            self._ring.popleft()
        return frames

    async def wait(self) -> None:
        """Until a frame has arrived since the last `take` that found too few, or until `wake`."""
        await self._arrived.wait()

    def wake(self) -> None:
        """End `wait`: frames are not wanted any more."""
        self._arrived.set()

    def to_images(self, frames: list[av.VideoFrame]) -> Images:
        """uint8 [T, H, W, 3] RGB; frames of another size than the first take its size (bilinear).

        Blocks for up to a millisecond per frame: call it off the event loop, and not twice at a time.
        """
        width, height = frames[0].width, frames[0].height
        return np.stack(
            [
                self._reformatter.reformat(
                    frame, width, height, "rgb24", interpolation="BILINEAR", threads=1
                ).to_ndarray()
                for frame in frames
            ]
        )
