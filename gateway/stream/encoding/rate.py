"""How fast one viewer is sent to: the configured range, unless the viewer's network is narrower.

A receiver's estimate of the bandwidth (REMB) says little while little is sent: it follows what arrives, and
climbs by 8 % per second at most. So a stream keeps to the configured floor although the estimate is below it,
as after a still picture, until there is evidence that the network cannot carry that: the estimate is below
what is sent, and packets are lost; or it has fallen, and stays far below. From then on the estimate counts,
down to `_LEAST`, until it has climbed above the floor again. From one picture per second a receiver learns
nothing: its estimate stands still, on a network that has become wide, too. Then the rate climbs by itself
until packets are lost.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.config import Bitrate

_REFERENCE_PIXELS = 832 * 480  # at this size and above the configured bitrates apply in full
_SMALLEST_SHARE = 0.1
_LEAST = 100_000  # bit/s; below this no picture of any use can be sent
_USED = 0.85  # share of an estimate that pictures take; the rest is for headers and lost packets
_BELOW = 0.9  # of what is sent: an estimate that is lower speaks of the network
_FALLING = 0.95  # of the estimate before
_FAR_BELOW = 0.5  # of what is sent, in two reports: a busy machine delays packets as a full network does
_LOSS = 0.05  # share of packets; a radio link may lose some without being full
_HEAVY_LOSS = 0.1  # then what arrived is all that the network carries
_REMEMBERED_S = 3.0  # for so long; reports of loss come once per second
_GROWTH = 1.08  # per report of loss, where the viewer reports no estimate
_PROBING = 1.4  # the same, where its estimate stands still
_STILL = 0.01  # of the estimate before
_STEP_BACK = 0.7  # of our own estimate, when packets are lost
_LONGEST_CALM_S = 8.0  # without loss before the rate climbs again; it doubles after each time in vain
_WINDOW_S = 1.0
_REPEATED = 0.25  # share of what is sent that lost packets may take
_KEY_FRAME_EVERY_S = 1.0  # on a narrow network, where it takes the place of many other pictures
_PACKET_BITS = 1300 * 8
_REPEATED_AT_ONCE = 50  # packets: a lost key frame


@dataclass(slots=True)
class RateLimits:
    """The configured range, in bit/s, by picture size."""

    bitrate: Bitrate

    def clamp(self, wanted: int, width: int, height: int) -> int:
        """`wanted` bit/s inside the range for this picture size; small pictures get a lower range."""
        most = self._share(width, height) * self.bitrate.maximum
        return round(max(self.floor(width, height), min(wanted, most)))

    def floor(self, width: int, height: int) -> float:
        return self._share(width, height) * self.bitrate.minimum

    def default(self, width: int, height: int) -> int:
        return self.clamp(round(self.bitrate.default * width * height / _REFERENCE_PIXELS), width, height)

    def _share(self, width: int, height: int) -> float:
        return min(1.0, max(_SMALLEST_SHARE, width * height / _REFERENCE_PIXELS))


class LinkRate:
    """What is known of the network to one viewer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: deque[tuple[float, int]] = deque()  # (time, bits) of the last second
        self._lost_at = self._fell_at = self._moved_at = self._key_frame_at = float("-inf")
        self._far_below = 0  # reports in a row
        self._last_report = 0  # bit/s that the viewer estimated
        self._reported: int | None = None  # what of it counts
        self._own: int | None = None  # bit/s that came through, as far as we know
        self._calm_s = _REMEMBERED_S
        self._repeats = float(_REPEATED_AT_ONCE)  # packets that may be repeated now
        self._repeats_at = clock()
        self.narrow = False  # the network carries less than the configured floor

    def sent(self, data_bytes: int) -> None:
        """A picture went out."""
        now = self._clock()
        self._sent.append((now, data_bytes * 8))
        while now - self._sent[0][0] > _WINDOW_S:
            self._sent.popleft()

    @property
    def estimate(self) -> int | None:
        """Bit/s that the network carries, as far as is known."""
        known = [value for value in (self._reported, self._own) if value is not None]
        return max(known, default=None)

    @property
    def sent_rate(self) -> float:
        """Bit/s of the last second."""
        now = self._clock()
        return sum(bits for at, bits in self._sent if now - at <= _WINDOW_S) / _WINDOW_S

    def lost(self, share: float) -> None:
        """The viewer missed this share of the packets since its last report, a second ago."""
        if share >= _LOSS and self._own is not None and self._reported is not None:
            self._calm_s = min(2 * self._calm_s, _LONGEST_CALM_S)
        if share >= _HEAVY_LOSS:
            self._limit(round((1 - share) * self.sent_rate))
        elif share < _LOSS:
            self._climb()
        elif self._own is not None:
            self._own = round(_STEP_BACK * self._own)
        if share >= _LOSS:
            self._lost_at = self._clock()
            self._judge()

    def report(self, estimate: int) -> None:
        """The viewer estimates that its network carries so many bit/s."""
        if self._reported is None:
            self._own = None
        before = self._last_report or estimate
        self._last_report = self._reported = estimate
        if abs(estimate - before) > _STILL * before:
            self._moved_at = self._clock()
        if estimate < _FALLING * before:
            self._fell_at = self._clock()
            self._own = None
        self._far_below = self._far_below + 1 if estimate < _FAR_BELOW * self.sent_rate else 0
        self._judge()

    def may_repeat(self) -> bool:
        """Whether a lost packet may be sent again: not while these take the place of new ones."""
        now = self._clock()
        more = _REPEATED * self.sent_rate * (now - self._repeats_at) / _PACKET_BITS
        self._repeats, self._repeats_at = min(_REPEATED_AT_ONCE, self._repeats + more), now
        if self._repeats < 1:
            return False
        self._repeats -= 1
        return True

    def may_send_key_frame(self) -> bool:
        """Whether a key frame that is asked for is sent now; if not, it is to be sent later."""
        now = self._clock()
        if self.narrow and now - self._key_frame_at < _KEY_FRAME_EVERY_S:
            return False
        self._key_frame_at = now
        return True

    def wanted(self, limits: RateLimits, width: int, height: int) -> int:
        """Bit/s for pictures of this size."""
        estimate = self.estimate
        if estimate is None:
            return limits.default(width, height)
        if self.narrow and _USED * estimate < limits.floor(width, height):
            return max(_LEAST, round(_USED * estimate))
        self.narrow = False
        if self._reported is not None:
            self._own, estimate = None, self._reported  # the range counts again
            self._calm_s = _REMEMBERED_S
        return limits.clamp(estimate, width, height)

    def _judge(self) -> None:
        since = self._clock() - _REMEMBERED_S
        trouble = self._lost_at > since or (self._fell_at > since and self._far_below > 1)
        estimate = self.estimate
        if trouble and estimate is not None and estimate < _BELOW * self.sent_rate:
            self.narrow = True

    def _limit(self, arrived: int) -> None:
        """Nothing that was estimated before counts beyond what arrived."""
        if self._reported is not None:
            self._reported = min(self._reported, arrived)
        if self._own is not None or self._reported is None:
            self._own = min(self._own or arrived, arrived)

    def _climb(self) -> None:
        """All has arrived: perhaps the network carries more."""
        estimate = self.estimate
        if estimate is None:
            return
        if self._reported is None:
            self._own = round(_GROWTH * estimate)
        elif self.narrow and max(self._lost_at, self._moved_at) < self._clock() - self._calm_s:
            self._own = round(_PROBING * estimate)
