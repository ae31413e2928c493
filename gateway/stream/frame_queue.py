"""Pictures on their way to a viewer: how many wait, and at which rate they are shown (api.md 10.2)."""

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.serving.interface import Images
from gateway.waiting import within

_START_FPS = 30.0
_FPS_RANGE = (1.0, 60.0)
_CHUNKS_QUEUED = 1.5  # latency budget


class FrameQueue:
    """Pictures on their way to the track, and the rate at which they are to be shown.

    input_fps: rate of the peer's own video, or None; nothing is shown faster than it arrives.
    """

    def __init__(self, input_fps: Callable[[], float | None]) -> None:
        self._input_fps = input_fps
        self._queue: deque[Images] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._chunk_frames = 1
        self._rates: deque[tuple[float, int]] = deque(maxlen=2)  # (seconds, frames) of the last chunks
        self.last: Images | None = None  # newest picture that was handed to the track
        self.paused = False
        self.closed = False
        self.frames_out = 0
        self.frames_dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def paced(self) -> bool:
        """Whether pictures come in bursts that have to be spread; single ones come at their source's pace."""
        return self._chunk_frames > 1

    @property
    def fps(self) -> float:
        """Frames per second at which the track shows pictures."""
        seconds = sum(s for s, _ in self._rates)
        frames = sum(n for _, n in self._rates)
        pipeline = frames / seconds if seconds > 0 else _START_FPS
        target = min(pipeline, self._input_fps() or pipeline)
        return min(_FPS_RANGE[1], max(_FPS_RANGE[0], target))

    async def wait_room(self) -> None:
        """Until another chunk may be generated without exceeding the latency budget."""
        while len(self._queue) > (_CHUNKS_QUEUED - 1) * self._chunk_frames and not self.closed:
            self._taken.clear()
            await self._taken.wait()

    def expect_chunks_of(self, frames: int) -> None:
        """Another pipeline begins, whose chunks have `frames` pictures."""
        self._chunk_frames = frames
        self._rates.clear()

    def chunk_done(self, seconds: float, frames: int) -> None:
        """A chunk of `frames` pictures took `seconds` from its request to its last picture."""
        if frames:
            self._chunk_frames = frames
            self._rates.append((seconds, frames))

    def put(self, images: Images) -> None:
        """Queue uint8 [T, H, W, 3] pictures; beyond the budget whole old chunks go, so motion stays even."""
        self._queue.extend(images)
        self._arrived.set()
        limit = max(2, int(_CHUNKS_QUEUED * self._chunk_frames)) + len(images)
        while len(self._queue) > limit:
            for _ in range(min(self._chunk_frames, len(self._queue))):
                self._queue.popleft()
                self.frames_dropped += 1

    def clear(self) -> None:
        self._queue.clear()
        self._arrived.set()  # whoever waits for a picture looks again: a pause may have begun
        self._taken.set()

    def close(self) -> None:
        """No more pictures will come; wakes whoever waits for one."""
        self.closed = True
        self._arrived.set()
        self._taken.set()

    async def next(self, repeat_after_s: float) -> Images | None:
        """The next picture; while paused the last one again, after `repeat_after_s`. None when closed."""
        while not self.closed:
            if self._queue:
                self.last = self._queue.popleft()
                self.frames_out += 1
                self._taken.set()
                return self.last
            self._arrived.clear()
            timeout = repeat_after_s if self.paused and self.last is not None else None
            try:
                await within(self._arrived.wait(), timeout)
            except asyncio.TimeoutError:
                return self.last
        return None
