"""What aioice and aiortc must survive: datagrams that nobody asked for, and peers that keep to no rule.

Any host can send a datagram to a session's port. aioice 0.13 fails, with a stack trace for each, at
attributes that are cut short and at binding requests without PRIORITY, which FFmpeg 8 sends (it never
connects then); an empty datagram ends aiortc's DTLS transport. Every authenticated check from a new address
costs one more pair, and the fragments of a message without an end are collected, however many there are.

A connection that is closed while it is being made goes on being made: what it starts then, nobody ends.
"""

import logging
import struct
from collections.abc import Iterable
from functools import wraps
from typing import Any, Final

from aioice import ice, stun
from aioice.candidate import Candidate, candidate_priority
from aiortc import RTCRtpReceiver, RTCRtpSender, rtcicetransport
from aiortc.rtcsctptransport import DataChunk, RTCSctpTransport

from gateway.webrtc.aiortc_patches.members import require_members

logger = logging.getLogger(__name__)

require_members(ice.Connection, "check_incoming", "data_received", "get_component_candidates")

_MAX_REMOTE_CANDIDATES: Final = 128  # those that were signalled, and those that checks came from
_MAX_QUEUED_DATAGRAMS: Final = 4096
_MAX_BYTES_BEYOND_WINDOW: Final = 1 << 20  # aiortc peers do not look at the window of 1 MiB


class GuardedConnection(ice.Connection):
    """An ICE connection that no datagram of the other side can break or grow.

    gathering_s: how long STUN and TURN servers may take to answer. first_address: our address that the peer
    is known to reach; some peers try only the first one that we name.
    """

    gathering_s: int = 5
    first_address: str | None = None

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = 0
    ) -> list[Candidate]:
        return await super().get_component_candidates(
            component, self.in_order(addresses), timeout or self.gathering_s
        )

    def in_order(self, addresses: Iterable[str]) -> list[str]:
        """Our addresses as they are to be named."""
        return sorted(addresses, key=lambda address: address != self.first_address)

    async def connect(self) -> None:
        await super().connect()
        if self._closing:  # when the checks had just ended
            await super().close()
            raise ConnectionError("closed while connecting")

    def check_incoming(
        self, message: stun.Message, addr: tuple[str, int], protocol: ice.StunProtocol
    ) -> None:
        known = any((c._network_host, c.port) == addr for c in self._remote_candidates)
        if not known and len(self._remote_candidates) >= _MAX_REMOTE_CANDIDATES:
            return
        message.attributes.setdefault("PRIORITY", candidate_priority(1, "prflx"))
        super().check_incoming(message, addr, protocol)

    def data_received(self, data: bytes, component: int) -> None:
        if data and self._queue.qsize() < _MAX_QUEUED_DATAGRAMS:
            super().data_received(data, component)


def install_guards() -> None:
    """Guard all connections. Call before any session."""
    for owner, start in _STARTS:
        _end_for_good(owner, start)
    rtcicetransport.Connection = GuardedConnection  # type: ignore[attr-defined]
    ice.StunProtocol.datagram_received = _datagram_received  # type: ignore[method-assign]
    RTCSctpTransport._receive_data_chunk = _receive_data_chunk  # type: ignore[method-assign]
    RTCSctpTransport._data_channel_receive = _data_channel_receive  # type: ignore[method-assign]


_STARTS: Final = ((RTCRtpSender, "send"), (RTCRtpReceiver, "receive"), (RTCSctpTransport, "start"))


def _end_for_good(owner: type[Any], start: str) -> None:
    """Let nothing start that was stopped before."""
    stock_start, stock_stop = getattr(owner, start), owner.stop

    @wraps(stock_start)
    async def guarded_start(self: Any, *arguments: Any) -> None:
        if not getattr(self, "_was_stopped", False):
            await stock_start(self, *arguments)

    @wraps(stock_stop)
    async def guarded_stop(self: Any) -> None:
        self._was_stopped = True
        await stock_stop(self)

    setattr(owner, start, guarded_start)
    owner.stop = guarded_stop


_stock_datagram_received: Final = ice.StunProtocol.datagram_received
_stock_receive_data_chunk: Final = RTCSctpTransport._receive_data_chunk
_stock_data_channel_receive: Final = RTCSctpTransport._data_channel_receive


def _datagram_received(self: ice.StunProtocol, data: bytes | str, addr: tuple[Any, ...]) -> None:
    try:
        _stock_datagram_received(self, data, addr)
    except struct.error:  # an attribute that is shorter than its type
        return


async def _receive_data_chunk(self: RTCSctpTransport, chunk: DataChunk) -> None:
    if self._advertised_rwnd < -_MAX_BYTES_BEYOND_WINDOW:
        logger.warning("A peer sends a message without an end: its data channels are closed")
        await self.stop()
        return
    await _stock_receive_data_chunk(self, chunk)


async def _data_channel_receive(self: RTCSctpTransport, stream_id: int, pp_id: int, data: bytes) -> None:
    try:
        await _stock_data_channel_receive(self, stream_id, pp_id, data)
    except (AssertionError, UnicodeDecodeError, struct.error) as error:
        # A channel that is opened twice, a text that is not UTF-8: aiortc would end the whole connection.
        logger.debug("Message on data channel %d ignored: %r", stream_id, error)
