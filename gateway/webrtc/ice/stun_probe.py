"""Whether a STUN or TURN server can be reached from here."""

import asyncio
import contextlib
import socket
import threading
from typing import Any, Final

from aioice import stun
from aiortc.rtcicetransport import parse_stun_turn_uri

from gateway.waiting import within

_SEND_AT_S: Final = (0.0, 0.3, 0.9)  # UDP loses packets


async def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether the server behind a `stun:`, `turn:` or `turns:` URL answers within `timeout_s`.

    Over UDP it is asked for a binding (RFC 8489; TURN servers answer these without credentials), over TCP it
    is enough that it accepts the connection. Never raises.
    """
    try:
        parsed = parse_stun_turn_uri(url)
        reach = _accepts_tcp if parsed.get("transport") == "tcp" else _answers_binding
        return await within(reach(parsed["host"], parsed["port"]), timeout_s)
    except (OSError, ValueError, asyncio.TimeoutError):
        return False


async def _accepts_tcp(host: str, port: int) -> bool:
    address = await _resolve(host)
    _, writer = await asyncio.open_connection(address, port)
    writer.close()
    return True


async def _answers_binding(host: str, port: int) -> bool:
    address = await _resolve(host)
    loop = asyncio.get_running_loop()
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    answered: asyncio.Future[bool] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _BindingClient(request.transaction_id, answered), remote_addr=(address, port)
    )
    timers = [loop.call_later(at_s, transport.sendto, bytes(request)) for at_s in _SEND_AT_S]
    try:
        return await answered
    finally:
        for timer in timers:
            timer.cancel()
        transport.close()


class _BindingClient(asyncio.DatagramProtocol):
    def __init__(self, transaction_id: bytes, answered: "asyncio.Future[bool]") -> None:
        self._transaction_id = transaction_id
        self._answered = answered

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            message = stun.parse_message(data)
        except ValueError:
            return
        if message.transaction_id == self._transaction_id:
            self._set(message.message_class is stun.Class.RESPONSE)

    def error_received(self, exc: Exception) -> None:
        self._set(False)  # nobody listens there

    def _set(self, reached: bool) -> None:
        if not self._answered.done():
            self._answered.set_result(reached)


async def _resolve(host: str) -> str:
    """The IPv4 address of `host` (aiortc uses no other). Raises OSError.

    In a daemon thread: a name server that does not answer would hold up an executor's thread, and with it the
    end of the process, for many seconds.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str] = loop.create_future()

    def settle(result: str | OSError) -> None:
        if found.done():
            return
        if isinstance(result, str):
            found.set_result(result)
        else:
            found.set_exception(result)

    def look_up() -> None:
        result: str | OSError
        try:
            result = socket.gethostbyname(host)
        except (OSError, UnicodeError) as error:
            result = OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=look_up, name="stun-dns", daemon=True).start()
    return await found
