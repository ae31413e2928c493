"""A camera for test peers: a paced track of numbered pictures."""

import asyncio
import time

from aiortc import MediaStreamTrack
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

    async def recv(self) -> VideoFrame:
        now = time.monotonic()
        if self._started is None:
            self._started = now
        due_s = self.sent / self._fps
        await asyncio.sleep(max(0.0, self._started + due_s - now))
        frame = self._video.frame(self.sent, due_s)
        self.sent += 1
        return frame
