"""WebRTC sessions: signalling, limits, clean-up (api.md 8)."""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiortc import RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.exceptions import InvalidAccessError, InvalidStateError
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.sdp import SessionDescription, candidate_from_sdp

from gateway.errors import ApiError, Problem, ValidationFailed
from gateway.logs import current_session
from gateway.pipelines import Loaded, Pipelines
from gateway.strict_json import JsonError
from gateway.validation import located
from gateway.waiting import within
from gateway.webrtc.ice import IceServers
from gateway.webrtc.parameters import ParameterContext, ParameterState, parse_message
from gateway.webrtc.video_input import VideoInput
from gateway.webrtc.video_output import FrameQueue, GeneratedTrack
from gateway.webrtc.worker import StreamObserver, StreamStoppedError, StreamWorker

logger = logging.getLogger(__name__)

_LINGER_S = 2.0  # between `stream_stopped` and the end of the connection
_FLUSH_S = 0.5
_MAX_QUEUED_MESSAGES = 100
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_SDP_CHARACTERS = 64 << 10
_MAX_SDP_SECTIONS = 8  # each may cost a transport with sockets of its own; clients offer up to three
_END_OF_CANDIDATES = ""


@dataclass(frozen=True, slots=True)
class Answer:
    session_id: str
    sdp: str
    type: str


@dataclass(slots=True)
class Totals:
    """Counters over all sessions since the start."""

    sessions: int = 0
    frames_in: int = 0
    frames_out: int = 0
    frames_dropped: int = 0
    errors: int = 0

    def add(self, session: "Session") -> None:
        self.frames_in += session.input.frames_in
        self.frames_out += session.output.frames_out
        self.frames_dropped += session.output.frames_dropped
        self.errors += session.failed


class Session:
    """One peer: its connection, its parameters and its worker."""

    def __init__(
        self,
        peer: RTCPeerConnection,
        pipelines: Pipelines,
        state: ParameterState,
        observer: StreamObserver,
        on_end: Callable[["Session"], None],
    ) -> None:
        self.id = str(uuid.uuid4())
        self.peer = peer
        self.state = state
        self.input = VideoInput()
        self.output = FrameQueue(lambda: self.input.fps if state.input_mode == "video" else None)
        self.started = time.monotonic()
        self.closed = False
        self.failed = False  # the stream ended with an error
        self.candidates = asyncio.Lock()
        self._on_end = on_end
        self._channel: RTCDataChannel | None = None
        self._pending: list[str] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_input = False
        self._stopping = False
        self._closing: asyncio.Task[None] | None = None
        self.worker = StreamWorker(
            self.id, pipelines, state, self.input, self.output, lambda: self._has_input, self.notify, observer
        )
        self.track = GeneratedTrack(self.output, on_demand=self._begin)
        self.worker.set_paused(state.paused)
        peer.on("track", self._on_track)
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

    def notify(self, message: dict[str, Any]) -> None:
        """Send a message to the peer, now or as soon as its data channel opens."""
        text = json.dumps(message)
        if self._channel is not None and self._channel.readyState == "open":
            try:
                self._channel.send(text)
                return
            except InvalidStateError:
                logger.debug("[%s] The data channel closed while sending", self.id)
        if len(self._pending) < _MAX_QUEUED_MESSAGES:
            self._pending.append(text)

    def report(self, problems: Sequence[Problem]) -> None:
        """Tell the peer what was wrong with its parameters; nothing to tell is fine."""
        if problems:
            errors = [{"loc": p["loc"], "msg": p["msg"], "type": p["type"]} for p in problems]
            self.notify({"type": "parameter_error", "errors": errors})

    def merge(self, values: dict[str, Any]) -> list[Problem]:
        """Apply a partial update; returns what was wrong with it."""
        problems = self.state.merge(values)
        if self.state.paused != self.output.paused:
            self.worker.set_paused(self.state.paused)
        if self.state.paused or self.state.input_mode != "video":
            self.input.wake()
        if self.state.reset_pending:
            self.output.clear()
        return problems

    async def stop(self, error_message: str | None, linger_s: float = _LINGER_S) -> None:
        """Tell the peer that the stream is over, then close."""
        if not self._stopping:
            self._stopping = True
            message = {"type": "stream_stopped"}
            if error_message:
                self.failed = True
                message["error_message"] = error_message
            self.notify(message)
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
        self.track.stop()
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.input.clear()
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

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "video":
            self._has_input = True
            self.spawn(self._receive(track), "input")

    async def _receive(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                self.input.push(await track.recv())  # type: ignore[arg-type]
        except MediaStreamError:
            logger.debug("[%s] The peer's video ended", self.id)
        finally:
            self._has_input = False

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)
        pending, self._pending = self._pending, []
        for text in pending:
            channel.send(text)

    def _on_message(self, message: str | bytes) -> None:
        try:
            if len(message) > _MAX_MESSAGE_BYTES:
                raise JsonError(f"larger than {_MAX_MESSAGE_BYTES // (1 << 20)} MiB")
            problems = self.merge(parse_message(message))
        except JsonError as error:
            problems = [Problem(loc=[], msg=f"Not a JSON object: {error}", type="json_invalid")]
        except Exception:  # callback boundary: a message must never end the connection
            logger.exception("[%s] A parameter message could not be handled", self.id)
            problems = [Problem(loc=[], msg="The message could not be handled", type="internal_error")]
        self.report(problems)

    def _on_connection_state(self) -> None:
        logger.info("[%s] Connection %s", self.id, self.peer.connectionState)
        if self.peer.connectionState in ("closed", "failed") and not self.closed:
            self.spawn(self.close(), "close")


class Sessions:
    """All sessions of this gateway."""

    def __init__(
        self,
        pipelines: Pipelines,
        ice: IceServers,
        observer: StreamObserver,
        assets_directory: Path,
        max_sessions: int | None,
        connect_timeout_s: float,
    ) -> None:
        self._pipelines = pipelines
        self._ice = ice
        self._observer = observer
        self._assets_directory = assets_directory
        self._max_sessions = max_sessions
        self._connect_timeout_s = connect_timeout_s
        self._sessions: dict[str, Session] = {}
        self._totals = Totals()  # without the sessions that are still open
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False  # no new sessions

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    async def offer(self, sdp: str, kind: str, initial_parameters: dict[str, Any] | None) -> Answer:
        """Answer an offer; the session exists from then on.

        Raises ApiError 400 (no pipeline, unusable offer), 503 (full), ValidationFailed (initial parameters).
        """
        if self.draining:
            raise ApiError(503, "The server is shutting down", headers={"Retry-After": "30"})
        loaded = self._pipelines.loaded
        if loaded is None:
            raise ApiError(400, "Pipeline not loaded. Please load pipeline first.")
        check_offer(sdp, kind)
        context = ParameterContext(loaded.spec, loaded.params, self._assets_directory)
        state = ParameterState.open(context, initial_parameters)
        await self._make_room(loaded)
        peer = RTCPeerConnection(self._ice.for_server())
        session = Session(peer, self._pipelines, state, self._observer, self._ended)
        self._totals.sessions += 1
        self._empty.clear()
        self._sessions[session.id] = session
        try:
            await self._negotiate(session, sdp)
        except asyncio.CancelledError:  # the client hung up
            await session.close()
            raise
        except Exception as error:
            refusal = _refusal(error, evicted=session.closed)
            logger.info("[%s] Offer refused", session.id, exc_info=error if refusal is not error else None)
            await session.close()
            raise refusal from error
        session.spawn(self._watchdog(session), "watchdog")
        session.report(state.remarks)
        logger.info("[%s] Session opened for %s", session.id, loaded.spec.id)
        return Answer(session.id, peer.localDescription.sdp, peer.localDescription.type)

    async def _negotiate(self, session: Session, sdp: str) -> None:
        peer = session.peer
        sdp, names = split_mdns_candidates(sdp)
        await peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        if names:
            session.spawn(self._apply_candidates(session, [parse_candidate(n) for n in names]), "candidates")
        video = next(t for t in peer.getTransceivers() if t.kind == "video")
        peer.addTrack(session.track)
        for transceiver in peer.getTransceivers():
            if transceiver.kind != "video":
                transceiver.direction = "inactive"
        video.direction = "sendrecv"
        await peer.setLocalDescription(await peer.createAnswer())

    async def add_candidates(self, session_id: str, candidates: list[dict[str, Any]]) -> None:
        """Trickle ICE; the slow part (mDNS names) goes on in the background.

        Raises ApiError 404 (unknown or closed session), 400 (an unreadable candidate; none is applied then).
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise ApiError(404, f"Session {session_id} not found")
        if session.closed or session.peer.connectionState in ("closed", "failed"):
            raise ApiError(404, f"Session {session_id} is closed or failed")
        parsed = [parse_candidate(entry) for entry in candidates]
        session.spawn(self._apply_candidates(session, parsed), "candidates")

    async def _apply_candidates(self, session: Session, candidates: list[Any]) -> None:
        async with session.candidates:  # in order of arrival: after the end of candidates none is used
            for candidate in candidates:
                if candidate is not None and candidate.protocol.lower() != "udp":
                    continue
                try:
                    await session.peer.addIceCandidate(candidate)
                except (ValueError, OSError, InvalidStateError, InvalidAccessError) as error:
                    # A name that cannot be resolved; the other side's checks reach us all the same.
                    logger.debug("[%s] Candidate not used: %s", session.id, error)

    async def delete(self, session_id: str) -> None:
        """Close a session; unknown ids are fine."""
        session = self._sessions.get(session_id)
        if session is not None:
            await session.close()

    async def drain(self, timeout_s: float) -> None:
        """Accept no new sessions and wait until the open ones have ended, at most `timeout_s`."""
        self.draining = True
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._empty.wait(), timeout_s)

    def totals(self) -> Totals:
        """Counters over all sessions, open ones included."""
        totals = replace(self._totals)
        for session in self:
            totals.add(session)
        return totals

    async def close(self) -> None:
        """Tell every peer that the stream is over and close all sessions, in parallel."""
        await asyncio.gather(*(s.stop(None, linger_s=_FLUSH_S) for s in self), return_exceptions=True)

    def merge_all(self, values: dict[str, Any]) -> dict[str, Any]:
        """Apply a partial update to every session; body of the answer to POST /api/v1/session/parameters.

        Raises ValidationFailed when no key of it could be applied.
        """
        reports = [session.merge(values) for session in self]
        errors = next((report for report in reports if report), [])  # the same pipeline judges alike
        refused = {str(problem["loc"][0]) for problem in errors if problem["loc"]}
        applied = {key: value for key, value in values.items() if key not in refused}
        if errors and not applied:
            raise ValidationFailed(located(errors, "body"))
        for session in self:
            session.notify({"type": "parameters_updated", "parameters": applied})
        return {"status": "ok", "applied_parameters": applied, "errors": errors}

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Counters by session id."""
        return {s.id: session_metrics(s) for s in self}

    def _ended(self, session: Session) -> None:
        if self._sessions.pop(session.id, None) is not None:
            self._totals.add(session)
        if not self._sessions:
            self._empty.set()

    async def _make_room(self, loaded: Loaded) -> None:
        here = self._pipelines.serving.availability(loaded.spec).max_sessions
        limit = self._max_sessions or loaded.spec.max_sessions or here or 1
        if len(self._sessions) < limit:
            return
        for session in self:  # the oldest first: younger ones may still connect
            if not session.connected and len(self._sessions) >= limit:
                logger.info("[%s] Evicted: not connected while others wait", session.id)
                await session.close()
        if len(self._sessions) >= limit:
            text = f"Maximum number of concurrent sessions ({limit}) reached"
            raise ApiError(503, text, headers={"Retry-After": "5"})

    async def _watchdog(self, session: Session) -> None:
        await asyncio.sleep(self._connect_timeout_s)
        if not session.connected:
            logger.info("[%s] Not connected within %.0f s: dropped", session.id, self._connect_timeout_s)
            await session.close()


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


def _refusal(error: Exception, *, evicted: bool) -> ApiError:
    """What to answer to an offer that failed with `error`."""
    if isinstance(error, ApiError):
        return error
    if evicted:
        text = "The session was closed to make room for another one; try again"
        return ApiError(503, text, headers={"Retry-After": "5"})
    return ApiError(400, f"Invalid SDP offer: {error}")  # a library's complaint about the content


def check_offer(sdp: str, kind: str) -> None:
    """Refuse offers that could never show a picture, with a reason.

    Raises ApiError 400.
    """
    if kind != "offer":
        raise ApiError(400, f"The type must be 'offer', not {kind[:40]!r}")
    if len(sdp) > _MAX_SDP_CHARACTERS:
        raise ApiError(400, f"Invalid SDP offer: longer than {_MAX_SDP_CHARACTERS >> 10} KiB")
    try:
        description = SessionDescription.parse(sdp)
    except Exception as error:  # the parser raises whatever the malformed text makes it run into
        raise ApiError(400, f"Invalid SDP offer: {type(error).__name__} while parsing") from error
    if len(description.media) > _MAX_SDP_SECTIONS:
        raise ApiError(400, f"Invalid SDP offer: more than {_MAX_SDP_SECTIONS} media sections")
    video = [m for m in description.media if m.kind == "video"]
    if not video:
        raise ApiError(400, "Invalid SDP offer: no video section; add a video transceiver before the offer")
    names = {codec.mimeType.lower() for codec in video[0].rtp.codecs}
    if not names & {"video/vp8", "video/h264"}:
        raise ApiError(400, "Invalid SDP offer: no common video codec; offer VP8 or H264")
    if video[0].direction not in ("sendrecv", "recvonly"):
        raise ApiError(
            400,
            f"Invalid SDP offer: the video section is {video[0].direction}, so nothing could be shown; "
            "offer sendrecv or recvonly",
        )


def split_mdns_candidates(sdp: str) -> tuple[str, list[dict[str, Any]]]:
    """An offer without its `.local` candidates, and these as trickled ones.

    Looking such a name up takes a second when nobody answers; the answer must not wait for it.
    """
    kept: list[str] = []
    names: list[dict[str, Any]] = []
    section = -1
    for line in sdp.splitlines(keepends=True):
        section += line.startswith("m=")
        if line.startswith("a=candidate:") and ".local " in line:
            names.append({"candidate": line.strip(), "sdpMid": None, "sdpMLineIndex": section})
        else:
            kept.append(line)
    if names:
        kept = [line for line in kept if not line.startswith("a=end-of-candidates")]
    return "".join(kept), names


def parse_candidate(entry: dict[str, Any]) -> Any:
    """An aiortc candidate from `{candidate, sdpMid, sdpMLineIndex}`; None for end-of-candidates.

    Raises ApiError 400.
    """
    text = re.sub(r"^(a=)?candidate:", "", entry["candidate"].strip())
    if text == _END_OF_CANDIDATES:
        return None
    if entry.get("sdpMid") is None and entry.get("sdpMLineIndex") is None:
        raise ApiError(400, "Invalid ICE candidate: neither sdpMid nor sdpMLineIndex is given")
    try:
        candidate = candidate_from_sdp(text)
    except Exception as error:  # the parser asserts and indexes its way through the text
        raise ApiError(400, f"Invalid ICE candidate: {text[:80]!r} cannot be parsed") from error
    candidate.sdpMid = entry.get("sdpMid")
    candidate.sdpMLineIndex = entry.get("sdpMLineIndex")
    return candidate
