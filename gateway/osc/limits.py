"""Who may send OSC, and how much: UDP knows no token, and whoever sends it may write any address on it."""

import ipaddress
import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.config import Network
from gateway.osc.wire import OscError

PER_ADDRESS: Final = 2000  # datagrams per second
TOTAL: Final = 4000  # of all addresses together
_BYTES_PER_DATAGRAM: Final = 256  # a longer one counts for several
_MAX_ADDRESSES: Final = 256  # remembered; with more, the one that was first heard is forgotten


class _Bucket:
    """Fills again by and by; a second's worth at the most."""

    def __init__(self, per_second: int, now: float) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._at = now

    def take(self, cost: int, now: float) -> bool:
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if cost > self._left:
            return False
        self._left -= cost
        return True


class Limits:
    """Networks that are heard, and how fast each address may send."""

    def __init__(self, allow: Sequence[Network], clock: Callable[[], float] = time.monotonic) -> None:
        self._allow = allow
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._all = _Bucket(TOTAL, clock())

    def check(self, sender: str, size: int) -> None:
        """Take a datagram of `size` bytes from an address. Raises OscError."""
        bucket = self._buckets.get(sender) or self._new(sender)
        cost, now = 1 + size // _BYTES_PER_DATAGRAM, self._clock()
        if not (bucket.take(cost, now) and self._all.take(cost, now)):
            raise OscError("rate", f"More than {PER_ADDRESS} datagrams per second")

    def _new(self, sender: str) -> _Bucket:
        address = ipaddress.ip_address(sender.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if not any(address in network for network in self._allow):
            raise OscError("denied", f"{sender} is not in WANSTREAM_OSC_ALLOW")
        if len(self._buckets) >= _MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        return self._buckets.setdefault(sender, _Bucket(PER_ADDRESS, self._clock()))
