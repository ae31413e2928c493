"""The thread that writes one take: encoded pictures into fragmented MP4, lines beside it (streams.md 5.4).

Whatever happens to the process, what was written plays: a fragment is complete every second. Nobody waits for
the disk; where it is too slow for two seconds, pictures are left out up to the next key frame.
"""

import contextlib
import errno
import hashlib
import io
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import av
from av.container import OutputContainer

from gateway.files.locks import lock
from gateway.recording import sidecar
from gateway.recording.fragments import trim
from gateway.stream.parameters.checks import IMAGE_KEYS

logger = logging.getLogger(__name__)

Packet: TypeAlias = "av.Packet[av.VideoStream]"  # not subscriptable when it runs

CLOCK_RATE: Final = 90_000
OPEN_SUFFIX: Final = ".part"  # of a video that is being written
DISK_FULL: Final = "disk full"

_USUAL_PERIOD: Final = CLOCK_RATE // 30
_LONGEST_QUEUE: Final = 2 * CLOCK_RATE  # from the oldest picture that waits to the newest
_CHECK_EVERY_S: Final = 1.0  # as often as a fragment ends
_FRAGMENTS: Final = {
    "movflags": "empty_moov+default_base_moof",
    "frag_duration": "1000000",  # microseconds
    "flush_packets": "1",
}


State = Literal["recording", "done", "cut"]  # cut: by a crash, a limit or the disk


@dataclass(frozen=True, slots=True)
class Limits:
    """When a take ends by itself. free_bytes: what must be left on the disk."""

    max_s: float = 7200.0
    max_bytes: int = 20 << 30
    free_bytes: int = 256 << 20


@dataclass(slots=True)
class Written:
    """What is in a take so far; changed by its thread only."""

    frames: int = 0
    duration_s: float = 0.0
    width: int = 0
    height: int = 0
    parts: int = 0
    size_bytes: int = 0
    dropped: int = 0
    state: State = "recording"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Picture:
    packet: Packet
    size: tuple[int, int]
    follows: bool


@dataclass(frozen=True, slots=True)
class _End:
    error: str | None


class _Limit(Exception):
    """The take ends here; the text says why."""


def part_name(take: str, number: int) -> str:
    """File name of a take's video; a take has several when the picture size changes. number: from 1."""
    return f"{take}.mp4" if number == 1 else f"{take}-part{number}.mp4"


class TakeWriter:
    """Writes one take; `put`, `note` and `finish` return at once."""

    def __init__(
        self,
        directory: Path,
        take: str,
        head: Mapping[str, Any],
        limits: Limits,
        on_end: Callable[[], object],
        want_key_frame: Callable[[], None],
    ) -> None:
        """head: first line of the sidecar. on_end: called from the thread, when all files are closed.

        want_key_frame: called by `put`.
        """
        self.written = Written()
        self._directory = directory
        self._take = take
        self._head = head
        self._limits = limits
        self._on_end = on_end
        self._want_key_frame = want_key_frame
        self._items: deque[_Picture | dict[str, Any] | _End] = deque()
        self._waiting: deque[int] = deque()  # timestamps of the pictures among them
        self._changed = threading.Condition()
        self._follows = False  # the next picture that is taken
        self._skipping = 0  # pictures that were left out since the last one that was taken
        self._newest: int | None = None  # of the one that was written last
        self._period = _USUAL_PERIOD  # from one picture to the next
        self._cut_out = 0  # ticks of the stream's clock that the take's has not
        self._part: _Part | None = None
        self._closed_bytes = 0  # of the parts that are complete
        self._checked = 0.0
        self._over = False
        self._thread = threading.Thread(target=self._run, name=f"take-{take}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def put(self, packet: Packet, size: tuple[int, int], *, follows: bool = False) -> None:
        """Write an encoded picture of this width and height; it is only read.

        follows: right after the one before, whatever its timestamp says.
        """
        assert packet.pts is not None
        with self._changed:
            if self._over:
                return
            self._follows |= follows  # also when the next ones are left out
            if self._waiting and packet.pts - self._waiting[0] > _LONGEST_QUEUE:
                self._skipping += 1
                if self._skipping == 1:
                    self._want_key_frame()
                return
            if self._skipping and not packet.is_keyframe:
                self._skipping += 1
                return
            if self._skipping:
                self._items.append({"event": "drop", "pictures": self._skipping})
                self.written.dropped += self._skipping
                self._skipping = 0
            self._waiting.append(packet.pts)
            self._items.append(_Picture(packet, size, self._follows))
            self._follows = False
            self._changed.notify()

    def note(self, line: dict[str, Any]) -> None:
        """Write a line beside the video."""
        with self._changed:
            self._items.append(line)
            self._changed.notify()

    def finish(self, error: str | None = None) -> None:
        """Write what waits and close the files. error: the take is cut, and why."""
        with self._changed:
            self._items.append(_End(error))
            self._changed.notify()

    def _next(self) -> _Picture | dict[str, Any] | _End:
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            if isinstance(item, _Picture):
                self._waiting.popleft()
            return item

    def _run(self) -> None:
        error: str | None = "it could not be written, see the server's log"
        try:
            path = self._directory / f"{self._take}.jsonl"
            with path.open("ab") as lines, lock(lines):
                sidecar.append(lines, self._head)
                error = self._write(lines)
                self.written.error = error
                self.written.state = "cut" if error else "done"
                with contextlib.suppress(OSError):  # the disk is full: the video says most of it
                    sidecar.append(lines, self._end_line())
            if not self.written.frames:
                path.unlink()
        except OSError as failed:
            error = _reason(failed)
            logger.warning("The take %s could not be written: %s", self._take, error)
        except Exception:  # thread boundary: whoever records is told, the trace is in the log
            logger.exception("The take %s could not be written", self._take)
        finally:
            self.written.error = error
            self.written.state = "cut" if error else "done"
            self._on_end()

    def _write(self, lines: BinaryIO) -> str | None:
        """Write until the end; why it came early."""
        error: str | None = None
        try:
            while not isinstance(item := self._next(), _End):
                if isinstance(item, _Picture):
                    self._mux(item, lines)
                else:
                    sidecar.append(lines, _with_hashes(item))
            error = item.error
        except _Limit as limit:
            error = str(limit)
        except (OSError, av.FFmpegError) as failed:
            error = _reason(failed)
            logger.warning("The take %s is cut: %s", self._take, failed)
        finally:
            self._over = True
            failure = self._close_part()
        return error or failure

    def _mux(self, picture: _Picture, lines: BinaryIO) -> None:
        packet, written = picture.packet, self.written
        assert packet.pts is not None
        begins = self._part is None or self._part.size != picture.size
        if begins and not packet.is_keyframe:  # nothing to begin with
            written.dropped += 1
            return
        at = self._ticks(packet.pts, follows=picture.follows)
        if begins:
            self._begin_part(picture, at, lines)
        assert self._part is not None
        self._part.write(packet, at)
        written.frames += 1
        written.duration_s = at / CLOCK_RATE
        if written.duration_s >= self._limits.max_s:
            raise _Limit(f"it is {self._limits.max_s:.0f} s long, the longest that is allowed")
        self._check_disk()

    def _ticks(self, pts: int, *, follows: bool) -> int:
        """The time of the next picture on the take's clock, in 1/90000 s."""
        if self._newest is None:
            self._cut_out = pts  # the clock begins with the first picture
        else:
            step = pts - self._newest
            if follows:
                self._cut_out += max(0, step - self._period)
            else:
                self._period = min(step, CLOCK_RATE)
        self._newest = pts
        return pts - self._cut_out

    def _begin_part(self, picture: _Picture, at: int, lines: BinaryIO) -> None:
        if failure := self._close_part():
            raise _Limit(failure)
        written = self.written
        written.parts += 1
        written.width, written.height = picture.size
        name = part_name(self._take, written.parts)
        self._part = _Part(self._directory / name, picture.packet, picture.size, at)
        if written.parts > 1:
            at_s = round(at / CLOCK_RATE, 3)
            width, height = picture.size
            sidecar.append(
                lines, {"t": at_s, "event": "part", "part": written.parts, "width": width, "height": height}
            )

    def _close_part(self) -> str | None:
        """Complete the file that is open; what went wrong with it."""
        part, self._part = self._part, None
        if part is None:
            return None
        failure = None
        try:
            part.close()
        except (OSError, av.FFmpegError) as failed:
            failure = _reason(failed)
        self._closed_bytes += part.size_bytes()
        self.written.size_bytes = self._closed_bytes
        return failure

    def _check_disk(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_EVERY_S:
            return
        self._checked = now
        assert self._part is not None
        self.written.size_bytes = self._closed_bytes + self._part.size_bytes()
        if self.written.size_bytes >= self._limits.max_bytes:
            raise _Limit(f"it has {self._limits.max_bytes / 1e6:.0f} MB, the most that is allowed")
        if shutil.disk_usage(self._directory).free < self._limits.free_bytes:
            raise _Limit(DISK_FULL)

    def _end_line(self) -> dict[str, Any]:
        written = self.written
        return {
            "t": round(written.duration_s, 3),
            "event": "end",
            "state": written.state,
            "error": written.error,
            "frames": written.frames,
            "parts": written.parts,
            "duration_s": round(written.duration_s, 3),
            "width": written.width,
            "height": written.height,
            "dropped": written.dropped,
        }


class _Part:
    """One MP4 file, of pictures of one size. size: their width and height. first: ticks of its first one."""

    def __init__(self, path: Path, key_frame: Packet, size: tuple[int, int], first: int) -> None:
        self.size = size
        self._first = first
        self._path = path
        self._open_path = path.with_name(path.name + OPEN_SUFFIX)
        self._file = _Flushed(self._open_path)
        self._container: OutputContainer = av.open(self._file, "w", format="mp4", options=dict(_FRAGMENTS))
        # The demuxer reads size, profile and parameter sets out of the key frame.
        with av.open(io.BytesIO(bytes(key_frame)), format="h264") as description:
            self._stream = self._container.add_stream_from_template(description.streams.video[0])
        self._stream.time_base = key_frame.time_base

    def write(self, packet: Packet, at: int) -> None:
        """at: ticks of the take's clock; players begin each file at 0."""
        copy = av.Packet(bytes(packet))  # the packet belongs to others, too
        copy.stream, copy.time_base, copy.is_keyframe = self._stream, packet.time_base, packet.is_keyframe
        copy.pts = copy.dts = at - self._first
        self._container.mux_one(copy)

    def size_bytes(self) -> int:
        for path in (self._open_path, self._path):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        return 0

    def close(self) -> None:
        """Complete the file; it gets its name even where that fails, since it plays."""
        try:
            self._container.close()
        finally:
            self._file.close()
            if self._file.failed:
                trim(self._open_path)
            self._open_path.rename(self._path)


class _Flushed:
    """A file for libav that keeps nothing back. Its own would hold all threads up while the disk does."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.failed = False

    def write(self, data: bytes) -> int:
        try:
            count = self._file.write(data)
            self._file.flush()
        except OSError:
            self.failed = True
            raise
        return count

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was reported
            self._file.close()


def _with_hashes(line: dict[str, Any]) -> dict[str, Any]:
    """The line with the SHA-256 of each reference image that it names, since files may change."""
    values = line.get("set", {})
    lists = [v if isinstance(v, list) else [v] for k, v in values.items() if k in IMAGE_KEYS and v]
    hashes = {path: digest for paths in lists for path in paths if (digest := _sha256(Path(path)))}
    return {**line, "sha256": hashes} if hashes else line


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest()
    except OSError:  # it is gone
        return None


def _reason(error: OSError | av.FFmpegError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK_FULL
    return f"the disk reports: {error.strerror or error}"
