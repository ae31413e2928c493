"""Incoming video: a ring of the newest pictures and the choice of those that make a chunk (api.md 10.1)."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gateway.pipelines.state import Loaded
from gateway.serving.interface import Images
from streaming.network.video import resize

MAX_PIXELS = 1 << 22  # of a source's picture: 2560x1600 fits, 3840x2160 does not

_RING_REQUESTS = 2  # as many as the choice needs to span the time of a chunk
_FPS_WINDOW = 30
_SINGLE_FRAME_BACKLOG = 2  # two frames may arrive at once by jitter alone
_FPS_MINIMUM_SAMPLES = 5

Size = tuple[int, int]  # height and width in pixels


def choose(buffered: int, wanted: int) -> list[int]:
    """Indices of `wanted` out of `buffered` frames, spread evenly: round(i * m / n), halves to even."""
    return [round(i * buffered / wanted) for i in range(wanted)]


def fit(frame: av.VideoFrame, size: Size | None, reformatter: VideoReformatter) -> Images:
    """uint8 [H, W, 3] RGB, shrunk to what a pipeline of that size needs; None: as it is.

    A side that is larger than the pipeline's becomes as long as that, by the rule with which the pipeline
    itself resizes what it gets: it has only the sides that are too short left to do, and the result differs
    from its own by the rounding to 8 bit.
    """
    picture: Images = (
        reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray().astype(np.uint8, copy=False)
    )
    return shrink(picture, size)


def shrink(picture: Images, size: Size | None) -> Images:
    """`fit` for uint8 [H, W, 3] RGB."""
    height, width = picture.shape[:2]
    return picture if size is None else _resized(picture, min(height, size[0]), min(width, size[1]))


def _resized(picture: Images, height: int, width: int) -> Images:
    if picture.shape[:2] == (height, width):
        return picture
    resized: Images = np.rint(resize(picture[None], height, width)[0]).astype(np.uint8)
    return resized


def stack(pictures: list[Images]) -> Images:
    """uint8 [T, H, W, 3]; pictures of another size than the first take its size (bilinear).

    Blocks for some milliseconds: call it off the event loop.
    """
    height, width = pictures[0].shape[:2]
    return np.stack([_resized(picture, height, width) for picture in pictures])


class VideoInput:
    """The newest pictures of a stream's source; the oldest is dropped when the ring is full.

    Sources come and go, each with a `Feed` of its own.
    """

    def __init__(self, in_video_mode: Callable[[], bool]) -> None:
        self._in_video_mode = in_video_mode
        self._ring: deque[tuple[Images, float]] = deque(maxlen=0)  # with its arrival
        self._arrivals: deque[float] = deque(maxlen=_FPS_WINDOW)
        self._arrived = asyncio.Event()
        self.size: Size | None = None  # what pictures are fitted to; None: they stay as they are
        self.frames_in = 0
        self.taken_at = float("-inf")  # when the newest picture of the last `take` came, monotonic seconds

    def expect(self, frames: int, size: Size | None) -> None:
        """Forget all pictures: a pipeline begins that takes `frames` of that size per request."""
        self.size = size
        self._ring = deque(maxlen=_RING_REQUESTS * frames)

    def expect_for(self, loaded: Loaded) -> None:
        """`expect` what a pipeline takes."""
        spec, params = loaded.spec, loaded.params
        size = (params["height"], params["width"]) if spec.loop is not None else None
        self.expect(spec.video_frames_per_request, size)

    def feed(self, on_first: Callable[[], None], on_picture: Callable[[], None] = lambda: None) -> "Feed":
        """The way in for another source. on_first: called with its first picture; on_picture: with each."""
        return Feed(self, on_first, on_picture)

    def begin_feed(self) -> None:
        """The pictures of another source begin: those of the one before are of no use now."""
        self._ring.clear()
        self._arrivals.clear()

    def clear(self) -> None:
        self._ring.clear()

    def close(self) -> None:
        """No picture is wanted any more."""
        self._ring = deque(maxlen=0)

    @property
    def wanted(self) -> bool:
        """Whether pictures are of any use now; the others need not be decoded."""
        return bool(self._ring.maxlen) and self._in_video_mode()

    def push(self, picture: Images, size: Size | None) -> None:
        """Add uint8 [H, W, 3] RGB that was fitted to `size`; of no use once another pipeline has begun."""
        self.skip()
        if size == self.size and self.wanted:
            self._ring.append((picture, self._arrivals[-1]))
            self._arrived.set()

    def skip(self) -> None:
        """A picture arrived of which no use is made; it counts."""
        self._arrivals.append(time.monotonic())
        self.frames_in += 1

    @property
    def last_arrival(self) -> float:
        """When the newest picture came, monotonic seconds; -inf before the first."""
        return self._arrivals[-1] if self._arrivals else float("-inf")

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

    def take(self, wanted: int) -> list[Images] | None:
        """`wanted` pictures in order, None while fewer are there; what lies before the last is discarded."""
        if len(self._ring) < wanted:
            self._arrived.clear()
            return None
        if wanted == 1:  # no spread to keep: a backlog would only be delay
            while len(self._ring) > _SINGLE_FRAME_BACKLOG:
                self._ring.popleft()
        indices = choose(len(self._ring), wanted)
        pictures = [self._ring[i][0] for i in indices]
        self.taken_at = self._ring[indices[-1]][1]
        for _ in range(indices[-1] + 1):
            self._ring.popleft()
        return pictures

    async def wait(self) -> None:
        """Until a picture has arrived since the last `take` that found too few, or until `wake`."""
        await self._arrived.wait()

    def wake(self) -> None:
        """End `wait`: pictures are not wanted any more."""
        self._arrived.set()


class Feed:
    """The way of one source's pictures into a stream's ring.

    Its first picture takes the place of the source before, whose pictures go on to arrive until then: no
    black and no freeze in between. Read by the thread that decodes: `wanted` and `size`.
    """

    def __init__(
        self, ring: VideoInput, on_first: Callable[[], None], on_picture: Callable[[], None]
    ) -> None:
        self._ring = ring
        self._on_picture = on_picture
        self._on_first: Callable[[], None] | None = on_first
        self.closed = False

    @property
    def wanted(self) -> bool:
        """Whether pictures are of any use now; the others need not be decoded."""
        return not self.closed and self._ring.wanted

    @property
    def size(self) -> Size | None:
        """What pictures are to be fitted to; None: they stay as they are."""
        return self._ring.size

    def push(self, picture: Images, size: Size | None) -> None:
        """Add uint8 [H, W, 3] RGB that was fitted to `size`."""
        if not self.closed:
            self._begin()
            self._ring.push(picture, size)

    def skip(self) -> None:
        """A picture arrived of which no use is made; it counts."""
        if not self.closed:
            self._begin()
            self._ring.skip()

    def close(self) -> None:
        """Let no more pictures in: another source has taken over, or this one has ended. Idempotent."""
        self.closed = True

    def _begin(self) -> None:
        self._on_picture()
        on_first, self._on_first = self._on_first, None
        if on_first is not None:
            self._ring.begin_feed()
            on_first()
