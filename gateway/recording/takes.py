"""The takes in one directory: list, find, delete; what a crash left is made whole (streams.md 5)."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av

from gateway.errors import ApiError
from gateway.files.locks import lock
from gateway.http.validation import quoted
from gateway.recording import sidecar
from gateway.recording.fragments import trim
from gateway.recording.take_writer import CLOCK_RATE, OPEN_SUFFIX, part_name

logger = logging.getLogger(__name__)

INTERRUPTED: Final = "the server ended while it recorded"

_TAKE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_LINES: Final = ".jsonl"
_REMUXED: Final = ".remux-"  # copies for one download each
_START_BYTES: Final = 1 << 30  # that must be free for a take to begin


@dataclass(frozen=True, slots=True)
class Take:
    """One take that is complete, as its files tell."""

    id: str
    head: Mapping[str, Any]
    end: Mapping[str, Any]
    parts: list[Path]
    size_bytes: int

    def describe(self) -> dict[str, Any]:
        """The object that clients see."""
        return take_object(self.id, self.head, self.end, len(self.parts), self.size_bytes)


def take_object(
    take: str, head: Mapping[str, Any], written: Mapping[str, Any], parts: int, size_bytes: int
) -> dict[str, Any]:
    """A take as clients see it. written: `state`, `error`, `frames`, `duration_s`, `width`, `height`."""
    return {
        "take": take,
        "name": head.get("name"),
        "stream": head.get("stream"),
        "pipeline_id": head.get("pipeline_id"),
        "started_at": head.get("started_at"),
        "duration_s": round(float(written.get("duration_s", 0.0)), 3),
        "frames": written.get("frames", 0),
        "width": written.get("width") or None,
        "height": written.get("height") or None,
        "codec": "H264",
        "quality": head.get("quality"),
        "size_bytes": size_bytes,
        "parts": parts,
        "state": written.get("state", "cut"),
        "error": written.get("error"),
    }


class Takes:
    """The files of one directory, `TAKE.mp4` and `TAKE.jsonl`; nothing outside it is read or written.

    total_bytes: what all takes together may have; None: what the disk has room for. start_bytes: what must be
    free for a take to begin.
    """

    def __init__(
        self, directory: Path, total_bytes: int | None = None, start_bytes: int = _START_BYTES
    ) -> None:
        self.directory = directory
        self._total_bytes = total_bytes
        self._start_bytes = start_bytes
        self._remuxing = asyncio.Semaphore(1)

    def begin(self, stream_id: str) -> str:
        """A new take's id, whose sidecar exists from now on. Raises ApiError 507 without room for it."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_room()
            stamp = f"{stream_id}-{time.strftime('%Y%m%d-%H%M%S')}"
            for number in range(1, 1000):
                take = stamp if number == 1 else f"{stamp}-{number}"
                with contextlib.suppress(FileExistsError):
                    (self.directory / f"{take}{_LINES}").open("x").close()
                    return take
        except OSError as error:
            text = f"Nothing can be recorded in {self.directory}: {error.strerror}"
            raise ApiError(507, text) from error
        raise ApiError(507, f"Too many takes begin at once in {self.directory}")

    def _require_room(self) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < self._start_bytes:
            raise ApiError(
                507,
                f"The disk with {self.directory} has {free / 1e6:.0f} MB left and a recording needs "
                f"{self._start_bytes / 1e6:.0f} MB to begin: delete takes, or set WANSTREAM_RECORDINGS_DIR.",
            )
        used = sum(size for _, size in self._files())
        if self._total_bytes is not None and used >= self._total_bytes:
            raise ApiError(
                507,
                f"All takes together have {used / 1e6:.0f} MB, the most that "
                "WANSTREAM_RECORDING_TOTAL_BYTES allows: delete some.",
            )

    def _files(self) -> Iterator[tuple[str, int]]:
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat().st_size

    def entries(self) -> list[Take]:
        """All complete takes, the newest first."""
        takes = []
        with contextlib.suppress(FileNotFoundError):
            for name, _ in self._files():
                take = name.removesuffix(_LINES)
                if name != take and self._is_complete(take):
                    with contextlib.suppress(ApiError):
                        takes.append(self.find(take))
        return sorted(takes, key=lambda take: (take.head.get("started_at") or 0, take.id), reverse=True)

    def _is_complete(self, take: str) -> bool:
        return (self.directory / part_name(take, 1)).exists()

    def find(self, take: str) -> Take:
        """A complete take. Raises ApiError 404."""
        if not _TAKE.fullmatch(take) or not self._is_complete(take):
            raise ApiError(404, f"Take '{quoted(take, 140)}' not found")
        path = self.directory / f"{take}{_LINES}"
        try:
            head, end = sidecar.head(path), sidecar.last_event(path, "end")
        except OSError:
            head, end = {}, None
        parts = self._parts(take)
        if end is None:  # the disk was full, or the sidecar is gone
            end = {"state": "cut", "error": "its end is not known", **_measured(parts)}
        return Take(take, head, end, parts, sum(part.stat().st_size for part in parts))

    def newest_of(self, stream_id: str) -> Take | None:
        """The newest complete take of a stream."""
        return next((take for take in self.entries() if take.head.get("stream") == stream_id), None)

    def part(self, take: str, number: int) -> Path:
        """A video of a take. number: from 1. Raises ApiError 404."""
        parts = self.find(take).parts
        if not 1 <= number <= len(parts):
            raise ApiError(404, f"Take '{take}' has {len(parts)} part(s), there is no part {number}")
        return parts[number - 1]

    def lines(self, take: str) -> list[sidecar.Line]:
        """What was asked of the stream. Raises ApiError 404."""
        self.find(take)
        try:
            return list(sidecar.lines(self.directory / f"{take}{_LINES}"))
        except OSError as error:
            raise ApiError(404, f"Take '{take}' has no data") from error

    def delete(self, take: str) -> None:
        """Remove a take's files. Raises ApiError 404."""
        found = self.find(take)
        for path in (*found.parts, self.directory / f"{take}{_LINES}"):
            path.unlink(missing_ok=True)
        logger.info("The take %s was deleted", take)

    async def remuxed(self, path: Path) -> Path:
        """A copy of a video with its index at the start, without fragments; for the caller to remove.

        Raises ApiError 500, 507.
        """
        target = self.directory / f"{_REMUXED}{uuid.uuid4().hex}.mp4"
        async with self._remuxing:
            try:
                await asyncio.to_thread(_remux, path, target)
            except (OSError, av.FFmpegError) as error:
                await asyncio.to_thread(target.unlink, missing_ok=True)
                text = f"'{path.name}' cannot be rewritten ({error.strerror}): download it as it is"
                raise ApiError(507, text) from error
        return target

    def heal(self) -> None:
        """Name the videos of a process that was killed, and write their ends; nothing is deleted.

        For the start of the server; takes of another one that is running on this directory are left alone.
        """
        if not self.directory.is_dir():
            return
        for path in self.directory.glob(f"{_REMUXED}*"):
            with contextlib.suppress(OSError):
                path.unlink()
        for path in sorted(self.directory.glob(f"*.mp4{OPEN_SUFFIX}")):
            take = re.sub(r"(-part\d+)?\.mp4$", "", path.name.removesuffix(OPEN_SUFFIX))
            try:
                self._heal(take, path)
            except OSError as error:
                logger.warning("The take %s could not be made whole: %s", take, error)

    def _heal(self, take: str, path: Path) -> None:
        lines = self.directory / f"{take}{_LINES}"
        with lines.open("ab") as file, lock(file) as mine:
            if not mine:
                return
            trim(path)
            path.rename(path.with_name(path.name.removesuffix(OPEN_SUFFIX)))
            end = {"event": "end", "state": "cut", "error": INTERRUPTED, **_measured(self._parts(take))}
            sidecar.heal(lines, end)
        logger.info("The take %s was cut by the end of its server; what was recorded is kept", take)

    def _parts(self, take: str) -> list[Path]:
        parts: list[Path] = []
        while (path := self.directory / part_name(take, len(parts) + 1)).exists():
            parts.append(path)
        return parts


def _measured(parts: list[Path]) -> dict[str, Any]:
    """What the videos themselves tell of a take."""
    frames, duration_s, width, height = 0, 0.0, 0, 0
    for path in parts:
        end_s = 0.0
        try:
            with av.open(str(path), format="mov") as container:
                video = container.streams.video[0]
                width, height = video.width, video.height
                for packet in container.demux(video):
                    if packet.pts is not None and packet.size:
                        frames += 1
                        end_s = max(end_s, float(packet.pts * (packet.time_base or 1 / CLOCK_RATE)))
        except (av.FFmpegError, IndexError) as error:  # killed before its first fragment
            logger.debug("%s cannot be read: %s", path, error)
        duration_s += end_s
    return {
        "frames": frames,
        "parts": len(parts),
        "duration_s": round(duration_s, 3),
        "width": width,
        "height": height,
    }


def _remux(source: Path, target: Path) -> None:
    with (
        av.open(str(source), format="mov") as read,
        av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as written,
    ):
        video = read.streams.video[0]
        copy = written.add_stream_from_template(video)
        for packet in read.demux(video):
            if packet.dts is not None:
                packet.stream = copy
                written.mux_one(packet)
