"""A stream's pictures as JPEG: one of them, or a sequence that is encoded once for all who read it."""

import asyncio
import io
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from PIL import Image

from gateway.serving.interface import Images
from gateway.stream.stream import Stream
from gateway.threads import in_media_thread

BOUNDARY: Final = "picture"
MAX_FPS: Final = 30


def jpeg(image: Images, quality: int) -> bytes:
    """An encoded picture, from uint8 [H, W, 3] RGB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class _Reader:
    """One who reads a sequence. It has the newest picture only: who is slow skips some."""

    def __init__(self, fps: int) -> None:
        self.period_s = 1 / fps
        self.id = str(uuid.uuid4())
        self.since = time.time()
        self.frames = 0
        self._due = 0.0
        self._newest: bytes | None = None
        self._arrived = asyncio.Event()
        self._closed = False

    def offer(self, picture: bytes, now: float) -> None:
        if now >= self._due - 0.1 * self.period_s:  # the clock of the sequence is not as even as that
            self._due = max(self._due, now - self.period_s) + self.period_s
            self._newest = picture
            self.frames += 1
            self._arrived.set()

    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": "mjpeg", "id": self.id, "since": self.since, "codec": "JPEG", "frames": self.frames}

    async def close(self) -> None:
        self.end()

    def end(self) -> None:
        self._closed = True
        self._arrived.set()

    async def next(self) -> bytes | None:
        """The newest picture that was not read yet; None: there are no more."""
        await self._arrived.wait()
        self._arrived.clear()
        newest, self._newest = self._newest, None
        return None if self._closed else newest


class JpegSequence:
    """Encodes a stream's pictures in one quality, as often as its quickest reader wants them."""

    def __init__(self, stream: Stream, quality: int) -> None:
        self._stream = stream
        self._quality = quality
        self._readers: set[_Reader] = set()
        self._task: asyncio.Task[None] | None = None
        self.encoded = 0

    async def read(self, fps: int) -> AsyncIterator[bytes]:
        """The pictures, at most `fps` of them a second. Whoever reads is a viewer."""
        reader = _Reader(fps)
        self._readers.add(reader)
        self._stream.add_sink(reader)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"jpeg-{self._stream.id}")
        try:
            while (picture := await reader.next()) is not None:
                yield picture
        finally:
            self._readers.discard(reader)
            self._stream.remove_sink(reader)
            if not self._readers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        sink = self._stream.output.join()
        self._stream.begin()
        due = 0.0
        try:
            while (image := await sink.next()) is not None:
                now = time.monotonic()
                period_s = min((reader.period_s for reader in self._readers), default=1.0)
                if now < due - 0.1 * period_s:
                    continue
                due = max(due, now - period_s) + period_s
                picture = await in_media_thread(jpeg, image, self._quality)
                self.encoded += 1
                for reader in self._readers:
                    reader.offer(picture, now)
        finally:
            sink.close()
            for reader in self._readers:
                reader.end()


class Jpegs:
    """The sequences of all streams: one for each stream and quality that somebody reads."""

    def __init__(self) -> None:
        self._sequences: dict[tuple[str, int], JpegSequence] = {}

    def sequence(self, stream: Stream, quality: int) -> JpegSequence:
        key = stream.id, quality
        if key not in self._sequences:
            self._sequences[key] = JpegSequence(stream, quality)
            stream.on_closed(lambda: self._sequences.pop(key, None))
        return self._sequences[key]


def part(picture: bytes) -> bytes:
    """A JPEG as a part of multipart/x-mixed-replace."""
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
    return head.encode() + picture + b"\r\n"
