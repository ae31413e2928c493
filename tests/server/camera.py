"""A camera for test peers: a paced track of numbered pictures."""

import asyncio
import time

import numpy as np
import numpy.typing as npt
from aiortc import MediaStreamTrack, VideoStreamTrack
from av import VideoFrame

from benchmarks.frame_numbers import NumberedVideo


class NumberedCamera(MediaStreamTrack):
    """Sends pictures numbered from 0. Below 256x128 pixels the numbers may not survive the codec."""

    kind = "video"

    def __init__(self, width: int = 256, height: int = 192, fps: float = 30.0) -> None:
        super().__init__()
        self.sent = 0
        self._video = NumberedVideo(height, width)
        self._fps = fps
        self._started: float | None = None
        self.on = asyncio.Event()  # clear it, and the camera falls silent
        self.on.set()

    async def recv(self) -> VideoFrame:
        await self.on.wait()
        now = time.monotonic()
        if self._started is None:
            self._started = now
        due_s = self.sent / self._fps
        await asyncio.sleep(max(0.0, self._started + due_s - now))
        frame = self._video.frame(self.sent, due_s)
        self.sent += 1
        return frame


class StillCamera(VideoStreamTrack):
    """Sends one picture, uint8 [H, W, 3] RGB, again and again."""

    def __init__(self, picture: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self._picture = picture

    async def recv(self) -> VideoFrame:
        frame = VideoFrame.from_ndarray(self._picture, format="rgb24")
        frame.pts, frame.time_base = await self.next_timestamp()
        return frame


class PlainCamera(StillCamera):
    """Sends pictures of one colour."""

    def __init__(self, rgb: tuple[int, int, int], size: tuple[int, int] = (128, 128)) -> None:
        """size: height and width in pixels"""
        super().__init__(np.full((*size, 3), rgb, np.uint8))


class GreyCamera(VideoStreamTrack):
    """Cheap pictures of any size."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self._planes = np.full((height * 3 // 2, width), 128, np.uint8)

    async def recv(self) -> VideoFrame:
        frame = VideoFrame.from_ndarray(self._planes, format="yuv420p")
        frame.pts, frame.time_base = await self.next_timestamp()
        return frame
