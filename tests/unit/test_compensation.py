"""The delay from cue to picture made up for: a pipeline of a known delay, in time that the test lets pass."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import pytest

from gateway.show.player import Beats, CuePlayer
from gateway.stream.parameters.quantizer import Quantizer
from gateway.stream.parameters.tempo import Tempo
from gateway.stream.worker import WorkerStats

BPM = 100
DELAYS_S = (0.37, 0.35, 0.39)  # from a change to its picture: a median, and what it trembles by
TREMBLE_S = 0.02


class Skipping(selectors.DefaultSelector):
    """Waits for nothing: the time that was to be waited has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout + 1e-6 if timeout else 0.0
        return super().select(0)


def in_passing_time(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    selector = Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


class Pipeline:
    """Shows what is set a known delay later, measures that, and notes at which beat the picture came."""

    def __init__(self, tempo: Tempo) -> None:
        self._tempo = tempo
        self._delays: Iterator[float] = cycle(DELAYS_S)
        self.stats = WorkerStats()
        self.shown: list[float] = []

    def set(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()

        def show() -> None:
            self.stats.change_ms.append(1000 * (loop.time() - began))
            self.shown.append(self._tempo.position)

        loop.call_later(next(self._delays), show)

    def take_shown(self) -> list[float]:
        shown, self.shown = self.shown, []
        return shown


def running_tempo() -> Tempo:
    tempo = Tempo(asyncio.get_running_loop().time)
    tempo.enable("manual", BPM, 4)
    return tempo


def off_beat_s(positions: list[float]) -> list[float]:
    """How long after their nearest beat."""
    return [((position + 0.5) % 1 - 0.5) * 60 / BPM for position in positions]


def test_a_change_reaches_the_picture_on_the_beat_by_the_measured_delay() -> None:
    late: dict[str, list[float]] = {}

    async def run() -> None:
        tempo = running_tempo()
        pipeline = Pipeline(tempo)
        timing: dict[str, Any] = {"quantize_mode": "beat", "lookahead_ms": 0}
        quantizer = Quantizer(lambda: timing, pipeline.set, lambda _: None)
        quantizer.tempo = tempo
        for name in ("as it is", "compensated"):
            for number in range(9):
                quantizer.hold({"base_seed": number}, None)
                await asyncio.sleep(1.3)  # of no rhythm
            late[name] = off_beat_s(pipeline.take_shown())
            measured = pipeline.stats.change_to_picture_ms
            assert measured is not None
            assert measured["median"] == pytest.approx(1000 * DELAYS_S[0], abs=1)
            assert measured["spread"] == pytest.approx(2000 * TREMBLE_S, abs=1)
            timing["lookahead_ms"] = measured["median"]

    in_passing_time(run)

    assert len(late["as it is"]) == len(late["compensated"]) == 9
    assert all(abs(seconds) > 0.1 for seconds in late["as it is"])
    assert all(abs(seconds) <= TREMBLE_S + 0.002 for seconds in late["compensated"]), "only what trembles"


@dataclass
class Line:
    at: float
    label: str | None = None
    jump: str | None = None
    times: int | None = None


class Held:
    """A stream, as far as a player of cues knows it."""

    id = "stream"

    def hold(self, *_: object) -> None: ...
    def release(self, *_: object) -> None: ...
    def on_closed(self, *_: object) -> None: ...
    def forget(self, *_: object) -> None: ...
    def notify(self, *_: object) -> None: ...


@pytest.mark.parametrize("lookahead_s", [0.0, DELAYS_S[0]])
def test_a_cue_list_reaches_the_picture_on_the_beat(lookahead_s: float) -> None:
    shown: list[float] = []
    gaps: list[float] = []

    async def run() -> None:
        tempo = running_tempo()
        pipeline = Pipeline(tempo)
        ended = asyncio.Event()

        async def prepare(number: int) -> Callable[[], None]:
            return pipeline.set

        lines = [Line(at) for at in (0, 2, 3, 8, 12)]
        clock = Beats(tempo, lookahead_s)
        player = CuePlayer(Held(), "show", lines, None, clock, prepare, lambda _: ended.set())  # type: ignore[arg-type]
        await asyncio.sleep(0.25)  # of no rhythm
        player.start(0, tempo.wait_s("beat", 1000 * lookahead_s))
        await asyncio.sleep(3.1)
        before = tempo.bpm
        tempo.set(before)  # somebody says it again
        player.tempo_changed()
        await ended.wait()
        await asyncio.sleep(1)
        shown.extend(pipeline.take_shown())
        gaps.extend(b - a for a, b in pairwise(shown))

    in_passing_time(run)

    expected = 0.0 if lookahead_s else DELAYS_S[0]
    wanted = [expected if expected <= 30 / BPM else expected - 60 / BPM] * 5
    assert off_beat_s(shown) == pytest.approx(wanted, abs=TREMBLE_S + 0.002)
    assert [round(gap) for gap in gaps] == [2, 1, 5, 4]
