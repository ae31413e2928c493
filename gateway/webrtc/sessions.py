"""The table of WebRTC sessions: peers, each bound to a stream; their signalling and clean-up (api.md 8)."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aiortc import RTCIceCandidate, RTCPeerConnection, RTCSessionDescription
from aiortc.exceptions import InternalError, InvalidStateError, OperationError

from gateway.errors import ApiError
from gateway.stream.parts import Role
from gateway.stream.stream import Stream
from gateway.stream.streams import Streams
from gateway.waiting import within
from gateway.webrtc.candidates import add_remote_candidates, too_many_candidates
from gateway.webrtc.ice.servers import IceServers
from gateway.webrtc.peer import Part, Peer, peer_metrics
from gateway.webrtc.signalling import Offer, read_offer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    session_id: str
    sdp: str
    stream_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class Join:
    """An offer to join a stream that is there (streams.md 1.5).

    publish: its video takes the place of the stream's source. label: what the others call whoever sends it.
    grace_s: as in `Part`.
    """

    stream: Stream
    role: Literal["viewer", "controller"] = "viewer"
    publish: bool = False
    label: str = "browser"
    grace_s: float = 0.0


class Sessions:
    """All peers of this gateway."""

    def __init__(self, streams: Streams, ice: IceServers, connect_timeout_s: float) -> None:
        self._streams = streams
        self._ice = ice
        self._connect_timeout_s = connect_timeout_s
        self._sessions: dict[str, Peer] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.opened = 0  # since the start

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    async def offer(
        self, sdp: str, kind: str, initial_parameters: dict[str, Any] | None, grace_s: float = 0.0
    ) -> Answer:
        """Answer an offer; the session exists from then on. grace_s: as in `Part`.

        Raises ApiError 400 (no pipeline, unusable offer), 503 (full), ValidationFailed (initial parameters).
        """
        with self._streams.counting_refusals():
            return await self._open(sdp, kind, initial_parameters, grace_s)

    async def _open(
        self, sdp: str, kind: str, initial_parameters: dict[str, Any] | None, grace_s: float
    ) -> Answer:
        loaded = self._streams.require_service()
        offer = read_offer(sdp, kind)
        stream = await self._streams.create(parameters=initial_parameters)
        peer = self._bind(stream.id, stream, offer, Part(grace_s=grace_s))
        answer = await self._connect(peer, offer)
        peer.channels.report(stream.state.remarks)
        logger.info("[%s] Session opened for %s", peer.id, loaded.spec.id)
        return answer

    async def join(
        self, sdp: str, kind: str, join: Join, initial_parameters: dict[str, Any] | None
    ) -> Answer:
        """Answer an offer to see a stream that is there, and perhaps to control it.

        Raises ApiError 400 (unusable offer), 409 (it has a source already), 503 (too many viewers).
        """
        with self._streams.counting_refusals():
            return await self._join(sdp, kind, join, initial_parameters)

    async def _join(
        self, sdp: str, kind: str, join: Join, initial_parameters: dict[str, Any] | None
    ) -> Answer:
        self._streams.require_service()
        offer = read_offer(sdp, kind)
        stream = join.stream
        if initial_parameters and join.role == "viewer":
            raise ApiError(
                400, "A viewer changes no parameters: leave initialParameters out, or be a controller"
            )
        if not join.publish:
            offer = replace(offer, camera=None)
        elif stream.has_live_source:
            text = f"Stream {stream.id} has a source already: stop it first"
            raise ApiError(409, text, headers={"Retry-After": "2"})
        self._streams.require_place(stream)
        part = Part(join.role, is_owner=False, label=join.label, grace_s=join.grace_s)
        peer = self._bind(self._streams.new_id(), stream, offer, part)
        answer = await self._connect(peer, offer)
        if join.publish:
            await stream.look_at_source()
        if initial_parameters:
            peer.channels.report(await stream.update(initial_parameters, peer.channels))
        logger.info("[%s] Joined stream %s as %s", peer.id, stream.id, join.role)
        return answer

    def _bind(self, session_id: str, stream: Stream, offer: Offer, part: Part) -> Peer:
        """A peer in the table."""
        connection = RTCPeerConnection(self._ice.for_server())
        peer = Peer(session_id, connection, stream, offer.filter, self._ended, part)
        self.opened += 1
        self._empty.clear()
        self._sessions[peer.id] = peer
        return peer

    async def _connect(self, peer: Peer, offer: Offer) -> Answer:
        """Bring a peer's connection up; one that cannot be is closed. Raises ApiError."""
        try:
            answer = await self._negotiate(peer, offer)
        except asyncio.CancelledError:  # the client hung up
            await peer.close()
            raise
        except Exception as error:
            refusal = _refusal(error, evicted=peer.closed)
            expected = (
                isinstance(error, ApiError | InternalError | OperationError | InvalidStateError | ValueError)
                or refusal.status == 503
            )
            logger.info("[%s] Offer refused: %s", peer.id, refusal, exc_info=None if expected else error)
            await peer.close()
            raise refusal from error
        peer.spawn(self._watchdog(peer), "watchdog")
        return Answer(peer.id, answer, peer.stream.id, peer.stream.seat.role_of(peer.channels))

    async def _negotiate(self, peer: Peer, offer: Offer) -> str:
        """Bring the connection up to the answer, which is returned."""
        connection = peer.connection
        await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        for transceiver in connection.getTransceivers():
            transceiver.direction = offer.direction(transceiver.mid)
            if transceiver.mid == offer.viewer:
                transceiver.sender.replaceTrack(peer.track)
            if transceiver.mid == offer.camera:
                peer.receive(transceiver.receiver)
        await connection.setLocalDescription(await connection.createAnswer())
        peer.spawn(self._apply_candidates(peer, offer.candidates), "candidates")
        return offer.complete(connection.localDescription.sdp)

    async def add_candidates(self, session_id: str, candidates: list[dict[str, Any]]) -> None:
        """Trickle ICE; the slow part (mDNS names) goes on in the background.

        Raises ApiError 404 (unknown or closed session), 400 (an unreadable candidate: none is applied; too
        many of them: the first ones are applied).
        """
        peer = self._sessions.get(session_id)
        if peer is None:
            raise ApiError(404, f"Session {session_id} not found")
        if peer.closed or peer.connection.connectionState in ("closed", "failed"):
            raise ApiError(404, f"Session {session_id} is closed or failed")
        chosen, left_out = peer.candidates.choose(candidates)
        peer.spawn(self._apply_candidates(peer, chosen), "candidates")
        if left_out:
            raise too_many_candidates(left_out)

    async def _apply_candidates(self, peer: Peer, candidates: Sequence[RTCIceCandidate | None]) -> None:
        turn = peer.adding_candidates
        await add_remote_candidates(peer.connection, candidates, peer.candidates, turn, peer.id)

    async def delete(self, session_id: str, grace_s: float = 0.0) -> None:
        """Close a session; unknown ids are fine.

        grace_s: in place of the one of its offer.
        """
        peer = self._sessions.get(session_id)
        if peer is not None:
            peer.grace_s = grace_s
            await peer.close()

    async def drain(self, timeout_s: float) -> None:
        """Accept no new sessions and wait until the open ones have ended, at most `timeout_s`."""
        self._streams.draining = self._streams.hands_over = True
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._empty.wait(), timeout_s)

    async def close(self) -> None:
        """Close all sessions, in parallel. Their streams have told them before."""
        await asyncio.gather(*(peer.close() for peer in self), return_exceptions=True)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Counters by session id, and by stream id for streams that no peer has made."""
        alone = {stream.id: stream.metrics() for stream in self._streams}
        return alone | {peer.id: peer_metrics(peer) for peer in self}

    def _ended(self, peer: Peer) -> None:
        self._sessions.pop(peer.id, None)
        if not self._sessions:
            self._empty.set()

    async def _watchdog(self, peer: Peer) -> None:
        await asyncio.sleep(self._connect_timeout_s)
        if not peer.connected:
            logger.info("[%s] Not connected within %.0f s: dropped", peer.id, self._connect_timeout_s)
            await peer.close()


def _refusal(error: Exception, *, evicted: bool) -> ApiError:
    """What to answer to an offer that failed with `error`."""
    if isinstance(error, ApiError):
        return error
    if evicted:
        text = "The session was closed to make room for another one; try again"
        return ApiError(503, text, headers={"Retry-After": "5"})
    return ApiError(400, f"Invalid SDP offer: {error}")  # a library's complaint about the content
