"""One WebRTC connection, and what it binds to a stream: a camera, a viewer, its data channels (api.md 8)."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiortc import RTCDataChannel, RTCPeerConnection, RTCRtpReceiver

from gateway.errors import Problem
from gateway.stream.parts import Role, parameter_error
from gateway.stream.stream import Stream
from gateway.webrtc.aiortc_patches.decoding import DecodedVideo
from gateway.webrtc.candidates import CandidateFilter
from gateway.webrtc.channels import Channels
from gateway.webrtc.connection import ice_failed
from gateway.webrtc.track import EncodedTrack

logger = logging.getLogger(__name__)

_MAX_REFUSALS = 5
_END_OF_CONNECTION_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """What a peer is to its stream.

    is_owner: the stream was made by its offer. role: what it may do: the seat goes to controllers only.
    grace_s: how long the stream waits for it to come back when it leaves, however it does.
    """

    role: Role = "controller"
    is_owner: bool = True
    label: str = "browser"
    grace_s: float = 0.0


@dataclass(eq=False)
class _Viewer:
    """A peer as a sink of its stream."""

    id: str
    is_owner: bool
    track: EncodedTrack
    since: float = field(default_factory=time.time)

    @property
    def info(self) -> Mapping[str, Any]:
        known = {"kind": "webrtc", "id": self.id, "since": self.since, "owner": self.is_owner}
        return {**known, **self.track.info}

    async def close(self) -> None:
        """The connection ends after the stream: it has nothing to save."""


class Peer:
    """One WebRTC connection. Whoever made the stream, or may drive it, keeps it alive."""

    def __init__(
        self,
        session_id: str,
        connection: RTCPeerConnection,
        stream: Stream,
        candidates: CandidateFilter,
        on_end: Callable[["Peer"], None],
        part: Part = Part(),
    ) -> None:
        self.id = session_id
        self.part = part
        self.connection = connection
        self.stream = stream
        self.closed = False
        self.candidates = candidates
        self.adding_candidates = asyncio.Lock()
        self.grace_s = part.grace_s
        self._on_end = on_end
        self._tasks: set[asyncio.Task[Any]] = set()
        self._camera: DecodedVideo | None = None
        self._refused: set[str] = set()  # what was said of pictures that are too large
        self._is_heard = False
        self._was_connected = False
        self._end_reason = "left"
        self._closing: asyncio.Task[None] | None = None
        self.channels = Channels(self.id, part.role, part.label, self._update, self._end_abuse)
        self.track = EncodedTrack(stream.encoders)
        self.track.on("ended", self._on_sender_ended)
        self._viewer = _Viewer(self.id, part.is_owner, self.track)
        stream.add_sink(self._viewer)
        stream.add_control(self.channels, is_owner=part.is_owner)
        if part.role != "viewer":
            stream.hold(self, lambda: self.connected)
        if not part.is_owner:  # who made the stream knows what it is
            self.channels.notify(stream.introduction(self.channels))
        stream.on_closed(self._begin_to_close)
        connection.on("datachannel", self._on_channel)
        connection.on("connectionstatechange", self._on_connection_state)

    @property
    def connected(self) -> bool:
        return self.connection.connectionState == "connected"

    async def _update(self, messages: Sequence[str | bytes | None], together: bool) -> list[list[Problem]]:
        return await self.stream.update_by_messages(messages, together, self.channels)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run `work` as a task that ends with the peer."""
        task = asyncio.create_task(work, name=f"{name}-{self.id}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("[%s] Task %s failed", self.id, task.get_name(), exc_info=task.exception())

    async def close(self) -> None:
        """End the connection, and the stream when nobody else holds it; free everything. Idempotent.

        Goes on when the caller is cancelled: a page that is left hangs up before its DELETE is answered.
        """
        await asyncio.shield(self._begin_to_close())

    def _begin_to_close(self) -> "asyncio.Task[None]":
        if self._closing is None:
            self.closed = True
            try:
                caller = asyncio.current_task()
            except RuntimeError:  # no task at all: a timer
                caller = None
            self._closing = asyncio.create_task(self._close(caller), name=f"close-{self.id}")
        return self._closing

    async def _close(self, caller: "asyncio.Task[Any] | None") -> None:
        logger.info("[%s] Closing the session", self.id)
        self.track.stop()
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        try:
            await self._leave()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.connection.close()
        finally:
            self._on_end(self)

    async def _leave(self) -> None:
        """Let go of the stream; when it ends with this, wait until it has."""
        if self._camera is not None:
            self._camera.stop()
            self.stream.drop_source(self._camera)
        self.stream.forget(self._begin_to_close)
        self.stream.remove_control(self.channels)
        counted = self.track.failure is not None
        self.stream.remove_sink(self._viewer, None if counted else self._end_reason)
        self.stream.release(self, self.grace_s)
        if self.stream.closed:
            await self.stream.close()

    def receive(self, receiver: RTCRtpReceiver) -> None:
        """Feed the stream with the peer's video."""
        self._camera = DecodedVideo(self._on_too_large, self._on_camera_ended)
        self._camera.attach(receiver)
        self.stream.take_source(self._camera)

    def _on_too_large(self, text: str) -> None:
        """Pictures are refused; said once for each size, of which an honest camera has few."""
        if text not in self._refused and len(self._refused) < _MAX_REFUSALS:
            self._refused.add(text)
            logger.info("[%s] %s", self.id, text)
            problem = Problem(loc=["input_mode"], msg=text, type="picture_too_large")
            self.stream.notify(parameter_error([problem]))

    def _on_camera_ended(self, error: str | None) -> None:
        if self._camera is not None:
            self.stream.drop_source(self._camera)
        if error is not None:
            self._fail(error)
        else:
            logger.debug("[%s] The peer's video ended", self.id)

    def _on_sender_ended(self) -> None:
        """The track to the peer was stopped; if not by us, a picture could not be shown or encoded."""
        if not self.closed:
            self.spawn(self._fail_if_connected(), "sender")

    async def _fail_if_connected(self) -> None:
        await asyncio.sleep(_END_OF_CONNECTION_S)  # whose end stops the track before it is known
        if not self.closed and self.connected:
            self._fail(self.track.failure or "The video could not be encoded, see the server's log")

    def _fail(self, text: str) -> None:
        """The peer cannot go on: a stream of its own ends, one that it has joined does not."""
        if self.part.is_owner:
            self.stream.stop(text)
        else:
            logger.warning("[%s] Leaves stream %s: %s", self.id, self.stream.id, text)
            self._begin_to_close()

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if not self._is_heard:
            self._is_heard = True
            self.spawn(self.channels.run(), "messages")
        self.channels.add(channel)

    def _end_abuse(self) -> None:
        if not self.closed and not self.stream.stopped:
            logger.warning("[%s] Too many data channels", self.id)
            self._fail("Too many data channels: one is enough.")

    def _on_connection_state(self) -> None:
        state = self.connection.connectionState
        logger.info("[%s] Connection %s", self.id, state)
        self._was_connected |= state == "connected"
        if self._was_connected and ice_failed(self.connection):
            self._end_reason = "consent"
        if state in ("closed", "failed") and not self.closed:
            self.spawn(self.close(), "close")


def peer_metrics(peer: Peer) -> dict[str, Any]:
    """One element of GET /api/v1/session/metrics."""
    return {**peer.stream.metrics(), "connection_state": peer.connection.connectionState}
