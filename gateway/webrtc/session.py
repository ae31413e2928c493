"""One peer: its connection, its parameters and its worker (api.md 8)."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiortc import RTCDataChannel, RTCPeerConnection, RTCRtpReceiver

from gateway.errors import Problem
from gateway.logs import current_session
from gateway.pipelines.state import Pipelines
from gateway.stream.frame_queue import FrameQueue
from gateway.stream.parameter_checks import Validated
from gateway.stream.parameters import ParameterState, check_messages
from gateway.stream.video_input import VideoInput
from gateway.stream.worker import StreamObserver, StreamStoppedError, StreamWorker
from gateway.threads import in_parameter_thread
from gateway.webrtc.aiortc_patches.decoding import DecodedVideo
from gateway.webrtc.channels import Channels, Message
from gateway.webrtc.signalling import CandidateFilter
from gateway.webrtc.track import GeneratedTrack

logger = logging.getLogger(__name__)

_LINGER_S = 2.0  # between `stream_stopped` and the end of the connection
_MAX_REFUSALS = 5


class Session:
    """One peer: its connection, its parameters and its worker."""

    def __init__(
        self,
        peer: RTCPeerConnection,
        pipelines: Pipelines,
        state: ParameterState,
        observer: StreamObserver,
        candidates: CandidateFilter,
        on_end: Callable[["Session"], None],
    ) -> None:
        self.id = str(uuid.uuid4())
        self.peer = peer
        self.state = state
        self.input = VideoInput(lambda: state.input_mode == "video")
        if pipelines.loaded is not None:
            self.input.expect_for(pipelines.loaded)
        self.output = FrameQueue(lambda: self.input.fps if state.input_mode == "video" else None)
        self.started = time.monotonic()
        self.closed = False
        self.failed = False  # the stream ended with an error
        self.candidates = candidates
        self.adding_candidates = asyncio.Lock()
        self._on_end = on_end
        self._updating = asyncio.Lock()  # updates take effect in the order in which they came
        self.channels = Channels(self.id, self._update, self._end_abuse)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_input = False
        self._refused: set[str] = set()  # what was said of pictures that are too large
        self._is_heard = False
        self._stopping = False
        self._closing: asyncio.Task[None] | None = None
        self.worker = StreamWorker(
            self.id,
            pipelines,
            state,
            self.input,
            self.output,
            lambda: self._has_input,
            self.channels.send,
            observer,
        )
        self.track = GeneratedTrack(self.output, on_demand=self._begin)
        self.track.on("ended", self._on_sender_ended)
        self.worker.set_paused(state.paused)
        peer.on("datachannel", self._on_channel)
        peer.on("connectionstatechange", self._on_connection_state)

    @property
    def connected(self) -> bool:
        return self.peer.connectionState == "connected"

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run `work` as a task that ends with the session."""
        task = asyncio.create_task(work, name=f"{name}-{self.id}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("[%s] Task %s failed", self.id, task.get_name(), exc_info=task.exception())

    async def update(self, values: dict[str, Any]) -> list[Problem]:
        """Apply a partial update; returns what was wrong with it."""
        async with self._updating:
            return self._apply(await in_parameter_thread(self.state.check, values))

    async def _update(self, messages: Sequence[Message], together: bool) -> list[list[Problem]]:
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

    async def stop(self, error_message: str | None, linger_s: float = _LINGER_S) -> None:
        """Tell the peer that the stream is over, then close."""
        if not self._stopping:
            self._stopping = True
            message = {"type": "stream_stopped"}
            if error_message:
                self.failed = True
                message["error_message"] = error_message
            self.channels.send(message)
            await asyncio.sleep(linger_s)
        await self.close()

    async def close(self) -> None:
        """End the worker and the connection, free everything. Idempotent.

        Goes on when the caller is cancelled: a page that is left hangs up before its DELETE is answered.
        """
        if self._closing is None:
            self.closed = True
            self._closing = asyncio.create_task(self._close(asyncio.current_task()), name=f"close-{self.id}")
        await asyncio.shield(self._closing)

    async def _close(self, caller: "asyncio.Task[Any] | None") -> None:
        logger.info("[%s] Closing the session", self.id)
        self.output.close()
        self.input.close()
        self.track.stop()
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.output.clear()
        try:
            await self.peer.close()
        finally:
            self._on_end(self)

    def _begin(self) -> None:
        if not self.closed:
            self.spawn(self._run_worker(), "worker")

    async def _run_worker(self) -> None:
        current_session.set(self.id)  # for the lines of the serving side, which knows no sessions
        error: str | None
        try:
            await self.worker.run()
            error = None
        except StreamStoppedError as stopped:
            error = stopped.error_message
        except Exception:  # task boundary: the peer is told, the trace is in the log
            logger.exception("[%s] The session's worker failed", self.id)
            error = "internal error, see the server's log"
        await self.stop(error)

    def receive(self, receiver: RTCRtpReceiver) -> None:
        """Take input pictures from the peer's video."""
        self._has_input = True
        DecodedVideo(self.input, self._on_too_large, self._on_input_ended).attach(receiver)

    def _on_too_large(self, text: str) -> None:
        """Pictures are refused; said once for each size, of which an honest camera has few."""
        if text not in self._refused and len(self._refused) < _MAX_REFUSALS:
            self._refused.add(text)
            logger.info("[%s] %s", self.id, text)
            self.channels.report([Problem(loc=["input_mode"], msg=text, type="picture_too_large")])

    def _on_input_ended(self, error: str | None) -> None:
        self._has_input = False
        if error is not None and not self.closed:
            self.spawn(self.stop(error), "stop")
        else:
            logger.debug("[%s] The peer's video ended", self.id)

    def _on_sender_ended(self) -> None:
        """The track to the peer was stopped; if not by us, a picture could not be shown or encoded."""
        if not self.closed and self.connected:
            error = self.track.failure or "The video could not be encoded, see the server's log"
            self.spawn(self.stop(error), "stop")

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if not self._is_heard:
            self._is_heard = True
            self.spawn(self.channels.run(), "messages")
        self.channels.add(channel)

    def _end_abuse(self) -> None:
        if not self.closed and not self._stopping:
            logger.warning("[%s] Too many data channels", self.id)
            self.spawn(self.stop("Too many data channels: one is enough."), "stop")

    def _on_connection_state(self) -> None:
        logger.info("[%s] Connection %s", self.id, self.peer.connectionState)
        if self.peer.connectionState in ("closed", "failed") and not self.closed:
            self.spawn(self.close(), "close")


def session_metrics(session: Session) -> dict[str, Any]:
    """One element of GET /api/v1/session/metrics."""
    elapsed = max(1e-6, time.monotonic() - session.started)
    stats, output = session.worker.stats, session.output
    return {
        "frames_in": session.input.frames_in,
        "frames_out": output.frames_out,
        "frames_dropped": output.frames_dropped,
        "elapsed_seconds": round(elapsed, 3),
        "fps_in": round(session.input.frames_in / elapsed, 2),
        "fps_out": round(output.frames_out / elapsed, 2),
        "pipeline_fps": round(output.fps, 2),
        "queued_frames": len(output),
        "buffered_input_frames": session.input.buffered,
        "connection_state": session.peer.connectionState,
        "paused": output.paused,
        "chunks": stats.chunks,
        "failed_chunks": stats.failed_chunks,
        "last_chunk_ms": stats.last_chunk_ms,
        "timings_ms": stats.timings_ms,
    }
