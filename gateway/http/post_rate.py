"""How often one address may ask for a connection: each costs a handshake, sockets and a moment of all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quart import Quart, request

from gateway.errors import ApiError
from gateway.http.origins import OriginPolicy

POSTS_PER_SECOND: Final = 10
_MAX_ADDRESSES: Final = 4096
_OFFERS: Final = "/api/v1/webrtc/offer"
_PROTOCOLS: Final = ("/whip", "/whep", "/api/v1/whip", "/api/v1/whep")


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float  # monotonic seconds


class PostRate:
    """A bucket of requests for each address, which fills again by and by."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, address: str) -> bool:
        """Whether `address` may make another request now."""
        now = self._clock()
        bucket = self._buckets.pop(address, None) or _Bucket(POSTS_PER_SECOND, now)
        bucket.left = min(POSTS_PER_SECOND, bucket.left + (now - bucket.at) * POSTS_PER_SECOND)
        bucket.at = now
        self._buckets[address] = bucket  # the last one now
        if len(self._buckets) > _MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True


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
            text = f"Too many connections are asked for: at most {POSTS_PER_SECOND} a second from one address"
            raise ApiError(429, text, headers={"Retry-After": "1"})
