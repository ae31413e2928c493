"""One WebRTC connection, which answers an offer or makes one: negotiation, candidates, tasks, the end."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from aiortc import (
    RTCConfiguration,
    RTCDtlsTransport,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidStateError, OperationError

from gateway.errors import ApiError
from gateway.webrtc.aiortc_patches.guards import GuardedConnection
from gateway.webrtc.aiortc_patches.members import require_members
from gateway.webrtc.candidates import CandidateFilter, add_remote_candidates
from gateway.webrtc.signalling import Offer, invalid

logger = logging.getLogger(__name__)

require_members(RTCDtlsTransport, "_set_role")

_REFUSALS = (InternalError, OperationError, InvalidStateError, ValueError)


def ice_failed(peer: RTCPeerConnection) -> bool:
    """Whether the other side does not answer, for a connection whose state has just changed.

    The state does not tell: aiortc calls a connection that has lost its consent closed, not failed.
    """
    return any(each.receiver.transport.transport.state == "failed" for each in peer.getTransceivers())


class BaseConnection:
    """A peer connection that ends with its peer, or when it is not connected in time.

    Subclasses negotiate it.
    """

    def __init__(
        self,
        name: str,
        configuration: RTCConfiguration,
        connect_timeout_s: float,
        on_closed: Callable[[], None],
    ) -> None:
        """name: in the log. on_closed: called once, when all has been freed."""
        self.name = name
        self.peer = RTCPeerConnection(configuration)
        self.closed = False
        self.was_connected = False
        self._lost = False
        self._connect_timeout_s = connect_timeout_s
        self._on_closed = on_closed
        self._adding_candidates = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self.peer.on("connectionstatechange", self._on_state)

    @property
    def connected(self) -> bool:
        return self.peer.connectionState == "connected"

    @property
    def end_reason(self) -> str:
        """`consent`: the peer does not answer any more; `left`: it has gone, or never came."""
        return "consent" if self._lost else "left"

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run `work` as a task that ends with the connection."""
        task = asyncio.create_task(work, name=f"{name}-{self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    async def close(self) -> None:
        """End the connection, free everything. Idempotent; goes on when the caller is cancelled."""
        if self._closing is None:
            self.closed = True
            self._closing = asyncio.create_task(
                self._close(asyncio.current_task()), name=f"close-{self.name}"
            )
        await asyncio.shield(self._closing)

    async def _close(self, caller: "asyncio.Task[Any] | None") -> None:
        tasks = [task for task in self._tasks if task is not caller]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.peer.close()
        finally:
            self._on_closed()

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("[%s] Task %s failed", self.name, task.get_name(), exc_info=task.exception())

    def _transports(self) -> Iterator[tuple[str | None, RTCDtlsTransport]]:
        for transceiver in self.peer.getTransceivers():
            yield transceiver.mid, transceiver.receiver.transport
        if self.peer.sctp is not None:
            yield self.peer.sctp.mid, self.peer.sctp.transport

    def _hurry(self, gathering_s: int, first_address: str | None = None) -> None:
        """Say how our own candidates are to be found."""
        for _, transport in self._transports():
            ice = transport.transport._connection
            assert isinstance(ice, GuardedConnection)
            ice.gathering_s, ice.first_address = gathering_s, first_address

    def _begin(self, remote: Offer) -> None:
        """Both descriptions are set: try the other side's candidates."""
        self._try(remote.candidates, remote.filter)
        self.spawn(self._watch(), "watchdog")

    def _try(self, candidates: Sequence[RTCIceCandidate | None], known: CandidateFilter) -> None:
        turn = self._adding_candidates
        work = add_remote_candidates(self.peer, candidates, known, turn, self.name)
        self.spawn(work, "candidates")

    async def _watch(self) -> None:
        await asyncio.sleep(self._connect_timeout_s)
        if not self.connected:
            logger.info("[%s] Not connected within %.0f s: dropped", self.name, self._connect_timeout_s)
            await self.close()

    def _on_state(self) -> None:
        state = self.peer.connectionState
        logger.info("[%s] Connection %s", self.name, state)
        self.was_connected |= state == "connected"
        self._lost |= self.was_connected and ice_failed(self.peer)
        if state in ("closed", "failed") and not self.closed:
            self.spawn(self.close(), "close")


class Connection(BaseConnection):
    """A connection that answers an offer."""

    def __init__(
        self,
        name: str,
        configuration: RTCConfiguration,
        offer: Offer,
        connect_timeout_s: float,
        on_closed: Callable[[], None],
    ) -> None:
        super().__init__(name, configuration, connect_timeout_s, on_closed)
        self._offer = offer

    async def answer(
        self,
        bind: Callable[[RTCRtpTransceiver], None],
        *,
        passive: bool = False,
        gathering_s: int = GuardedConnection.gathering_s,
        first_address: str | None = None,
    ) -> str:
        """Negotiate; returns the answer with all our candidates.

        bind(transceiver): give a section's sender its track, take its receiver's. passive: let the peer begin
        DTLS where it leaves that to us. first_address: of ours, to be named first.

        Raises ApiError 400 for what aiortc cannot use.
        """
        peer, offer = self.peer, self._offer
        try:
            await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
            for transceiver in peer.getTransceivers():
                transceiver.direction = offer.direction(transceiver.mid)
                bind(transceiver)
            for mid, transport in self._transports():
                if passive and mid in offer.actpass:
                    transport._set_role("server")
            self._hurry(gathering_s, first_address)
            await peer.setLocalDescription(await peer.createAnswer())
        except ApiError:
            raise
        except Exception as error:  # a library's complaint about the content
            logger.info("[%s] Offer refused: %s", self.name, error, exc_info=not isinstance(error, _REFUSALS))
            raise invalid(str(error)) from error
        for transceiver in peer.getTransceivers():
            if transceiver.mid in offer.unread:
                transceiver.receiver._enabled = False  # drops its packets before they are decoded
        self._begin(offer)
        return offer.complete(peer.localDescription.sdp)

    def add_candidates(self, entries: Sequence[dict[str, Any]]) -> int:
        """Try a peer's candidates, in the background; returns how many were too many. Raises ApiError 400."""
        chosen, left_out = self._offer.filter.choose(entries)
        self._try(chosen, self._offer.filter)
        return left_out


class OfferingConnection(BaseConnection):
    """A connection that offers what its peer has been given: tracks, transceivers."""

    async def offer(self, gathering_s: int) -> str:
        """The offer, with all our candidates."""
        self._hurry(gathering_s)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    async def accept(self, answer: Offer) -> None:
        """Take an answer, read as an offer is. Raises ApiError 400 for what aiortc cannot use."""
        try:
            await self.peer.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))
        except Exception as error:  # a library's complaint about the content
            known = isinstance(error, _REFUSALS)
            logger.info("[%s] Answer refused: %s", self.name, error, exc_info=not known)
            raise invalid(str(error)) from error
        self._begin(answer)
