"""Whether a viewer keeps up with what everybody is sent, judged by its reports and its queue.

An estimate follows what arrives: it is low while little is sent, and climbs to half as much again at most. So
it is compared with what is sent, not with what would be, and who seems well with little is tried again with
more; each time in vain doubles the time until the next.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_FAR_BELOW: Final = 0.7  # of what is sent
_ABOVE: Final = 1.3
_HEAVY_LOSS: Final = 0.1  # share of packets
_PERSISTS_S: Final = 5.0
_OVERFLOWS: Final = 3
_OVERFLOWS_COUNTED_S: Final = 30.0
_CALM_S: Final = 30.0  # without trouble before more is tried
_FIRST_WAIT_S, _LONGEST_WAIT_S = 60.0, 960.0  # from one change to the next try


class Health:
    """What is known of one viewer since its tier was changed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._low_since: float | None = None  # its estimate
        self._loss_since: float | None = None
        self._overflows: deque[float] = deque(maxlen=_OVERFLOWS)
        self._trouble_at = float("-inf")
        self._lowered_at = float("-inf")
        self._raised_at = float("-inf")
        self._wait_s = _FIRST_WAIT_S

    def reported(self, estimate: int, sent: float) -> None:
        """Its network carries `estimate` bit/s, it thinks, while it is sent so many."""
        now = self._clock()
        self._low_since = _since(self._low_since, now) if estimate < _FAR_BELOW * sent else None
        if estimate < _ABOVE * sent:
            self._trouble_at = now

    def lost(self, share: float) -> None:
        """It missed this share of the packets since its last report."""
        now = self._clock()
        self._loss_since = _since(self._loss_since, now) if share > _HEAVY_LOSS else None
        if share > _HEAVY_LOSS:
            self._trouble_at = now

    def overflowed(self) -> None:
        """It left so many packets that they were dropped."""
        self._trouble_at = self._clock()
        self._overflows.append(self._trouble_at)

    @property
    def is_slow(self) -> bool:
        """Whether it cannot take what it is sent."""
        now = self._clock()
        many = len(self._overflows) == _OVERFLOWS and now - self._overflows[0] <= _OVERFLOWS_COUNTED_S
        since = [at for at in (self._low_since, self._loss_since) if at is not None]
        return many or any(now - at >= _PERSISTS_S for at in since)

    @property
    def may_be_raised(self) -> bool:
        """Whether it may be sent more, for all that is known."""
        now = self._clock()
        return now - self._trouble_at >= _CALM_S and now - self._lowered_at >= self._wait_s

    def lowered(self) -> None:
        """It is sent less from now on."""
        now = self._clock()
        again = now - self._raised_at < _FIRST_WAIT_S
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S) if again else _FIRST_WAIT_S
        self._lowered_at = self._trouble_at = now
        self._forget()

    def raised(self) -> None:
        """It is sent more from now on."""
        self._raised_at = self._clock()
        self._forget()

    def _forget(self) -> None:
        self._low_since = self._loss_since = None
        self._overflows.clear()


def _since(before: float | None, now: float) -> float:
    return now if before is None else before
