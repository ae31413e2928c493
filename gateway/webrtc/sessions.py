"""WebRTC sessions: signalling, limits, clean-up (api.md 8)."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiortc import RTCIceCandidate, RTCPeerConnection, RTCSessionDescription
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from gateway.errors import ApiError, ValidationFailed
from gateway.http.validation import located
from gateway.pipelines.state import Loaded, Pipelines
from gateway.stream.parameters import ParameterContext, ParameterState
from gateway.stream.worker import StreamObserver
from gateway.threads import in_parameter_thread
from gateway.waiting import within
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.session import Session, session_metrics
from gateway.webrtc.signalling import Offer, is_name, read_offer, too_many_candidates

logger = logging.getLogger(__name__)

_FLUSH_S = 0.5


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

    def add(self, session: Session) -> None:
        self.frames_in += session.input.frames_in
        self.frames_out += session.output.frames_out
        self.frames_dropped += session.output.frames_dropped
        self.errors += session.failed


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
        offer = read_offer(sdp, kind)
        context = ParameterContext(loaded.spec, loaded.params, self._assets_directory)
        state = await in_parameter_thread(ParameterState.open, context, initial_parameters)
        await self._make_room(loaded)
        peer = RTCPeerConnection(self._ice.for_server())
        session = Session(peer, self._pipelines, state, self._observer, offer.filter, self._ended)
        self._totals.sessions += 1
        self._empty.clear()
        self._sessions[session.id] = session
        try:
            answer = await self._negotiate(session, offer)
        except asyncio.CancelledError:  # the client hung up
            await session.close()
            raise
        except Exception as error:
            refusal = _refusal(error, evicted=session.closed)
            expected = (
                isinstance(error, ApiError | InternalError | OperationError | InvalidStateError | ValueError)
                or refusal.status == 503
            )
            logger.info("[%s] Offer refused: %s", session.id, refusal, exc_info=None if expected else error)
            await session.close()
            raise refusal from error
        session.spawn(self._watchdog(session), "watchdog")
        session.channels.report(state.remarks)
        logger.info("[%s] Session opened for %s", session.id, loaded.spec.id)
        return Answer(session.id, answer, peer.localDescription.type)

    async def _negotiate(self, session: Session, offer: Offer) -> str:
        """Bring the connection up to the answer, which is returned."""
        peer = session.peer
        await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        for transceiver in peer.getTransceivers():
            transceiver.direction = offer.direction(transceiver.mid)
            if transceiver.mid == offer.viewer:
                transceiver.sender.replaceTrack(session.track)
            if transceiver.mid == offer.camera:
                session.receive(transceiver.receiver)
        await peer.setLocalDescription(await peer.createAnswer())
        session.spawn(self._apply_candidates(session, offer.candidates), "candidates")
        return offer.complete(peer.localDescription.sdp)

    async def add_candidates(self, session_id: str, candidates: list[dict[str, Any]]) -> None:
        """Trickle ICE; the slow part (mDNS names) goes on in the background.

        Raises ApiError 404 (unknown or closed session), 400 (an unreadable candidate: none is applied; too
        many of them: the first ones are applied).
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise ApiError(404, f"Session {session_id} not found")
        if session.closed or session.peer.connectionState in ("closed", "failed"):
            raise ApiError(404, f"Session {session_id} is closed or failed")
        chosen, left_out = session.candidates.choose(candidates)
        session.spawn(self._apply_candidates(session, chosen), "candidates")
        if left_out:
            raise too_many_candidates(left_out)

    async def _apply_candidates(self, session: Session, candidates: Sequence[RTCIceCandidate | None]) -> None:
        names = [candidate for candidate in candidates if candidate is not None and is_name(candidate)]
        addresses = [candidate for candidate in candidates if candidate not in names]
        async with session.adding_candidates:  # in order of arrival: after their end none is used
            for candidate in addresses:
                # When the peer can only reach us, an end would fail the connection before it has tried.
                if candidate is not None or session.candidates.has_addresses:
                    await _add_candidate(session, candidate)
                await asyncio.sleep(0)  # each takes aioice a moment, the streams go on in between
        await asyncio.gather(*(_add_candidate(session, name) for name in names))

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

    async def update_all(self, values: dict[str, Any]) -> dict[str, Any]:
        """Apply a partial update to every session; body of the answer to POST /api/v1/session/parameters.

        Raises ValidationFailed when no key of it could be applied.
        """
        sessions = list(self)
        reports = await asyncio.gather(*(session.update(values) for session in sessions))
        errors = next((report for report in reports if report), [])  # the same pipeline judges alike
        refused = {str(problem["loc"][0]) for problem in errors if problem["loc"]}
        applied = {key: value for key, value in values.items() if key not in refused}
        if errors and not applied:
            raise ValidationFailed(located(errors, "body"))
        for session in sessions:
            session.channels.send({"type": "parameters_updated", "parameters": applied})
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


async def _add_candidate(session: Session, candidate: RTCIceCandidate | None) -> None:
    try:
        await session.peer.addIceCandidate(candidate)
    except (ValueError, OSError, InvalidStateError, InvalidAccessError) as error:
        # A name that cannot be resolved; the other side's checks reach us all the same.
        logger.debug("[%s] Candidate not used: %s", session.id, error)


def _refusal(error: Exception, *, evicted: bool) -> ApiError:
    """What to answer to an offer that failed with `error`."""
    if isinstance(error, ApiError):
        return error
    if evicted:
        text = "The session was closed to make room for another one; try again"
        return ApiError(503, text, headers={"Retry-After": "5"})
    return ApiError(400, f"Invalid SDP offer: {error}")  # a library's complaint about the content
