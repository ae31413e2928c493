"""One running generation: its parameters and its worker, and who feeds, sees and controls it."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.errors import Problem
from gateway.logs import current_session
from gateway.pipelines.state import Pipelines
from gateway.stream.hub import Hub
from gateway.stream.parameter_checks import Validated
from gateway.stream.parameters import ParameterState, check_messages
from gateway.stream.parts import Control, Source
from gateway.stream.video_input import Feed, VideoInput
from gateway.stream.worker import StreamObserver, StreamStoppedError, StreamWorker
from gateway.threads import in_parameter_thread

logger = logging.getLogger(__name__)


class Stream:
    """One running generation: one source at a time, any number of sinks (`output.join`) and controls."""

    def __init__(
        self, stream_id: str, pipelines: Pipelines, state: ParameterState, observer: StreamObserver
    ) -> None:
        self.id = stream_id
        self.state = state
        self.input = VideoInput(lambda: state.input_mode == "video")
        if pipelines.loaded is not None:
            self.input.expect_for(pipelines.loaded)
        self.output = Hub(lambda: self.input.fps if state.input_mode == "video" else None)
        self.started = time.monotonic()
        self.stopped = False  # over, and everybody was told
        self.failed = False  # it ended with an error
        self.closed = False
        self._sources: list[tuple[Source, Feed]] = []  # the last one is wanted, earlier ones fill in for it
        self._controls: list[Control] = []
        self._on_stopped: list[Callable[[], None]] = []
        self._updating = asyncio.Lock()  # updates take effect in the order in which they came
        self._running: asyncio.Task[None] | None = None
        self.worker = StreamWorker(
            self.id,
            pipelines,
            state,
            self.input,
            self.output,
            lambda: bool(self._sources),
            self.notify,
            observer,
        )
        self.worker.set_paused(state.paused)

    def take_source(self, source: Source) -> None:
        """Take input pictures from `source`; the one before goes on until the first of them is there."""
        feed = self.input.feed(lambda: self._stop_sources_before(source))
        self._sources.append((source, feed))
        source.start(feed)

    def drop_source(self, source: Source) -> None:
        """`source` has ended; of no consequence when another one has taken its place."""
        self._sources = [pair for pair in self._sources if pair[0] is not source]

    def stop_sources(self) -> None:
        """Take no more input pictures."""
        stopped, self._sources = self._sources, []
        for source, feed in stopped:
            feed.close()
            source.stop()

    def _stop_sources_before(self, source: Source) -> None:
        position = next((i for i, pair in enumerate(self._sources) if pair[0] is source), 0)
        later = self._sources[position:]
        self._sources = self._sources[:position]
        self.stop_sources()
        self._sources = later

    def add_control(self, control: Control) -> None:
        """From now on tell `control` what becomes of the stream."""
        self._controls.append(control)

    def on_stopped(self, call: Callable[[], None]) -> None:
        """Call it once the stream is over, for whatever reason, and its controls were told."""
        self._on_stopped.append(call)

    def notify(self, message: Mapping[str, Any]) -> None:
        """Tell all controls."""
        for control in self._controls:
            control.notify(message)

    def begin(self) -> None:
        """Generate from now on: somebody wants to see pictures. Idempotent."""
        if self._running is None and not self.closed:
            self._running = asyncio.create_task(self._run(), name=f"worker-{self.id}")

    async def _run(self) -> None:
        current_session.set(self.id)  # for the lines of the serving side, which knows no streams
        error: str | None
        try:
            await self.worker.run()
            error = None
        except StreamStoppedError as stopped:
            error = stopped.error_message
        except Exception:  # task boundary: the controls are told, the trace is in the log
            logger.exception("[%s] The stream's worker failed", self.id)
            error = "internal error, see the server's log"
        self.stop(error)

    async def update(self, values: dict[str, Any]) -> list[Problem]:
        """Apply a partial update; returns what was wrong with it."""
        async with self._updating:
            return self._apply(await in_parameter_thread(self.state.check, values))

    async def update_by_messages(
        self, messages: Sequence[str | bytes | None], together: bool
    ) -> list[list[Problem]]:
        """Apply JSON messages, each by itself or all as one update. None: one that was too large."""
        async with self._updating:
            checked = await in_parameter_thread(check_messages, self.state, messages, together)
            return [self._apply(validated) for validated in checked]

    def _apply(self, validated: Validated) -> list[Problem]:
        problems = self.state.apply(validated)
        if self.state.paused != self.output.paused:
            self.worker.set_paused(self.state.paused)
        if self.state.input_mode != "video":
            self.input.clear()
        if self.state.paused or self.state.input_mode != "video":
            self.input.wake()
        if self.state.reset_pending:
            self.output.clear()
        if self.state.outdated:
            self.worker.begin_again()
        return problems

    def stop(self, error_message: str | None) -> None:
        """Tell all controls that the stream is over; whoever holds it closes it. Idempotent."""
        if self.stopped or self.closed:
            return
        self.stopped = True
        message = {"type": "stream_stopped"}
        if error_message:
            self.failed = True
            message["error_message"] = error_message
        self.notify(message)
        for call in self._on_stopped:
            call()

    async def close(self) -> None:
        """End the worker and free all pictures. Idempotent."""
        self.closed = True
        self.output.close()
        self.input.close()
        self.stop_sources()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self.output.clear()

    def metrics(self) -> dict[str, Any]:
        """What GET /api/v1/session/metrics tells about it."""
        elapsed = max(1e-6, time.monotonic() - self.started)
        stats, output = self.worker.stats, self.output
        return {
            "frames_in": self.input.frames_in,
            "frames_out": output.frames_out,
            "frames_dropped": output.frames_dropped,
            "elapsed_seconds": round(elapsed, 3),
            "fps_in": round(self.input.frames_in / elapsed, 2),
            "fps_out": round(output.frames_out / elapsed, 2),
            "pipeline_fps": round(output.fps, 2),
            "queued_frames": len(output),
            "buffered_input_frames": self.input.buffered,
            "paused": output.paused,
            "chunks": stats.chunks,
            "failed_chunks": stats.failed_chunks,
            "last_chunk_ms": stats.last_chunk_ms,
            "timings_ms": stats.timings_ms,
        }
