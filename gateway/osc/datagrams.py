"""A UDP socket that is read to its end, whenever the event loop comes to it.

asyncio's own takes one datagram each time that the loop goes round. Beside busy streams it goes round less
often than twenty faders send, and the socket's queue loses what came last, which is what counts.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

logger = logging.getLogger(__name__)

_QUEUE_BYTES: Final = 1 << 20  # that the system is asked to keep for a loop that is late
_AT_ONCE: Final = 512  # datagrams; then others have their turn
_LARGEST: Final = 1 << 16

Receive = Callable[[bytes, str], None]


class Datagrams:
    """Calls receive(datagram, sender's address) for each that comes to a bound socket."""

    def __init__(self, bound: socket.socket, receive: Receive) -> None:
        self._socket = bound
        self._receive = receive
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def listen(cls, host: str, port: int, receive: Receive) -> "Datagrams":
        """Raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setblocking(False)
            with contextlib.suppress(OSError):
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
            bound.bind(address)
            datagrams = cls(bound, receive)
            await datagrams._begin(loop)
        except BaseException:
            bound.close()
            raise
        return datagrams

    def close(self) -> None:
        """Receive nothing more. Idempotent."""
        if self._transport is not None:
            self._transport.close()
        elif self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    async def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.add_reader(self._socket, self._read)
        except NotImplementedError:  # Windows' own loop
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Protocol(self._receive), sock=self._socket
            )

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                datagram, sender = self._socket.recvfrom(_LARGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                logger.debug("OSC: %s", error)
                return
            self._receive(datagram, sender[0])


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._receive(data, addr[0])

    def error_received(self, exc: Exception) -> None:
        logger.debug("OSC: %s", exc)
