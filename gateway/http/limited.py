"""What clients may send: how much in one body, how often."""

import time
from collections.abc import Callable
from typing import Final

from quart import Quart, Request, request

from gateway.errors import ApiError
from gateway.http.origins import OriginPolicy, is_loopback

_NEW_PER_SECOND: Final = 10  # connections of one address
_ADDRESSES: Final = 4096  # that are remembered
_NEW_CONNECTIONS: Final = ("webrtc.offer", "whip.post", "whep.post")  # names of routes begin like that


async def limited_body(request: Request, most_bytes: int, advice: str) -> bytes:
    """A request's body. Raises ApiError 413, with `advice`, as soon as it is too long."""
    refusal = ApiError(413, f"Request body too large: {advice}")
    if (request.content_length or 0) > most_bytes:
        raise refusal
    body = bytearray()
    async for piece in request.body:
        body += piece
        if len(body) > most_bytes:
            raise refusal
    return bytes(body)


class Allowance:
    """So many per second for long, as many at once."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._left = per_second
        self._at = clock()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now = self._clock()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class AddressLimit:
    """An `Allowance` for each address; the one that was not heard for the longest time is forgotten first."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._allowances: dict[str, Allowance] = {}

    def take(self, address: str) -> bool:
        """Whether one more is allowed from there now."""
        allowance = self._allowances.pop(address, None) or Allowance(self._per_second)
        self._allowances[address] = allowance
        if len(self._allowances) > _ADDRESSES:
            del self._allowances[next(iter(self._allowances))]
        return allowance.take()


def limit_new_connections(app: Quart, policy: OriginPolicy) -> None:
    """Answer 429 to an address that opens connections without pause.

    The own machine may: whatever comes from there may be a proxy's, for many.
    """
    limit = AddressLimit(_NEW_PER_SECOND)

    @app.before_request
    async def check() -> None:
        if request.method != "POST" or not (request.endpoint or "").startswith(_NEW_CONNECTIONS):
            return
        address = policy.address(request)
        if not is_loopback(address) and not limit.take(address):
            text = f"More than {_NEW_PER_SECOND} new connections in a second from {address}"
            raise ApiError(429, text, headers={"Retry-After": "1"})
