"""The beat, and changes of parameters that wait for it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.stream.parameters.quantizer import Quantizer
from gateway.stream.parameters.tempo import Tempo
from tests.server.peer import until
from tests.unit.test_osc_server import RecordedStream
from tests.unit.test_stream import RecordedControl


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tempo(clock: Clock) -> Tempo:
    tempo = Tempo(clock)
    tempo.enable("manual", 120, 4)
    return tempo


@pytest.mark.parametrize(
    ("at_s", "mode", "lookahead_ms", "wait_s"),
    [
        (0.1, "none", 0, 0.0),
        (0.1, "beat", 0, 0.4),
        (0.1, "bar", 0, 1.9),
        (0.1, "2_bars", 0, 3.9),
        (0.1, "4_bars", 0, 7.9),
        (0.1, "bar", 400, 1.5),
        (1.8, "bar", 400, 1.8),  # too late for this one
        (3.0, "bar", 0, 1.0),
        (3.0, "2_bars", 0, 1.0),
    ],
)
def test_a_change_waits_for_the_boundary_less_the_lookahead(
    at_s: float, mode: Any, lookahead_ms: float, wait_s: float, tempo: Tempo, clock: Clock
) -> None:
    clock.now += at_s

    assert tempo.wait_s(mode, lookahead_ms) == pytest.approx(wait_s)


def test_nothing_waits_while_there_is_no_tempo(tempo: Tempo) -> None:
    tempo.disable()

    assert tempo.wait_s("bar", 0) == 0


def test_another_pace_goes_on_from_where_in_the_bar_it_was(tempo: Tempo, clock: Clock) -> None:
    clock.now += 1.25  # two and a half beats

    tempo.set(60)
    half_way = tempo.status()
    clock.now += 1.5

    assert (half_way["bpm"], half_way["beat"], half_way["bar_phase"]) == (60, 3, 0.625)
    assert tempo.status()["beat"] == 1


def test_taps_set_pace_and_place(clock: Clock) -> None:
    tempo = Tempo(clock)
    told: list[float] = []
    tempo.on_changed(lambda: told.append(tempo.bpm))

    for pause in (0.0, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4):
        clock.now += pause
        tempo.tap()
    status = tempo.status()
    clock.now += 2.1
    tempo.tap()  # a new series: one tap says nothing

    assert told == pytest.approx([120, 120, 120, 180 / 1.4, 180 / 1.3, 150])
    assert (status["enabled"], status["source"], status["beat"]) == (True, "tap", 3)
    assert tempo.position % 4 == pytest.approx((6 + 2.1 * 2.5) % 4)


@pytest.mark.parametrize(("bpm", "used"), [(5, 20), (1000, 300)])
def test_a_pace_stays_within_reason(bpm: float, used: float, tempo: Tempo) -> None:
    tempo.set(bpm)

    assert tempo.bpm == used


def test_taps_at_the_same_moment_are_fast(clock: Clock) -> None:
    tempo = Tempo(clock)
    for _ in range(3):
        tempo.tap()

    assert tempo.bpm == 300


def test_a_beat_that_somebody_else_counts_is_met_without_trembling(tempo: Tempo, clock: Clock) -> None:
    first_s = clock.now + 3.1  # of the other one's first bar: a fifth of a beat after one of ours

    def off() -> float:
        return abs((tempo.position - (clock.now - first_s) * 2 + 2) % 4 - 2)

    clock.now = first_s
    tempo.follow("osc", 1.0)
    jumped = off()
    offs = []
    for beat in range(1, 40):
        clock.now = first_s + beat * 0.5 + (0.04 if beat % 3 == 0 and beat < 20 else 0.0)
        tempo.follow("osc", 1 + beat % 4)  # some messages come 0.04 s late, which is 0.08 of a beat
        offs.append(off())

    assert (jumped, tempo.source) == (pytest.approx(0), "osc")
    assert max(offs) < 0.03
    assert offs[-1] < 0.003


def test_the_first_beat_that_is_counted_elsewhere_begins_the_count(clock: Clock) -> None:
    tempo = Tempo(clock)
    clock.now += 0.01

    tempo.follow("midi_clock", 1.0)

    assert tempo.enabled
    assert tempo.position % 4 == pytest.approx(0)


class Held:
    """A quantizer at 300 beats per minute, with what it applied and told."""

    def __init__(self, **timing: Any) -> None:
        self.applied: list[dict[str, Any]] = []
        self.told: list[Mapping[str, Any]] = []
        self.quantizer = Quantizer(lambda: timing, self.applied.append, self.told.append)
        self.quantizer.tempo = Tempo()
        self.quantizer.tempo.enable("manual", 300, 4)


async def test_changes_join_and_are_told_once_to_each() -> None:
    held = Held(quantize_mode="bar")
    control = RecordedControl()

    now = [
        held.quantizer.hold({"noise_scale": 0.1, "paused": True, "recording": True}, control),
        held.quantizer.hold({"noise_scale": 0.2, "reset_cache": True}, control),
        held.quantizer.hold({"reset_cache": False, "base_seed": 1}, None),
    ]
    before = list(held.applied)
    await until(lambda: held.applied, 30, "the bar")

    assert now == [{"paused": True, "recording": True}, {}, {}]
    assert before == []
    assert held.applied == [{"noise_scale": 0.2, "reset_cache": True, "base_seed": 1}]
    assert [message["type"] for message in control.messages] == ["change_scheduled"]
    assert 0 <= control.messages[0]["delay_ms"] <= 800
    assert [message["type"] for message in held.told] == ["change_scheduled", "change_applied"]


async def test_what_waits_comes_before_what_is_newer_when_nothing_waits_any_more() -> None:
    held = Held(quantize_mode="4_bars")
    held.quantizer.hold({"noise_scale": 0.1, "base_seed": 1}, None)

    now = held.quantizer.hold({"quantize_mode": "none", "noise_scale": 0.9}, None)

    assert now == {"quantize_mode": "none", "noise_scale": 0.9, "base_seed": 1}


async def test_a_stream_s_parameters_wait_and_are_checked_at_once(tmp_path: Path) -> None:
    stream = RecordedStream("stream", tmp_path)
    control = RecordedControl()
    stream.add_control(control)
    stream.quantizer.tempo = Tempo()
    stream.quantizer.tempo.enable("manual", 300, 2)

    problems = await stream.update({"quantize_mode": "bar", "noise_scale": 0.3, "base_seed": "x"})
    while_waiting = stream.state.effective["noise_scale"]
    types = [message["type"] for message in control.messages]
    await until(lambda: stream.state.effective["noise_scale"] == 0.3, 30, "the bar")

    assert [problem["loc"] for problem in problems] == [["base_seed"]]
    assert while_waiting == 0.7
    assert types[0] == "change_scheduled"
    assert "change_applied" in [message["type"] for message in control.messages]
    assert "quantize_mode" not in stream.state.take_chunk().parameters


async def test_a_stream_that_ends_forgets_what_waits(tmp_path: Path) -> None:
    stream = RecordedStream("stream", tmp_path)
    stream.quantizer.tempo = Tempo()
    stream.quantizer.tempo.enable("manual", 300, 1)
    await stream.update({"quantize_mode": "beat", "noise_scale": 0.3})

    await stream.close()
    await asyncio.sleep(0.25)  # longer than a beat

    assert stream.state.effective["noise_scale"] == 0.7
