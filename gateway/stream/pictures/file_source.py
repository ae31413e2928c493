"""A video file as a stream's source: played in a loop, at its own pace (streams.md 1.8)."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import av
from av.container import InputContainer
from pydantic import TypeAdapter

from gateway.errors import ApiError
from gateway.files.media import MediaError, damaged, open_video, rgb_picture
from gateway.http.paths import PathNotAllowedError, is_file, resolve_inside
from gateway.http.validation import FilePath, check, quoted
from gateway.serving.interface import Images
from gateway.stream.openers import Attach
from gateway.stream.pictures.video_input import MAX_PIXELS, Feed, Size, shrink
from gateway.stream.stream import Stream

logger = logging.getLogger(__name__)

_PATH: Final = TypeAdapter(FilePath)
_ASSUMED_FPS = 30.0
_LONGEST_GAP_S = 1.0  # between two pictures; what a file says beyond that is taken for a fault
_LATE_S = 0.25  # from here on pictures are left out, so that motion keeps its speed
_HOPELESS_S = 2.0  # behind: the clock begins anew
_IDLE_S = 0.05  # between two looks whether pictures are of use again

OnLost = Callable[[str], None]


class FileSource:
    """Pushes a video's pictures, paced by its timestamps, again and again; decodes in a thread of its own.

    It stands still while its stream wants no pictures. Make one with `open_file`.
    """

    def __init__(self, path: Path, container: InputContainer, video: av.VideoStream, on_lost: OnLost) -> None:
        """on_lost(text): no more pictures come, and why; called on the event loop."""
        self.name = path.name
        self._path = path
        self._container = container
        self._video = video
        self._on_lost = on_lost
        self._stopped = threading.Event()
        rate = self._video.average_rate
        self.fps = float(rate) if rate else _ASSUMED_FPS
        self.width, self.height = self._video.width, self._video.height

    def start(self, feed: Feed) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._run, args=(feed, loop), name=f"file-source-{self.name}", daemon=True
        ).start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def info(self) -> Mapping[str, Any]:
        size = {"width": self.width, "height": self.height, "fps": self.fps}
        return {"kind": "file", "name": self.name, **size}

    def _run(self, feed: Feed, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with self._container:
                self._play(feed, loop)
        except Exception as error:  # thread boundary: the stream is told, the trace is in the log
            logger.info("The video %s cannot be played any more", self._path, exc_info=error)
            text = str(error) if isinstance(error, MediaError) else str(damaged(error))
            self._tell(loop, self._on_lost, f"The video '{self.name}' has stopped: {text}")

    def _play(self, feed: Feed, loop: asyncio.AbstractEventLoop) -> None:
        clock = time.monotonic()  # when the picture at 0 s was due
        for at_s, frame in self._frames():
            if not feed.wanted:
                self._tell(loop, feed.skip)  # a picture came, so the source before is over
                clock += self._wait_until_wanted(feed)
            behind = time.monotonic() - (clock + at_s)
            if behind > _HOPELESS_S:
                clock += behind
            elif self._stopped.wait(max(0.0, -behind)):
                return
            if behind < _LATE_S or behind > _HOPELESS_S:
                size = feed.size
                self._tell(loop, feed.push, _picture(frame, size), size)
            if self._stopped.is_set():
                return

    def _wait_until_wanted(self, feed: Feed) -> float:
        """How many seconds it took; a stopped source waits no longer."""
        started = time.monotonic()
        while not feed.wanted and not self._stopped.wait(_IDLE_S):
            pass
        return time.monotonic() - started

    def _frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Pictures without end, and when each is due in seconds after the first."""
        period = 1 / self.fps
        at_s = 0.0
        while True:
            last: float | None = None
            for frame in self._container.decode(self._video):
                now = frame.time
                if last is not None:
                    step = now - last if now is not None else period
                    at_s += min(_LONGEST_GAP_S, max(0.0, step))
                last = (last or 0.0) + period if now is None else now
                yield at_s, frame
            if last is None:
                raise MediaError("there is no picture in it any more")
            at_s += period
            self._container.seek(0)

    def _tell(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
        if not self._stopped.is_set() and not loop.is_closed():
            loop.call_soon_threadsafe(call, *arguments)


async def open_file(path: Path, on_lost: OnLost) -> FileSource:
    """A source that plays a video file. Raises ApiError 400 for one that cannot be decoded."""
    try:
        return await asyncio.to_thread(_open, path, on_lost)
    except MediaError as error:
        raise ApiError(400, f"'{path.name}' cannot be played: {error}") from error


def file_attacher(assets: Path) -> Attach:
    """For `{"kind": "file", "path": ...}`: plays a video of the assets directory."""

    async def attach(stream: Stream, wish: Mapping[str, Any]) -> None:
        name = check(_PATH, wish.get("path"), "body", "path")
        try:
            path = await asyncio.to_thread(resolve_inside, assets, name)
        except PathNotAllowedError as error:
            raise ApiError(400, str(error)) from error
        if not await asyncio.to_thread(is_file, path):
            raise ApiError(404, f"No such asset: '{quoted(name, 200)}'. Upload it first.")
        stream.take_source(await open_file(path, stream.source_lost))

    return attach


def _open(path: Path, on_lost: OnLost) -> FileSource:
    try:
        container, video = open_video(path)
        try:
            _check(container, video)
        except Exception:
            container.close()
            raise
    except MediaError:
        raise
    except Exception as error:  # decoders raise whatever a broken file makes them run into
        raise damaged(error) from error
    return FileSource(path, container, video, on_lost)


def _check(container: InputContainer, video: av.VideoStream) -> None:
    if video.width * video.height > MAX_PIXELS:
        raise MediaError(
            f"its pictures of {video.width}x{video.height} pixels are too large: at most "
            f"{MAX_PIXELS / 1e6:.1f} million can be taken, as in 2560x1600"
        )
    if next(container.decode(video), None) is None:
        raise MediaError("there is no picture in it")
    container.seek(0)


def _picture(frame: av.VideoFrame, size: Size | None) -> Images:
    return shrink(rgb_picture(frame), size)
