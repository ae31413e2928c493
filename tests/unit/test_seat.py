"""The driver's seat, and how the others learn what was changed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.pipelines.state import Pipelines
from gateway.stream.parts import Role
from gateway.stream.stream import Stream
from tests.server.peer import until
from tests.unit.test_pipelines import SlowServing
from tests.unit.test_stream import RecordedControl, RecordedSource, stream_of


class Person(RecordedControl):
    def __init__(self, name: str, role: Role) -> None:
        super().__init__(name)
        self.role = role
        self.label = f"{name}'s browser"

    def told(self, kind: str) -> list[dict[str, object]]:
        return [dict(message) for message in self.messages if message["type"] == kind]


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[Stream]:
    pipelines = Pipelines(SlowServing(), load_timeout_s=60)
    stream = stream_of(pipelines, tmp_path)
    yield stream
    await stream.close()
    await pipelines.close()


def joined(stream: Stream, name: str, role: Role = "controller") -> Person:
    person = Person(name, role)
    stream.add_control(person)
    return person


async def say(stream: Stream, person: Person, **message: object) -> list[str]:
    """Types of what was wrong with a message over a data channel."""
    [problems] = await stream.update_by_messages([json.dumps(message)], False, person)
    return [problem["type"] for problem in problems]


async def test_only_the_driver_s_parameters_are_applied(stream: Stream) -> None:
    driver, other, viewer = joined(stream, "a"), joined(stream, "b"), joined(stream, "c", "viewer")

    refusals = [await say(stream, person, base_seed=7) for person in (other, viewer)]
    seed = stream.state.effective["base_seed"]
    accepted = await say(stream, driver, base_seed=8)

    assert refusals == [["not_driver"]] * 2
    assert seed != 7
    assert accepted == []
    assert stream.state.effective["base_seed"] == 8
    assert (stream.seat.driver, stream.seat.role_of(driver)) == ("a", "driver")


async def test_an_empty_seat_goes_to_whoever_asks_and_a_taken_one_is_handed_over(stream: Stream) -> None:
    driver, other = joined(stream, "a"), joined(stream, "b")

    asked = await say(stream, other, take_control=True)
    seated = stream.seat.driver
    handed = await say(stream, driver, hand_over="b")

    assert (asked, handed) == ([], [])
    assert seated == "a"
    assert driver.told("control_requested") == [
        {"type": "control_requested", "sessionId": "b", "label": "b's browser"}
    ]
    assert driver.told("driver_changed") == other.told("driver_changed")
    assert other.told("driver_changed") == [{"type": "driver_changed", "driver": "b"}]

    stream.remove_control(other)
    empty = stream.seat.driver
    await say(stream, driver, take_control=True)

    assert empty is None
    assert stream.seat.driver == "a"


async def test_a_seat_is_given_back_and_given_away_by_its_driver_only(stream: Stream) -> None:
    driver, other = joined(stream, "a"), joined(stream, "b")

    problems = [
        await say(stream, other, hand_over="b"),
        await say(stream, driver, hand_over="nobody"),
        await say(stream, driver, take_control="please"),
    ]
    stays = stream.seat.driver
    await say(stream, driver, take_control=False)

    assert problems == [["not_driver"], ["unknown_session"], ["bool_type"]]
    assert (stays, stream.seat.driver) == ("a", None)


async def test_viewers_ask_in_vain(stream: Stream) -> None:
    viewer = joined(stream, "v", "viewer")

    assert await say(stream, viewer, take_control=True) == ["not_driver"]
    assert stream.seat.driver is None


async def test_with_many_drivers_every_controller_s_message_counts(stream: Stream) -> None:
    stream.seat.drivers = "many"
    people = [joined(stream, "a"), joined(stream, "b"), joined(stream, "c", "viewer")]

    problems = [await say(stream, person, base_seed=i) for i, person in enumerate(people)]

    assert problems == [[], [], ["not_driver"]]
    assert stream.state.effective["base_seed"] == 1


async def test_others_are_told_of_changes_at_most_ten_times_a_second_with_the_newest_values(
    stream: Stream,
) -> None:
    driver, viewer = joined(stream, "a"), joined(stream, "v", "viewer")

    began = time.monotonic()
    for seed in range(200):
        await say(stream, driver, base_seed=seed)
    await stream.update({"noise_scale": 0.5})
    await until(
        lambda: any("noise_scale" in m["parameters"] for m in viewer.told("parameters_updated")),
        30,
        "news",  # type: ignore[operator]
    )
    await asyncio.sleep(0)

    told = [message["parameters"] for message in viewer.told("parameters_updated")]
    assert told[0] == {"base_seed": 0}
    assert len(told) <= 10 * (time.monotonic() - began) + 2
    newest: dict[str, object] = {}
    for parameters in told:
        assert isinstance(parameters, dict)
        newest |= parameters
    assert newest == {"base_seed": 199, "noise_scale": 0.5}
    assert driver.told("parameters_updated")[-1]["parameters"] == {"noise_scale": 0.5}


async def test_what_was_refused_is_no_news(stream: Stream) -> None:
    joined(stream, "a")
    viewer = joined(stream, "v", "viewer")

    await say(stream, viewer, base_seed=3)
    problems = await stream.update({"noise_scale": 9, "base_seed": 4})

    assert [problem["loc"] for problem in problems] == [["noise_scale"]]
    assert [m["parameters"] for m in viewer.told("parameters_updated")] == [{"base_seed": 4}]


async def test_whoever_has_joined_is_told_of_a_source_that_falls_silent(stream: Stream) -> None:
    owner, viewer = Person("a", "controller"), Person("v", "viewer")
    stream.add_control(owner, is_owner=True)
    stream.add_control(viewer)
    source = RecordedSource()

    stream.take_source(source)
    await until(lambda: len(viewer.told("source_changed")) == 2, 30, "the silence")
    stream.drop_source(source)

    told = [(message["kind"], message.get("state")) for message in viewer.told("source_changed")]
    assert told == [("camera", "live"), ("camera", "lost"), ("none", None)]
    assert owner.told("source_changed") == []


class FileSource(RecordedSource):
    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": "file", "name": "film.mp4"}


async def test_who_made_a_stream_is_told_of_a_source_that_is_no_camera(stream: Stream) -> None:
    owner = Person("a", "controller")
    stream.add_control(owner, is_owner=True)
    camera, film = RecordedSource(), FileSource()

    stream.take_source(camera)
    stream.take_source(film)
    stream.drop_source(film)
    stream.stop_sources()

    told = [(message["kind"], message["state"]) for message in owner.told("source_changed")]
    assert told == [("file", "live"), ("camera", "live")]
