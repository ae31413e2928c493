"""A cue list that plays by the clock or on the beat, on the server: no page has to stay open."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from gateway.stream.parameters.tempo import Tempo
from gateway.stream.stream import Stream
from gateway.waiting import within

logger = logging.getLogger(__name__)

_AHEAD_S: Final = 0.5  # before its time a line is read and checked


class Clock(Protocol):
    """Where in a list we are, in its own unit."""

    def start(self, position: float) -> None:
        """`position` is now."""

    async def until(self, position: float, ahead_s: float = 0.0) -> None:
        """Until `position` is there, or `ahead_s` before."""

    def changed(self) -> None:
        """The tempo has changed."""


class Seconds:
    """The clock of a list that plays by time."""

    def __init__(self) -> None:
        self._origin = 0.0

    def start(self, position: float) -> None:
        self._origin = asyncio.get_running_loop().time() - position

    async def until(self, position: float, ahead_s: float = 0.0) -> None:
        await asyncio.sleep(max(0.0, self._origin + position - ahead_s - asyncio.get_running_loop().time()))

    def changed(self) -> None:
        """Of no consequence."""


class Beats:
    """The clock of a list that plays on the beat: it goes on counting when the pace or the phase changes."""

    def __init__(self, tempo: Tempo, lookahead_s: float, clock: Callable[[], float] | None = None) -> None:
        self._tempo = tempo
        self._lookahead_s = lookahead_s
        self._clock = clock or asyncio.get_running_loop().time
        self._beats, self._counted, self._bpm = 0.0, 0.0, tempo.bpm
        self._retimed = asyncio.Event()

    def start(self, position: float) -> None:
        self._beats, self._counted, self._bpm = position, self._clock(), self._tempo.bpm

    def changed(self) -> None:
        self._beats, self._bpm = self.beats, self._tempo.bpm
        self._counted = self._clock()
        if self._tempo.enabled:  # lines are on the beat: the nearest one
            ahead = self._tempo.position + self._lookahead_s * self._bpm / 60
            self._beats += (ahead - self._beats + 0.5) % 1 - 0.5
        self._retimed.set()

    @property
    def beats(self) -> float:
        """Since the beginning of the list."""
        return self._beats + (self._clock() - self._counted) * self._bpm / 60

    async def until(self, position: float, ahead_s: float = 0.0) -> None:
        while (wait_s := (position - self.beats) * 60 / self._bpm - ahead_s) > 0:
            self._retimed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._retimed.wait(), wait_s)


class Line(Protocol):
    at: float
    label: str | None
    jump: str | None
    times: int | None


class CuePlayer:
    """Plays the lines of one list to one stream, which it holds, from one of them on."""

    def __init__(
        self,
        stream: Stream,
        name: str,
        lines: Sequence[Line],
        period: float | None,
        clock: Clock,
        prepare: Callable[[int], Awaitable[Callable[[], None]]],
        on_end: Callable[["CuePlayer"], None],
    ) -> None:
        """lines: in order. period: after which the list begins again; None: it ends.

        prepare(number): makes a line ready to be set at any moment.
        """
        self.name = name
        self._stream = stream
        self._lines = lines
        self._period = period
        self._clock = clock
        self._prepare = prepare
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._jumps: dict[int, int] = {}
        self._line: int | None = None
        self._round = 0

    @property
    def status(self) -> dict[str, Any]:
        """What people are told."""
        label = None if self._line is None else self._lines[self._line].label
        return {
            "state": "playing",
            "list": self.name,
            "line": self._line,
            "label": label,
            "round": self._round,
        }

    def start(self, first: int, wait_s: float) -> None:
        """Play from line `first` on, in `wait_s`."""
        # A stream that nobody is connected to has to make room when others need it.
        self._stream.hold(self, lambda: False)
        self._stream.on_closed(self.stop)
        self._task = asyncio.create_task(self._run(first, wait_s), name=f"cues-{self._stream.id}")

    def tempo_changed(self) -> None:
        self._clock.changed()

    def stop(self) -> None:
        """Set nothing more. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        if task is not asyncio.current_task():
            task.cancel()
        self._stream.forget(self.stop)
        self._on_end(self)
        self._stream.release(self)

    async def _run(self, first: int, wait_s: float) -> None:
        try:
            set_line = await self._prepare(first)
            await asyncio.sleep(wait_s)
            await self._play(first, set_line)
        except Exception:  # task boundary: the show ends, the stream goes on
            logger.exception("[%s] The cue list %s ends", self._stream.id, self.name)
        self.stop()

    async def _play(self, number: int, set_line: Callable[[], None]) -> None:
        self._clock.start(self._lines[number].at)
        offset = 0.0
        while True:
            self._set(number, set_line)
            following, offset = self._after(number, offset)
            if following is None:
                return
            due = offset + self._lines[following].at
            await self._clock.until(due, _AHEAD_S)
            set_line = await self._prepare(following)
            await self._clock.until(due)
            number = following

    def _set(self, number: int, set_line: Callable[[], None]) -> None:
        set_line()
        self._line = number
        self._stream.notify({"type": "cues_changed", **self.status})

    def _after(self, number: int, offset: float) -> tuple[int | None, float]:
        """The next line and what its time counts from; None: it was the last one."""
        line = self._lines[number]
        jumps = self._jumps.get(number, 0)
        if line.jump is not None and (line.times is None or jumps < line.times):
            self._jumps[number] = jumps + 1
            target = next(n for n, each in enumerate(self._lines) if each.label == line.jump)
            return target, offset + line.at - self._lines[target].at
        if number + 1 < len(self._lines):
            return number + 1, offset
        if self._period is None:
            return None, offset
        self._round += 1
        self._jumps.clear()
        return 0, offset + self._period
