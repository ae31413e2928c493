"""All recordings of this gateway: at most one per stream, and the takes that there are."""

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Any

from gateway.errors import ApiError
from gateway.recording.recorder import Quality, Recorder, Wish
from gateway.recording.take_writer import Limits
from gateway.recording.takes import Take, Takes
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """Counters since the start, of takes that are complete."""

    done: int = 0
    cut: int = 0
    size_bytes: int = 0


class Recordings:
    """Begins, ends and lists takes."""

    def __init__(self, takes: Takes, limits: Limits, version: str = "") -> None:
        """version: of the program, for the lines beside a take."""
        self.takes = takes
        self._version = version
        self._limits = limits
        self._running: dict[str, Recorder] = {}  # by stream id
        self._beginning: set[str] = set()
        self._totals = Totals()
        self._healing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Make whole what a killed server left, in the background. For the start of the server."""
        self._healing = asyncio.create_task(asyncio.to_thread(self.takes.heal), name="heal-takes")

    def serve(self, streams: Streams) -> None:
        """Let streams be recorded by the parameter `recording`. Call once."""
        streams.on_created.append(self._serve)

    def _serve(self, stream: Stream) -> None:
        async def record(wanted: bool) -> None:
            try:
                if wanted and stream.id not in self._running:
                    await self.start(stream)
                elif not wanted:
                    await self.stop(stream)
            except ApiError as error:
                logger.warning("[%s] Not recorded: %s", stream.id, error.detail)
                stream.notify(
                    {"type": "recording_changed", "state": "error", "take": None, "error": error.detail}
                )

        stream.record = record

    async def start(
        self,
        stream: Stream,
        *,
        name: str | None = None,
        quality: Quality = "shared",
        max_s: float | None = None,
        trim_pauses: bool = False,
    ) -> dict[str, Any]:
        """Begin a take; its object. Raises ApiError 404, 409 (it is recorded already), 507 (no room)."""
        if stream.id in self._running or stream.id in self._beginning:
            raise ApiError(409, f"Stream {stream.id} is being recorded already: stop that take first")
        limits = (
            self._limits if max_s is None else replace(self._limits, max_s=min(max_s, self._limits.max_s))
        )
        self._beginning.add(stream.id)
        try:
            take = await asyncio.to_thread(self.takes.begin, stream.id)
        finally:
            self._beginning.discard(stream.id)
        if stream.closed:
            raise ApiError(404, f"Stream {stream.id} has ended")
        wish = Wish(name, quality, trim_pauses)
        recorder = Recorder(stream, self.takes, take, limits, self._ended, wish, self._version)
        self._running[stream.id] = recorder
        logger.info("[%s] Recording the take %s", stream.id, take)
        stream.notify({"type": "recording_changed", "state": "recording", "take": take})
        return recorder.describe()

    async def stop(self, stream: Stream) -> dict[str, Any] | None:
        """End the stream's take and wait until it is written; its object, None: nothing was recorded."""
        recorder = self._running.get(stream.id)
        if recorder is None:
            return None
        await recorder.close()
        return recorder.describe()

    def mark(self, stream: Stream, label: str) -> dict[str, Any]:
        """Write a marker into the stream's take. Raises ApiError 409."""
        recorder = self._running.get(stream.id)
        if recorder is None:
            raise ApiError(409, f"Stream {stream.id} is not being recorded")
        recorder.mark(label)
        return recorder.describe()

    def of(self, stream: Stream) -> dict[str, Any]:
        """`recording` of a stream's object."""
        recorder = self._running.get(stream.id)
        return {"state": "recording" if recorder else "stopped", "take": recorder.take if recorder else None}

    def is_running(self, stream: Stream) -> bool:
        return stream.id in self._running

    async def entries(self) -> list[dict[str, Any]]:
        """All takes, the newest first."""
        running = {recorder.take: recorder for recorder in self._running.values()}
        complete = await asyncio.to_thread(self.takes.entries)
        finished = [take.describe() for take in complete if take.id not in running]
        return [recorder.describe() for recorder in reversed(running.values())] + finished

    async def describe(self, take: str) -> dict[str, Any]:
        """A take's object. Raises ApiError 404."""
        running = self._find_running(take)
        return running.describe() if running else (await self.find(take)).describe()

    async def find(self, take: str) -> Take:
        """A complete take. Raises ApiError 404, 409 (it is being recorded)."""
        if self._find_running(take) is not None:
            raise ApiError(409, f"Take {take} is being recorded: stop it first")
        return await asyncio.to_thread(self.takes.find, take)

    async def delete(self, take: str) -> None:
        """Remove a take's files. Raises ApiError 404, 409 (it is being recorded)."""
        await self.find(take)
        await asyncio.to_thread(self.takes.delete, take)

    def totals(self) -> Totals:
        """Counters over all takes, those that are being written included."""
        written = sum(recorder.describe()["size_bytes"] for recorder in self._running.values())
        return replace(self._totals, size_bytes=self._totals.size_bytes + written)

    def __len__(self) -> int:
        return len(self._running)

    async def close(self) -> None:
        """End all takes and wait until they are written."""
        recorders = list(self._running.values())
        await asyncio.gather(*(recorder.close() for recorder in recorders), return_exceptions=True)
        if self._healing is not None:
            await asyncio.gather(self._healing, return_exceptions=True)

    def _find_running(self, take: str) -> Recorder | None:
        return next((recorder for recorder in self._running.values() if recorder.take == take), None)

    def _ended(self, recorder: Recorder) -> None:
        stream, take = recorder.stream, recorder.describe()
        if self._running.get(stream.id) is recorder:
            del self._running[stream.id]
        self._totals.done += take["state"] == "done"
        self._totals.cut += take["state"] == "cut"
        self._totals.size_bytes += take["size_bytes"]
        logger.info("[%s] The take %s is complete: %s", stream.id, recorder.take, take["error"] or "done")
        message = {"type": "recording_changed", "state": "stopped", "take": recorder.take}
        if recorder.error is not None:
            message |= {"state": "error", "error": recorder.error}
        stream.notify(message)
