"""What clients may send: how much in one body, how often."""

import time
from collections.abc import Callable

from quart import Request

from gateway.errors import ApiError


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
