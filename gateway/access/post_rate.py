"""How often one address may ask for a connection: each costs a handshake, sockets and a moment of all."""

import time
from collections.abc import Callable
from typing import Final

from quart import Quart, request

from gateway.access.origins import OriginPolicy
from gateway.errors import ApiError

POSTS_PER_SECOND: Final = 10
_MAX_ADDRESSES: Final = 4096
_OFFERS: Final = "/api/v1/webrtc/offer"
_PROTOCOLS: Final = ("/whip", "/whep", "/api/v1/whip", "/api/v1/whep")


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


class PostRate:
    """An `Allowance` for each address; the one that was not heard for the longest time is forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}

    def __len__(self) -> int:
        return len(self._allowances)

    def take(self, address: str) -> bool:
        """Whether `address` may make another request now."""
        allowance = self._allowances.pop(address, None) or Allowance(POSTS_PER_SECOND, self._clock)
        self._allowances[address] = allowance  # the last one now
        if len(self._allowances) > _MAX_ADDRESSES:
            del self._allowances[next(iter(self._allowances))]
        return allowance.take()


def limit_posts(app: Quart, policy: OriginPolicy) -> None:
    """Answer 429 to who asks for connections too often; programs of this machine may."""
    rate = PostRate()

    @app.before_request
    async def check() -> None:
        path = request.path
        if request.method != "POST" or not (path == _OFFERS or path.startswith(_PROTOCOLS)):
            return
        address = policy.address_of(request)
        if address is not None and not address.is_loopback and not rate.take(str(address)):
            text = f"More than {POSTS_PER_SECOND} new connections in a second from {address}"
            raise ApiError(429, text, headers={"Retry-After": "1"})
