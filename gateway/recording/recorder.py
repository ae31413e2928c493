"""The recorder of one stream: its H.264 pictures into a take, what is asked of it into the lines beside."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from gateway.recording.high_quality import HighQualityEncoder
from gateway.recording.sidecar import FORMAT
from gateway.recording.take_writer import Limits, Packet, TakeWriter
from gateway.recording.takes import Takes, take_object
from gateway.stream.parameters.state import ChunkParameters
from gateway.stream.stream import Stream

logger = logging.getLogger(__name__)

Quality = Literal["shared", "high"]

_SEEK_S: Final = 10.0  # from one key frame to the next
_ONCE: Final = ("lora_scales", "vace_ref_images", "first_frame_image", "last_frame_image")


class EncodedPicture(Protocol):
    """A packet and the width and height of its picture."""

    @property
    def packet(self) -> Packet: ...

    @property
    def size(self) -> tuple[int, int]: ...


class Packets(Protocol):
    """Where a recorder's packets come from: a shared encoder, or one of its own."""

    async def next_picture(self) -> EncodedPicture | None:
        """The next one, without those of a pause. None: no more."""

    def want_key_frame(self, reason: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks of a take. name: for people. trim_pauses: a pause leaves no gap."""

    name: str | None = None
    quality: Quality = "shared"
    trim_pauses: bool = False


class Recorder:
    """A sink of a stream that writes a take, and a holder: the stream lives on while it records."""

    def __init__(
        self,
        stream: Stream,
        takes: Takes,
        take: str,
        limits: Limits,
        on_end: Callable[["Recorder"], None],
        wish: Wish = Wish(),
        version: str = "",
    ) -> None:
        """on_end: everything is written, also when the take ended by itself. version: of the program."""
        self.stream = stream
        self.take = take
        self._on_end = on_end
        self._since = time.time()
        self._began: float | None = None  # monotonic time of the first picture
        self._key_frame_at = time.monotonic()
        self._told = dict(stream.state.effective)  # the parameters that are written
        self._trims = wish.trim_pauses
        self._standing_since = time.monotonic() if stream.output.paused else None
        self._resumed = False  # and no picture has come since
        self._trimmed_s = 0.0
        self._over = asyncio.Event()
        self._head = self._describe(wish, version)
        self._packets: Packets = (
            HighQualityEncoder(stream.output)
            if wish.quality == "high"
            else stream.encoders.subscribe("H264", repeats=False)
        )
        loop = asyncio.get_running_loop()
        self._writer = TakeWriter(
            takes.directory,
            take,
            self._head,
            limits,
            lambda: loop.call_soon_threadsafe(self._written),
            lambda: self._packets.want_key_frame("cut"),
        )
        self._writer.start()
        self._task = asyncio.create_task(self._run(), name=f"recorder-{take}")
        stream.hold(self)
        stream.add_sink(self)
        stream.add_listener(self)
        stream.begin()

    @property
    def info(self) -> dict[str, Any]:
        """What people are told of this sink."""
        written = self._writer.written
        return {
            "kind": "recorder",
            "id": self.take,
            "take": self.take,
            "since": self._since,
            "codec": "H264",
            "width": written.width or None,
            "height": written.height or None,
            "frames": written.frames,
            "dropped": written.dropped,
        }

    def describe(self) -> dict[str, Any]:
        """The take object, as of now."""
        written = self._writer.written
        return take_object(
            self.take,
            self._head,
            {
                "frames": written.frames,
                "duration_s": written.duration_s,
                "width": written.width,
                "height": written.height,
                "state": written.state,
                "error": written.error,
            },
            written.parts,
            written.size_bytes,
        )

    @property
    def error(self) -> str | None:
        """Why the take ended by itself."""
        return self._writer.written.error

    def mark(self, label: str) -> None:
        """Write a marker at this moment."""
        self.happened("mark", {"label": label})

    async def close(self) -> None:
        """End the take and wait until it is written. Idempotent."""
        self._packets.close()
        self._writer.finish()
        await self._over.wait()

    async def _run(self) -> None:
        try:
            while (picture := await self._packets.next_picture()) is not None:
                now = time.monotonic()
                self._began = self._began or now
                if picture.packet.is_keyframe:
                    self._key_frame_at = now
                elif now - self._key_frame_at > _SEEK_S:
                    self._key_frame_at = now
                    self._packets.want_key_frame("cut")
                self._writer.put(picture.packet, picture.size, follows=self._follows_a_pause())
            self._writer.finish()
        except Exception:  # task boundary: the take is closed, the trace is in the log
            logger.exception("[%s] The recorder failed", self.stream.id)
            self._writer.finish("internal error, see the server's log")

    def _written(self) -> None:
        """The take is complete, for whatever reason."""
        if not self._over.is_set():
            self._task.cancel()
            self._packets.close()
            self.stream.remove_listener(self)
            self.stream.remove_sink(self)
            self._on_end(self)
            self._over.set()
            self.stream.release(self)

    # What becomes of the stream, as its listener.

    def before_chunk(self, number: int) -> None:
        """Parameters are other people's."""

    def chunk_taken(self, number: int, chunk: ChunkParameters) -> None:
        """Write what the chunk is told otherwise than the one before, and by whom."""
        effective = self.stream.state.effective
        once = {key: chunk.parameters[key] for key in _ONCE if key in chunk.parameters}
        changed = {key: value for key, value in effective.items() if value != self._told.get(key)}
        changed.pop("paused", None)
        self._told = effective
        if chunk.parameters["init_cache"]:
            self._writer.note({**self._at(number), "event": "reset"})
        by_whom: dict[str | None, dict[str, Any]] = {}
        for key, value in (changed | once).items():
            by_whom.setdefault(self.stream.changed_by.get(key), {})[key] = value
        for who, values in by_whom.items():
            self._writer.note({**self._at(number), "set": values, **({"by": who} if who else {})})

    def happened(self, event: str, details: Mapping[str, Any] | None = None) -> None:
        if event == "pause" and self._standing_since is None:
            self._standing_since = time.monotonic()
        self._writer.note({**self._at(self.stream.worker.stats.chunks), "event": event, **(details or {})})
        if event == "resume" and self._standing_since is not None:
            began = time.monotonic() if self._began is None else self._began
            self._trimmed_s += max(0.0, time.monotonic() - max(self._standing_since, began))
            self._standing_since, self._resumed = None, True

    def _follows_a_pause(self) -> bool:
        """Whether the picture is to be shown right after the one before, although the stream stood still."""
        resumed, self._resumed = self._resumed, False
        return self._trims and (resumed or self._standing_since is not None)

    def _at(self, chunk: int) -> dict[str, Any]:
        now = time.monotonic()
        if self._trims:
            now = (self._standing_since or now) - self._trimmed_s
        seconds = 0.0 if self._began is None else max(0.0, now - self._began)
        return {"t": round(seconds, 3), "chunk": chunk}

    def _describe(self, wish: Wish, version: str) -> dict[str, Any]:
        loaded, plan = self.stream.worker.loaded, self.stream.worker.load_plan
        effective = self.stream.state.effective
        return {
            "format": FORMAT,
            "take": self.take,
            "name": wish.name,
            "stream": self.stream.id,
            "version": version,
            "pipeline_id": loaded.spec.id if loaded else None,
            "engine_set": plan.engine_set if plan else None,
            "load_params": dict(loaded.params) if loaded else {},
            "seed": effective["base_seed"],
            "width": loaded.params.get("width") if loaded else None,
            "height": loaded.params.get("height") if loaded else None,
            "input_mode": effective["input_mode"],
            "parameters": effective,
            "chunk": self.stream.worker.stats.chunks,
            "quality": wish.quality,
            "trim_pauses": wish.trim_pauses,
            "started_at": round(self._since, 3),
        }
