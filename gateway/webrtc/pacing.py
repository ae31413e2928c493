"""When the packets of a picture leave: not all at once, for a narrow network has a short queue.

A picture of the usual size leaves at once, as it always did. What is larger, such as a key frame, is spread:
over one picture's time at most, or, where the network is known to be narrow, at little more than its rate. It
never makes the next pictures late: the more of them wait, the faster it goes.
"""

import time
from collections.abc import Callable
from typing import Final

_USUAL_PICTURES: Final = 1.5  # that leave at once
_AT_ONCE_S: Final = 0.05  # of the bitrate, which leaves at once
_FASTER: Final = 2.0  # than the bitrate
_FASTER_NARROW: Final = 1.2  # pictures are given 0.85 of what a narrow network carries
_LONGEST_S: Final = 0.5  # from a picture's first packet to its last
_SHORTEST_S: Final = 0.001  # a shorter pause is not worth its wake-up


class Pacer:
    """A bucket that one viewer's packets fill, and that runs out at some rate; when it is full, they wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bits = 0.0  # in the bucket
        self._at = clock()
        self._room_bits = float("inf")
        self._rate = 1.0  # bit/s at which it runs out

    def begin(
        self, picture_bytes: int, bitrate: int, period_s: float, *, narrow: bool, waiting: int = 0
    ) -> None:
        """Another picture begins. bitrate: of the encoder. period_s: from one picture to the next.

        waiting: pictures that wait behind it.
        """
        self._run_out()
        bits = 8.0 * picture_bytes
        if narrow:
            self._room_bits = _AT_ONCE_S * bitrate
            rate = max(_FASTER_NARROW * bitrate, bits / _LONGEST_S)
        else:
            self._room_bits = max(_AT_ONCE_S, _USUAL_PICTURES * period_s) * bitrate
            rate = max(_FASTER * bitrate, bits / min(period_s or _LONGEST_S, _LONGEST_S))
        self._rate = max(1.0, rate * (1 + waiting))

    def sent(self, packet_bytes: int) -> float:
        """A packet has left; returns after how many seconds the next one may."""
        self._run_out()
        self._bits += 8 * packet_bytes
        pause_s = (self._bits - self._room_bits) / self._rate
        return pause_s if pause_s >= _SHORTEST_S else 0.0

    def _run_out(self) -> None:
        now = self._clock()
        self._bits = max(0.0, self._bits - (now - self._at) * self._rate)
        self._at = now
