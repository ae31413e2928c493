"""Pictures on their way to viewers: how many wait, how fast they are shown, and to whom (api.md 10.2).

The hub's clock stamps each picture as it is shown, so timestamps never stand still or go back, for whoever
looks: across pauses, reloads and changes of size.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from gateway.serving.interface import Images
from gateway.stream.pictures.picture import CLOCK_RATE, Picture, YuvConverter
from gateway.waiting import within

_START_FPS = 30.0
_FPS_RANGE = (1.0, 60.0)
_CHUNKS_QUEUED = 1.5  # latency budget
_CATCH_UP = 0.85  # share of the period while more is queued than the next picture
_SINK_PICTURES = 2  # that wait for a sink; a viewer wants the newest


class Sink:
    """One who is shown a stream's pictures: a viewer, a recorder. It has a small queue of its own.

    Sinks ask for pictures, and the quickest one sets the pace, up to the hub's rate: nothing is generated for
    nobody, and no task stands between the worker and a viewer. Who asks too seldom misses pictures and slows
    no other.
    """

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._queue: deque[Picture] = deque(maxlen=_SINK_PICTURES)
        self.closed = False
        self.frames_dropped = 0  # not asked for in time

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, picture: Picture) -> None:
        """Take a picture that is due now."""
        self.frames_dropped += len(self._queue) == self._queue.maxlen
        self._queue.append(picture)

    async def next(self) -> Images | None:
        """The next picture as uint8 [H, W, 3] RGB, when it is due; see `next_picture`."""
        picture = await self.next_picture()
        return None if picture is None else picture.image

    async def next_picture(self) -> Picture | None:
        """The next picture, when it is due; while the stream is paused the last one again. None: no more."""
        while not self._queue:
            if self.closed or self._hub.closed:
                return None
            await self._hub.advance(self)
        return self._queue.popleft()

    def close(self) -> None:
        """Want no more pictures. Idempotent."""
        self.closed = True
        self._queue.clear()
        self._hub.leave(self)


class Hub:
    """Takes a stream's pictures, paces them once and hands each of them to all sinks.

    input_fps: rate of the stream's own source, or None; nothing is shown faster than it arrives.
    """

    def __init__(
        self,
        input_fps: Callable[[], float | None],
        on_input_shown: Callable[[float], object] = lambda _: None,
        on_change_shown: Callable[[float], object] = lambda _: None,
    ) -> None:
        """on_input_shown(seconds): so old is the input of a picture when it is shown; see `put`.

        on_change_shown(seconds): so old is the change of parameters that is seen first with it.
        """
        self._input_fps = input_fps
        self._on_input_shown = on_input_shown
        self._on_change_shown = on_change_shown
        self._queue: deque[tuple[Images, float | None, float | None]] = deque()
        self._next: Images | None = None  # left the queue, but is not due yet
        self._next_input: float | None = None  # when its input came
        self._next_change: float | None = None  # when its parameters were changed
        self._repeat = False  # show the last picture again, unless another one comes
        self._converter = YuvConverter()
        self._origin: float | None = None  # of timestamps, monotonic seconds
        self._sinks: list[Sink] = []
        self._turn = asyncio.Lock()  # held by the sink that waits for the next picture, on behalf of all
        self._joined = asyncio.Event()  # somebody looks
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._chunk_frames = 1
        self._rates: deque[tuple[float, int]] = deque(maxlen=2)  # (seconds, frames) of the last chunks
        self._due = 0.0  # when the next picture is to be shown, monotonic seconds
        self._shown: Picture | None = None  # the newest one
        self.paused = False
        self.closed = False
        self.frames_out = 0
        self.frames_dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def _paced(self) -> bool:
        """Whether pictures come in bursts that have to be spread; single ones come at their source's pace."""
        return self._chunk_frames > 1

    @property
    def fps(self) -> float:
        """Frames per second at which pictures are shown."""
        seconds = sum(s for s, _ in self._rates)
        frames = sum(n for _, n in self._rates)
        pipeline = frames / seconds if seconds > 0 else _START_FPS
        target = min(pipeline, self._input_fps() or pipeline)
        return min(_FPS_RANGE[1], max(_FPS_RANGE[0], target))

    @property
    def chunk_seconds(self) -> float:
        """How long the pictures of a chunk are shown."""
        return self._chunk_frames / self.fps

    @property
    def wanted(self) -> bool:
        """Whether anybody looks."""
        return bool(self._sinks)

    async def wait_wanted(self) -> None:
        """Until somebody looks."""
        await self._joined.wait()

    @property
    def last(self) -> Images | None:
        """The newest picture that was shown."""
        return None if self._shown is None else self._shown.image

    def join(self) -> Sink:
        """A new sink; the newest picture waits for it already."""
        sink = Sink(self)
        if self._shown is not None:
            self._shown = self._shown.again(self._stamp())
            sink.offer(self._shown)
        self._sinks.append(sink)
        self._joined.set()
        return sink

    def repeat(self) -> None:
        """Show the newest picture once more, unless a new one comes: somebody has nothing to look at."""
        self._repeat = True
        self._arrived.set()

    def leave(self, sink: Sink) -> None:
        """Show `sink` no more pictures."""
        if sink in self._sinks:
            self._sinks.remove(sink)
        if not self._sinks:
            self._joined.clear()
        self._arrived.set()  # whoever waits looks again, and may be this one

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

    def put(self, images: Images, input_at: float | None = None, changed_at: float | None = None) -> None:
        """Queue uint8 [T, H, W, 3] pictures; beyond the budget whole old chunks go, so motion stays even.

        input_at: when the input of the first one came, monotonic seconds; None: it is of no interest.
        changed_at: the same of a change of its parameters.
        """
        of_first = (input_at, changed_at)
        self._queue.extend(
            (image, *((None, None) if number else of_first)) for number, image in enumerate(images)
        )
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

    async def advance(self, sink: Sink) -> None:
        """Show the next picture to all sinks, when it is due. For a sink that has none left to look at."""
        async with self._turn:
            while self._next is None:
                if self.closed or sink.closed or len(sink):  # another one advanced in the meantime
                    return
                await self._take()
            if self._paced:
                await asyncio.sleep(self._delay())
            self._show(self._next)
            now = time.monotonic()
            if self._next_input is not None:
                self._on_input_shown(now - self._next_input)
            if self._next_change is not None:
                self._on_change_shown(now - self._next_change)
            self._next = self._next_input = self._next_change = None
            period = (1.0 if not self._queue else _CATCH_UP) / self.fps
            self._due = max(self._due, now - period) + period  # no burst after a late picture

    def _show(self, image: Images) -> None:
        """Stamp a picture, new or not, and offer it to all sinks."""
        if self._shown is not None and image is self._shown.image:
            self._shown = self._shown.again(self._stamp())
        else:
            self._shown = Picture.of(image, self._converter, self._stamp())
        for sink in self._sinks:
            sink.offer(self._shown)

    def _stamp(self) -> int:
        """The time in 1/90000 s, later than any stamp before; the first one is 0."""
        now = time.monotonic()
        if self._origin is None:
            self._origin = now
        before = -1 if self._shown is None else self._shown.pts
        return max(before + 1, int((now - self._origin) * CLOCK_RATE))

    async def _take(self) -> None:
        """Wait for something that may be a picture, and make it the next one to be shown."""
        if self._queue:
            self._next, self._next_input, self._next_change = self._queue.popleft()
            self._repeat = False
            self.frames_out += 1
            self._taken.set()
            return
        if self._repeat:
            self._next, self._repeat = self.last, False
            return
        self._arrived.clear()
        timeout = self._delay() if self.paused and self.last is not None else None
        try:
            await within(self._arrived.wait(), timeout)
        except asyncio.TimeoutError:
            self._next = self.last

    def _delay(self) -> float:
        return max(0.0, self._due - time.monotonic())
