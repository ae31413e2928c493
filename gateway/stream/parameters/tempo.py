"""The beat that changes of parameters can wait for, one for all streams of the server."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

QuantizeMode = Literal["none", "beat", "bar", "2_bars", "4_bars"]
TempoSource = Literal["manual", "tap", "osc", "midi_clock"]

MODES: Final[tuple[QuantizeMode, ...]] = get_args(QuantizeMode)
SOURCES: Final[tuple[TempoSource, ...]] = get_args(TempoSource)
BPM_RANGE: Final = (20.0, 300.0)
MAX_BEATS_PER_BAR: Final = 16
MAX_LOOKAHEAD_MS: Final = 1000

_BARS: Final = {"bar": 1, "2_bars": 2, "4_bars": 4}
_TAPS: Final = 4  # the newest ones count
_TAP_PAUSE_S: Final = 2.0  # then taps begin anew
_START_BPM: Final = 120.0
_NEAR: Final = 0.15  # of a beat: so far off is a message that took its time, not another beat
_EASE: Final = 0.125  # of that is made good at once, so that the grid does not tremble with the messages


class Tempo:
    """Beats per minute, and where in the bar we are.

    The grid of what is seen is a stream's chunks all the same: a change waits for the beat, and then for the
    next chunk.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taps: deque[float] = deque(maxlen=_TAPS)
        self._tapped = 0  # since the first tap of the series
        self._beat_0 = clock()  # when the first beat of a bar was
        self._on_changed: list[Callable[[], None]] = []
        self.enabled = False
        self.source: TempoSource = "manual"
        self.bpm = _START_BPM
        self.beats_per_bar = 4

    def on_changed(self, call: Callable[[], None]) -> None:
        """Call it whenever the tempo changes."""
        self._on_changed.append(call)

    def enable(self, source: TempoSource, bpm: float | None = None, beats_per_bar: int | None = None) -> None:
        """Begin to count, with the first beat of a bar now; what is None stays."""
        if not self.enabled:
            self._beat_0 = self._clock()
        self.enabled, self.source = True, source
        self.beats_per_bar = beats_per_bar or self.beats_per_bar
        self.set(self.bpm if bpm is None else bpm)

    def follow(self, source: TempoSource, beat: float) -> None:
        """Keep to a beat that somebody else counts. beat: of the bar, now; 1 is its first, 1.5 is halfway on.

        A little off it moves a little, and a steady beat is met after some messages; far off it jumps.
        """
        started = not self.enabled
        self.enabled, self.source = True, source
        bar = self.beats_per_bar
        late = (beat - 1 - self.position + bar / 2) % bar - bar / 2  # beats
        share = 1.0 if started or abs(late) > _NEAR else _EASE
        self._beat_0 -= share * late * 60 / self.bpm
        self._tell()

    def disable(self) -> None:
        """Let changes wait for nothing."""
        self.enabled = False
        self._tell()

    def set(self, bpm: float) -> None:
        """Go on at another pace from where in the bar we are."""
        now = self._clock()
        position = self.position
        self.bpm = _within_range(bpm)
        self._beat_0 = now - position * 60 / self.bpm
        self._tell()

    def tap(self) -> None:
        """Somebody taps the beat: the pace of the last taps; the first one of a series begins a bar."""
        now = self._clock()
        if self._taps and now - self._taps[-1] > _TAP_PAUSE_S:
            self._taps.clear()
        self._tapped = self._tapped + 1 if self._taps else 0
        self._taps.append(now)
        if self._tapped:
            seconds = (now - self._taps[0]) / (len(self._taps) - 1)
            self.enabled, self.source = True, "tap"
            self.bpm = _within_range(60 / max(seconds, 0.001))
            self._beat_0 = now - self._tapped * 60 / self.bpm
            self._tell()

    @property
    def position(self) -> float:
        """Beats since the first beat of some bar."""
        return (self._clock() - self._beat_0) * self.bpm / 60

    def wait_s(self, mode: QuantizeMode, lookahead_ms: float) -> float:
        """Seconds until a change has to begin to be there with the next boundary; 0: at once."""
        if not self.enabled or mode == "none":
            return 0.0
        grid = self.beats_per_bar * _BARS[mode] if mode in _BARS else 1
        ahead = self.position + lookahead_ms / 1000 * self.bpm / 60
        return (grid - ahead % grid) * 60 / self.bpm

    def status(self) -> dict[str, Any]:
        """What people are told."""
        position = self.position
        return {
            "enabled": self.enabled,
            "source": self.source,
            "bpm": round(self.bpm, 3),
            "beats_per_bar": self.beats_per_bar,
            "beat": int(position % self.beats_per_bar) + 1,
            "bar_phase": round(position % self.beats_per_bar / self.beats_per_bar, 4),
        }

    def _tell(self) -> None:
        for call in self._on_changed:
            call()


def _within_range(bpm: float) -> float:
    return min(BPM_RANGE[1], max(BPM_RANGE[0], bpm))
