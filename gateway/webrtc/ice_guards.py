"""What aioice must survive: datagrams that nobody asked for, and checks that peers really send.

Any host can send a datagram to a session's port. aioice 0.13 fails, with a stack trace for each, at
attributes that are cut short and at binding requests without PRIORITY, which FFmpeg 8 sends (it never
connects then); an empty datagram ends aiortc's DTLS transport. And every authenticated check from a new
address costs one more pair, however many there are.
"""

import struct
from typing import Any, Final

from aioice import ice, stun
from aioice.candidate import candidate_priority
from aiortc import rtcicetransport

_MAX_REMOTE_CANDIDATES: Final = 128  # those that were signalled, and those that checks came from
_MAX_QUEUED_DATAGRAMS: Final = 4096


class GuardedConnection(ice.Connection):
    """An ICE connection that no datagram of the other side can break or grow."""

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


def install_ice_guards() -> None:
    """Guard all connections. Call before any session."""
    rtcicetransport.Connection = GuardedConnection  # type: ignore[attr-defined]
    ice.StunProtocol.datagram_received = _datagram_received  # type: ignore[method-assign]


_stock_datagram_received: Final = ice.StunProtocol.datagram_received


def _datagram_received(self: ice.StunProtocol, data: bytes | str, addr: tuple[Any, ...]) -> None:
    try:
        _stock_datagram_received(self, data, addr)
    except struct.error:  # an attribute that is shorter than its type
        return
