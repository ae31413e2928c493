"""Looks as one file: kept in order, imported, refused with the line, and recalled chunk by chunk."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ApiError, ValidationFailed
from gateway.recording.replay import Replays
from gateway.show import looks as module
from gateway.show.lines import line_of
from gateway.show.looks import Looks
from tests.unit.test_osc_server import RecordedStream
from tests.unit.test_stream import RecordedControl

CALM: dict[str, Any] = {
    "title": "Calm",
    "set": {"prompts": "a lake", "noise_scale": 0.2},
    "transition_s": 2.0,
}


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    return Looks(tmp_path / "looks.json", Replays())


async def keep(looks: Looks, *names: str, **values: Any) -> None:
    for name in names:
        await looks.put(name, json.dumps(values or CALM))


async def names(looks: Looks) -> list[str]:
    return [look.name for look in (await looks.all()).looks]


async def test_looks_keep_their_order_and_outlive_the_server(looks: Looks, tmp_path: Path) -> None:
    await keep(looks, "calm", "wild", "end")
    await keep(looks, "calm", set={"base_seed": 3})
    await looks.move("end", 0)
    await looks.delete("wild")

    again = Looks(tmp_path / "looks.json", Replays())
    book = await again.all()

    assert await names(again) == ["end", "calm"]
    assert book.find("2").set == {"base_seed": 3}
    assert os.listdir(tmp_path) == ["looks.json"]


async def test_export_is_what_import_takes_with_the_midi_mappings(looks: Looks, tmp_path: Path) -> None:
    mapping = {"type": "trigger", "source": {"midi_note": 36, "channel": 9}, "target": {"look": "calm"}}
    await keep(looks, "calm")
    await looks.put_midi(json.dumps({"midi": [mapping]}))
    exported = (tmp_path / "looks.json").read_text()
    other = Looks(tmp_path / "other" / "looks.json", Replays())

    await other.replace_all(exported)

    assert json.loads(exported) == {"version": 1, "looks": [{**CALM, "name": "calm"}], "midi": [mapping]}
    assert await other.all() == await looks.all()


KNOB = '"continuous", "source": {{"midi_cc": {}, "encoding": "14_bit"'


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('"noise_scale": 0.2', '"noise_scale": 2', 6, "less than or equal to 1"),
        ('"noise_scale"', '"noise_scal"', 6, "docs/parameters.md"),
        ('"a lake",', '"a lake"', 6, "delimiter"),
        ('"version": 1', '"version": 2', 2, "1"),
        ('"version": 1,', "", 1, "required"),
        ('"title": "Calm"', '"titel": "Calm"', 4, "not permitted"),
        ('"name": "wild"', '"name": "calm"', 8, "another look"),
        ('"name": "wild"', '"name": "Wild"', 8, "pattern"),
        ('"transition_s": 2', '"transition_s": -2', 7, "greater"),
        ('"midi_note": 36', '"midi_cc": 1, "midi_note": 36', 12, "Exactly one"),
        ('"midi_note": 36', '"midi_note": 36, "encoding": "signed_bit"', 12, "continuous"),
        ('"midi_note": 36', '"midi_cc": 1, "encoding": "14_bit"', 12, "continuous"),
        ('"midi_note": 36', '"midi_cc": 1, "encoding": "8_bit"', 12, "14_bit"),
        ('"trigger", "source": {"midi_note": 36', KNOB.format(40), 12, "0 to 31"),
        ('{"look": "calm"}', '{"look": "calm", "begin": 2}', 12, "cue list"),
    ],
)
async def test_a_bad_file_is_refused_with_its_line_and_the_looks_before_stay(
    old: str, new: str, line: int, said: str, looks: Looks
) -> None:
    text = """{
 "version": 1,
 "looks": [
  {"name": "calm", "title": "Calm",
   "set": {"prompts": "a lake",
    "noise_scale": 0.2},
   "transition_s": 2},
  {"name": "wild",
   "set": {"base_seed": 1}}
 ],
 "midi": [
  {"type": "trigger", "source": {"midi_note": 36}, "target": {"look": "calm"}}
 ]
}"""
    await looks.replace_all(text)
    assert old in text

    with pytest.raises(ValidationFailed) as refusal:
        await looks.replace_all(text.replace(old, new))

    problem = refusal.value.problems[0]
    assert problem["line"] == line, problem
    assert said in problem["msg"]
    assert await names(looks) == ["calm", "wild"]


async def test_a_damaged_file_is_told_with_its_line_and_may_be_replaced(looks: Looks, tmp_path: Path) -> None:
    (tmp_path / "looks.json").write_text('{"version": 1,\n "looks": [{"name": "calm"}]}')

    with pytest.raises(ApiError, match="Line 2") as refusal:
        await looks.all()
    with pytest.raises(ApiError, match=r"looks\.json is damaged"):
        await keep(looks, "calm")
    await looks.replace_all('{"version": 1}')

    assert refusal.value.status == 409
    assert await names(looks) == []


async def test_what_is_no_name_and_no_look_is_told(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOOKS", 1)
    await keep(looks, "calm")

    for call, status in (
        (looks.put("../calm", json.dumps(CALM)), 404),
        (looks.put("wild", json.dumps(CALM)), 507),
        (looks.delete("wild"), 404),
        (looks.move("2", 0), 404),
    ):
        with pytest.raises(ApiError) as refusal:
            await call
        assert refusal.value.status == status


def play(stream: RecordedStream, chunks: int) -> list[dict[str, Any]]:
    """What each of the next chunks is told."""
    told = []
    for number in range(chunks):
        for listener in tuple(stream.worker.listeners):
            listener.before_chunk(number)
        told.append(stream.state.take_chunk().parameters)
        stream.state.chunk_succeeded({"transition_active": number < 3})
    return told


async def test_a_look_is_reached_in_its_time_prompts_by_a_transition_numbers_step_by_step(
    looks: Looks, tmp_path: Path
) -> None:
    stream, control = RecordedStream("stream", tmp_path), RecordedControl()
    stream.add_control(control)
    stream.output.expect_chunks_of(15)  # half a second, at 30 pictures a second
    await stream.update({"noise_scale": 1.0, "prompts": "before"})
    await keep(looks, "calm")

    problems = await looks.recall(stream, "1")
    told = play(stream, 5)

    assert problems == []
    assert [chunk["noise_scale"] for chunk in told] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    assert told[0]["transition"]["num_steps"] == 4
    assert told[-1]["prompts"] == [{"text": "a lake", "weight": 1.0}]
    recalled = [m for m in control.messages if m["type"] == "look_recalled"]
    assert recalled == [{"type": "look_recalled", "look": "calm", "transition_s": 2.0}]


async def test_a_look_at_once_ends_the_way_to_the_one_before(looks: Looks, tmp_path: Path) -> None:
    stream = RecordedStream("stream", tmp_path)
    stream.output.expect_chunks_of(15)
    await keep(looks, "calm")
    await keep(looks, "wild", set={"noise_scale": 0.9, "images": ["gone.png"]})

    await looks.recall(stream, "calm")
    play(stream, 2)
    problems = await looks.recall(stream, "wild", 0.0)
    told = play(stream, 5)

    assert [problem["type"] for problem in problems] == ["file_not_found"]
    assert [chunk["noise_scale"] for chunk in told] == [0.9] * 5


def test_the_line_of_a_place_is_found_in_any_layout() -> None:
    text = '\n{"a": [1,\n {"b\\"": {"c": null}, "d":\n[\n]}],\n"e": "]{"\n}'

    places: list[list[str | int]] = [
        [],
        ["a"],
        ["a", 1],
        ["a", 1, "d"],
        ["e"],
        ["a", 7],
        ["x"],
        ["a", 1, 'b"', "c"],
    ]
    assert [line_of(text, place) for place in places] == [2, 2, 3, 4, 6, 2, 2, 3]
