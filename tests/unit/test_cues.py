"""Cue lists as files: kept, replaced, refused, and played to a stream at once or with the beat."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gateway.errors import ApiError, ValidationFailed
from gateway.recording import cues as module
from gateway.recording.cues import Cues
from gateway.recording.replay import Replays
from gateway.stream.parameters.tempo import Tempo
from tests.hostile_names import HOSTILE
from tests.server.peer import until
from tests.unit.test_osc_server import RecordedStream
from tests.unit.test_stream import RecordedControl

NIGHT = {"lines": [{"label": "dark", "set": {"noise_scale": 0.2}}, {"chunk": 4, "set": {"base_seed": 7}}]}


@pytest.fixture
def cues(tmp_path: Path) -> Cues:
    return Cues(tmp_path / "cues", Replays())


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


async def test_lists_outlive_the_server_and_are_replaced_whole(cues: Cues, tmp_path: Path) -> None:
    empty = await cues.names()
    await cues.put("night", {"lines": [{"event": "reset"}]})
    await cues.put("night", NIGHT)
    await cues.put("day", {"lines": [{"set": {"paused": False, "prompts": None, "seed": 3}}]})

    again = Cues(tmp_path / "cues", Replays())
    names, night = await again.names(), await again.get("night")
    await again.delete("day")

    assert (empty, names, await cues.names()) == ([], ["day", "night"], ["night"])
    assert night.plain() == NIGHT
    assert (tmp_path / "cues").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "cues").iterdir()] == ["night.json"]


@pytest.mark.parametrize("name", [*map(unquote, HOSTILE), "", "Night", "a" * 65, "night.json", ".cue-x"])
async def test_a_name_never_leaves_the_directory(name: str, cues: Cues, tmp_path: Path) -> None:
    await cues.put("night", NIGHT)
    before = files(tmp_path)

    for attempt in (cues.get(name), cues.put(name, NIGHT), cues.delete(name)):
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
    ],
)
async def test_what_no_stream_could_be_set_to_is_refused_and_the_list_before_stays(
    value: Any, where: str, cues: Cues
) -> None:
    await cues.put("night", NIGHT)

    with pytest.raises(ValidationFailed) as refusal:
        await cues.put("night", value)

    assert where in refusal.value.problems[0]["loc"]
    assert (await cues.get("night")).plain() == NIGHT


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"lines": [{"set": 3}]}'])
async def test_a_damaged_file_is_told_and_may_be_replaced(content: bytes, cues: Cues, tmp_path: Path) -> None:
    await cues.put("night", NIGHT)
    (tmp_path / "cues" / "night.json").write_bytes(content)

    with pytest.raises(ApiError, match="PUT it again") as refusal:
        await cues.get("night")
    await cues.put("night", NIGHT)

    assert refusal.value.status == 409
    assert (await cues.get("night")).plain() == NIGHT


async def test_no_list_is_kept_without_room_for_it(
    cues: Cues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LISTS", 1)
    await cues.put("night", NIGHT)
    (tmp_path / "file").write_bytes(b"")

    for full in (cues, Cues(tmp_path / "file" / "cues", Replays())):
        with pytest.raises(ApiError) as refusal:
            await full.put("day", NIGHT)
        assert refusal.value.status == 507
    await cues.put("night", {"lines": [{"event": "reset"}]})  # one that is there may be changed

    assert await cues.names() == ["night"]


def told(control: RecordedControl, kind: str) -> list[Mapping[str, Any]]:
    return [message for message in control.messages if message["type"] == kind]


async def test_a_cue_sets_its_first_lines_although_nobody_looks_and_the_others_in_their_chunks(
    cues: Cues, tmp_path: Path
) -> None:
    stream, control = RecordedStream("stream", tmp_path), RecordedControl()
    stream.add_control(control)
    await cues.put("night", NIGHT)
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


async def test_only_the_lines_of_a_label_are_played(cues: Cues, tmp_path: Path) -> None:
    stream = RecordedStream("stream", tmp_path)
    lines = [{"label": label, "set": {"base_seed": seed}} for label, seed in (("a", 1), ("b", 2), ("c", 3))]
    await cues.put("songs", {"lines": lines})

    await cues.play(stream, "songs", "b")
    with pytest.raises(ApiError, match="no line with the label 'd'") as refusal:
        await cues.play(stream, "songs", "d")

    assert stream.state.effective["base_seed"] == 2
    assert refusal.value.status == 404


async def test_a_cue_takes_the_place_of_the_one_before_and_what_cannot_be_had_is_told(
    cues: Cues, tmp_path: Path
) -> None:
    stream = RecordedStream("stream", tmp_path)
    await cues.put("first", {"lines": [{"chunk": 1, "set": {"base_seed": 1}}]})
    lines = [{"chunk": 1, "set": {"noise_scale": 0.4, "images": ["gone.png"]}}]
    await cues.put("second", {"lines": lines})

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
    cues: Cues, tmp_path: Path
) -> None:
    stream, control = RecordedStream("stream", tmp_path), RecordedControl()
    stream.add_control(control)
    stream.quantizer.tempo = Tempo()
    stream.quantizer.tempo.enable("manual", 300, 2)
    await cues.put("night", {"lines": [{"set": {"noise_scale": 0.2}}]})
    await stream.update({"quantize_mode": "bar", "noise_scale": 0.3})

    await cues.play(stream, "night")
    while_waiting = stream.state.effective["noise_scale"]
    await until(lambda: bool(told(control, "change_applied")), 30, "the bar")

    assert while_waiting == 0.7
    assert stream.state.effective["noise_scale"] == 0.2
    assert len(told(control, "change_scheduled")) == 1


async def test_a_cue_that_waits_is_not_lost_with_the_beat_and_ends_with_its_stream(
    cues: Cues, tmp_path: Path
) -> None:
    stream, other = RecordedStream("stream", tmp_path), RecordedStream("other", tmp_path)
    await cues.put("night", {"lines": [{"set": {"noise_scale": 0.2}}]})
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
    cues = Cues(tmp_path, Replays())

    asyncio.run(cues.put("night", NIGHT))

    assert json.loads((tmp_path / "night.json").read_text()) == NIGHT
