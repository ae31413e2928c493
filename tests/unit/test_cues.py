"""Cue lists as files: kept, replaced, refused, and played to a stream at once or with the beat."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gateway.errors import ApiError, ValidationFailed
from gateway.recording.replay import Replays
from gateway.show import cues as module
from gateway.show.cues import Cues
from gateway.show.looks import Looks
from gateway.show.player import Beats
from gateway.stream.parameters.tempo import Tempo
from tests.hostile_names import HOSTILE
from tests.server.peer import until
from tests.unit.test_osc_server import RecordedStream
from tests.unit.test_stream import RecordedControl

NIGHT = {"lines": [{"label": "dark", "set": {"noise_scale": 0.2}}, {"chunk": 4, "set": {"base_seed": 7}}]}


class Shelf(Cues):
    """Cue lists that are put as values, beside looks and a tempo of their own."""

    def __init__(self, directory: Path, tempo: Tempo | None = None) -> None:
        self.tempo = tempo or Tempo()
        self.looks = Looks(directory.parent / "looks.json", Replays())
        super().__init__(directory, Replays(), self.looks, self.tempo)

    async def keep(self, name: str, value: Any) -> None:
        await self.put(name, json.dumps(value))


@pytest.fixture
def cues(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "cues")


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


async def test_lists_outlive_the_server_and_are_replaced_whole(cues: Shelf, tmp_path: Path) -> None:
    empty = await cues.names()
    await cues.keep("night", {"lines": [{"event": "reset"}]})
    await cues.keep("night", NIGHT)
    await cues.keep("day", {"lines": [{"set": {"paused": False, "prompts": None, "seed": 3}}]})

    again = Shelf(tmp_path / "cues")
    names, night = await again.names(), await again.get("night")
    await again.delete("day")

    assert (empty, names, await cues.names()) == ([], ["day", "night"], ["night"])
    assert night.plain() == NIGHT
    assert (tmp_path / "cues").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "cues").iterdir()] == ["night.json"]


@pytest.mark.parametrize("name", [*map(unquote, HOSTILE), "", "Night", "a" * 65, "night.json", ".cue-x"])
async def test_a_name_never_leaves_the_directory(name: str, cues: Shelf, tmp_path: Path) -> None:
    await cues.keep("night", NIGHT)
    before = files(tmp_path)

    for attempt in (cues.get(name), cues.keep(name, NIGHT), cues.delete(name)):
        with pytest.raises(ApiError) as refusal:
            await attempt
        assert refusal.value.status == 404
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([], "body"),
        ({}, "lines"),
        ({"lines": []}, "lines"),
        ({"lines": [{}] * 1001}, "lines"),
        ({"lines": [{"t": 1.5, "set": {}}]}, "t"),
        ({"lines": [{"chunk": -1}]}, "chunk"),
        ({"lines": [{"event": "pause"}]}, "event"),
        ({"lines": [{"label": 3}]}, "label"),
        ({"lines": [{"set": {"noise_scal": 0.2}}]}, "noise_scal"),
        ({"lines": [{"set": {"noise_scale": 9}}]}, "noise_scale"),
        ({"lines": [{"set": {"take_control": True}}]}, "take_control"),
        ({"lines": [{"at": 1}]}, "at"),
        ({"loop": True, "lines": [{}]}, "clock"),
        ({"clock": "time", "loop": True, "lines": [{}]}, "length"),
        ({"clock": "time", "length": 2, "lines": [{"at": 3}]}, "length"),
        ({"clock": "beat", "lines": [{"chunk": 3}]}, "chunk"),
        ({"clock": "beat", "lines": [{"at": 3, "jump": "later"}, {"at": 4, "label": "later"}]}, "jump"),
        ({"clock": "beat", "lines": [{"look": "No Name"}]}, "look"),
        ({"lines": [{"transition_s": -1}]}, "transition_s"),
    ],
)
async def test_what_no_stream_could_be_set_to_is_refused_and_the_list_before_stays(
    value: Any, where: str, cues: Shelf
) -> None:
    await cues.keep("night", NIGHT)

    with pytest.raises(ValidationFailed) as refusal:
        await cues.keep("night", value)

    assert where in refusal.value.problems[0]["loc"]
    assert (await cues.get("night")).plain() == NIGHT


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"lines": [{"set": 3}]}'])
async def test_a_damaged_file_is_told_and_may_be_replaced(
    content: bytes, cues: Shelf, tmp_path: Path
) -> None:
    await cues.keep("night", NIGHT)
    (tmp_path / "cues" / "night.json").write_bytes(content)

    with pytest.raises(ApiError, match="PUT it again") as refusal:
        await cues.get("night")
    await cues.keep("night", NIGHT)

    assert refusal.value.status == 409
    assert (await cues.get("night")).plain() == NIGHT


async def test_no_list_is_kept_without_room_for_it(
    cues: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LISTS", 1)
    await cues.keep("night", NIGHT)
    (tmp_path / "file").write_bytes(b"")

    for full in (cues, Shelf(tmp_path / "file" / "cues")):
        with pytest.raises(ApiError) as refusal:
            await full.keep("day", NIGHT)
        assert refusal.value.status == 507
    await cues.keep("night", {"lines": [{"event": "reset"}]})  # one that is there may be changed

    assert await cues.names() == ["night"]


def told(control: RecordedControl, kind: str) -> list[Mapping[str, Any]]:
    return [message for message in control.messages if message["type"] == kind]


async def test_a_cue_sets_its_first_lines_although_nobody_looks_and_the_others_in_their_chunks(
    cues: Shelf, tmp_path: Path
) -> None:
    stream, control = RecordedStream("stream", tmp_path), RecordedControl()
    stream.add_control(control)
    await cues.keep("night", NIGHT)
    await stream.update({"noise_scale": 0.9})

    problems = await cues.play(stream, "night")
    at_once = stream.state.effective["noise_scale"]
    seeds = []
    for number in range(10, 18):  # of the stream's chunks
        for listener in tuple(stream.worker.listeners):
            listener.before_chunk(number)
        seeds.append(stream.state.effective["base_seed"])

    assert (problems, at_once) == ([], 0.2)
    assert seeds.index(7) == 4
    assert [message["state"] for message in told(control, "replay_changed")] == ["running", "stopped"]
    assert stream.changed_by["noise_scale"] == "replay"


async def test_only_the_lines_of_a_label_are_played(cues: Shelf, tmp_path: Path) -> None:
    stream = RecordedStream("stream", tmp_path)
    lines = [{"label": label, "set": {"base_seed": seed}} for label, seed in (("a", 1), ("b", 2), ("c", 3))]
    await cues.keep("songs", {"lines": lines})

    await cues.play(stream, "songs", "b")
    with pytest.raises(ApiError, match="no line with the label 'd'") as refusal:
        await cues.play(stream, "songs", "d")

    assert stream.state.effective["base_seed"] == 2
    assert refusal.value.status == 404


async def test_a_cue_takes_the_place_of_the_one_before_and_what_cannot_be_had_is_told(
    cues: Shelf, tmp_path: Path
) -> None:
    stream = RecordedStream("stream", tmp_path)
    await cues.keep("first", {"lines": [{"chunk": 1, "set": {"base_seed": 1}}]})
    lines = [{"chunk": 1, "set": {"noise_scale": 0.4, "images": ["gone.png"]}}]
    await cues.keep("second", {"lines": lines})

    await cues.play(stream, "first")
    problems = await cues.play(stream, "second")
    listeners = len(stream.worker.listeners)
    for number in range(3):
        for listener in tuple(stream.worker.listeners):
            listener.before_chunk(number)

    assert [problem["type"] for problem in problems] == ["file_not_found"]
    assert listeners == 1
    assert stream.state.effective["base_seed"] != 1
    assert stream.state.effective["noise_scale"] == 0.4


async def test_a_cue_waits_for_the_beat_and_comes_after_what_waits_already(
    cues: Shelf, tmp_path: Path
) -> None:
    stream, control = RecordedStream("stream", tmp_path), RecordedControl()
    stream.add_control(control)
    stream.quantizer.tempo = Tempo()
    stream.quantizer.tempo.enable("manual", 300, 2)
    await cues.keep("night", {"lines": [{"set": {"noise_scale": 0.2}}]})
    await stream.update({"quantize_mode": "bar", "noise_scale": 0.3})

    await cues.play(stream, "night")
    while_waiting = stream.state.effective["noise_scale"]
    await until(lambda: bool(told(control, "change_applied")), 30, "the bar")

    assert while_waiting == 0.7
    assert stream.state.effective["noise_scale"] == 0.2
    assert len(told(control, "change_scheduled")) == 1


async def test_a_cue_that_waits_is_not_lost_with_the_beat_and_ends_with_its_stream(
    cues: Shelf, tmp_path: Path
) -> None:
    stream, other = RecordedStream("stream", tmp_path), RecordedStream("other", tmp_path)
    await cues.keep("night", {"lines": [{"set": {"noise_scale": 0.2}}]})
    for each in (stream, other):
        each.quantizer.tempo = Tempo()
        each.quantizer.tempo.enable("manual", 20, 16)
        await each.update({"quantize_mode": "4_bars"})  # minutes
        await cues.play(each, "night")

    await stream.update({"quantize_mode": "none"})
    await other.close()
    await asyncio.sleep(0)

    assert stream.state.effective["noise_scale"] == 0.2
    assert other.state.effective["noise_scale"] == 0.7


def test_a_list_is_plain_json_that_people_can_edit(tmp_path: Path) -> None:
    cues = Shelf(tmp_path / "cues")

    asyncio.run(cues.keep("night", NIGHT))

    assert json.loads((tmp_path / "cues" / "night.json").read_text()) == NIGHT


async def test_a_wrong_list_is_refused_with_its_line(cues: Shelf) -> None:
    text = '{\n "lines": [\n  {"label": "a"},\n  {"set":\n   {"seed": 1,\n    "noise_scale": 9}}\n ]\n}'

    refusals = []
    for wrong in (text, text.replace("]", "", 1)):
        with pytest.raises(ValidationFailed) as refusal:
            await cues.put("night", wrong)
        refusals.append(refusal.value.problems[0])

    assert [problem["line"] for problem in refusals] == [6, 8]
    assert refusals[0]["msg"].startswith("Line 6: ")


class Show:
    """A stream with a list that plays to it, and what was set, in order."""

    def __init__(self, tmp_path: Path, tempo: Tempo | None = None) -> None:
        self.cues = Shelf(tmp_path / "cues", tempo)
        self.stream, self.control = RecordedStream("stream", tmp_path), RecordedControl()
        self.stream.quantizer.tempo = self.cues.tempo
        self.stream.add_control(self.control)

    @property
    def lines(self) -> list[int]:
        return [message["line"] for message in told(self.control, "cues_changed") if "line" in message]

    @property
    def ended(self) -> bool:
        return bool(told(self.control, "cues_changed")[-1:]) and not self.cues.playing(self.stream).get(
            "list"
        )


async def test_a_list_plays_looks_by_time_loops_and_is_stopped(tmp_path: Path) -> None:
    show = Show(tmp_path)
    await show.cues.looks.put("calm", '{"set": {"noise_scale": 0.1}}')
    await show.cues.looks.put("wild", '{"set": {"noise_scale": 0.9, "base_seed": 5}}')
    lines = [{"look": "calm"}, {"at": 0.02, "look": "wild", "set": {"base_seed": 6}}]
    await show.cues.keep("loop", {"clock": "time", "loop": True, "length": 0.04, "lines": lines})

    problems = await show.cues.play(show.stream, "loop")
    await until(lambda: len(show.lines) >= 4, 30, "two rounds")
    playing, held = show.cues.playing(show.stream), show.stream.may_be_evicted
    show.cues.stop(show.stream)
    await asyncio.sleep(0)

    assert problems == []
    assert show.lines[:4] == [0, 1, 0, 1]
    assert (playing["state"], playing["list"], playing["round"] >= 1) == ("playing", "loop", True)
    assert held, "a stream that only a show holds has to make room"
    assert show.stream.state.effective["base_seed"] == 6
    assert show.cues.playing(show.stream) == {"state": "stopped"}
    assert told(show.control, "cues_changed")[-1]["state"] == "stopped"


async def test_a_line_jumps_back_as_often_as_it_says_and_the_list_ends(tmp_path: Path) -> None:
    show = Show(tmp_path)
    lines = [{"label": "a"}, {"at": 0.01, "label": "b"}, {"at": 0.02, "jump": "b", "times": 2}, {"at": 0.03}]
    await show.cues.keep("song", {"clock": "time", "lines": lines})
    show.stream.hold(show)

    await show.cues.play(show.stream, "song")
    await until(lambda: show.ended, 30, "the end")
    first = show.lines
    await show.cues.play(show.stream, "song", begin=3)
    await until(lambda: show.ended, 30, "the end")
    with pytest.raises(ApiError, match="lines 0 to 3"):
        await show.cues.play(show.stream, "song", begin=4)

    assert first == [0, 1, 2, 1, 2, 1, 2, 3]
    assert show.lines[len(first) :] == [3]


async def test_a_list_goes_on_without_its_page_and_ends_with_its_stream(tmp_path: Path) -> None:
    show = Show(tmp_path)
    holder = object()
    show.stream.hold(holder)
    await show.cues.keep("long", {"clock": "time", "loop": True, "length": 3600, "lines": [{}]})

    await show.cues.play(show.stream, "long")
    await until(lambda: show.lines == [0], 30, "the first line")
    show.stream.release(holder)  # the page has gone
    lives = not show.stream.stopped
    await show.stream.close()

    assert lives
    assert show.cues.playing(show.stream) == {"state": "stopped"}


async def test_a_list_without_a_look_says_so_and_plays_the_rest(tmp_path: Path) -> None:
    show = Show(tmp_path)
    lines = [{"look": "gone"}, {"at": 0.01, "set": {"base_seed": 4, "images": ["gone.png"]}}]
    await show.cues.keep("night", {"clock": "time", "lines": lines})

    problems = await show.cues.play(show.stream, "night")
    await until(lambda: show.ended, 30, "the end")

    assert [(p["type"], p["loc"][:2]) for p in problems] == [
        ("unknown_look", ["lines", 0]),
        ("file_not_found", ["lines", 1]),
    ]
    assert show.stream.state.effective["base_seed"] == 4


async def test_beats_go_on_counting_when_pace_and_phase_change() -> None:
    now = [100.0]
    tempo = Tempo(lambda: now[0])
    tempo.enable("manual", 120, 4)
    beats = Beats(tempo, 0.0, lambda: now[0])
    beats.start(0.0)

    now[0] += 1.0  # two beats
    tempo.set(60)
    beats.changed()
    now[0] += 1.1
    counted = beats.beats
    tempo.enabled = False
    tempo.enable("manual", 60)  # a bar begins now: the nearest beat is this one
    beats.changed()

    assert counted == pytest.approx(3.1)
    assert beats.beats == pytest.approx(3.0)


async def test_a_list_on_the_beat_begins_with_the_beat_and_ends_after_the_change_of_pace(
    tmp_path: Path,
) -> None:
    show = Show(tmp_path)
    await show.cues.keep("beat", {"clock": "beat", "lines": [{"set": {"base_seed": 1}}, {"at": 16}]})
    show.cues.tempo.enable("manual", 300, 4)

    await show.cues.play(show.stream, "beat")
    await until(lambda: show.lines == [0], 30, "the beat")
    show.cues.tempo.set(20)  # the other line is 45 s away
    slow = show.lines
    show.cues.tempo.set(300)
    await until(lambda: show.lines == [0, 1], 30, "the other line")

    assert slow == [0]
