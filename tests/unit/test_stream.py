"""One stream and what is attached to it: a source at a time, controls that are told."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gateway.pipelines.state import Pipelines
from gateway.stream.parameters.state import ParameterContext, ParameterState
from gateway.stream.parts import Role
from gateway.stream.pictures.video_input import Feed
from gateway.stream.stream import Stream
from streaming.specs import SPECS
from tests.server.peer import until
from tests.unit.test_peer_close import Nobody
from tests.unit.test_pipelines import SlowServing


class RecordedSource:
    feed: Feed

    def __init__(self) -> None:
        self.stopped = False

    def start(self, feed: Feed) -> None:
        self.feed = feed

    @property
    def info(self) -> Mapping[str, Any]:
        return {"kind": "camera", "name": ""}

    def stop(self) -> None:
        self.stopped = True


class RecordedControl:
    role: Role = "driver"
    label = "test"

    def __init__(self, name: str = "control") -> None:
        self.id = name
        self.messages: list[Mapping[str, Any]] = []

    def notify(self, message: Mapping[str, Any]) -> None:
        self.messages.append(message)


def stream_of(pipelines: Pipelines, directory: Path) -> Stream:
    context = ParameterContext(SPECS["passthrough"], {"height": 64, "width": 64}, directory)
    return Stream("stream", pipelines, ParameterState.open(context, None), Nobody())


def grey(level: int) -> np.ndarray:
    return np.full((64, 64, 3), level, np.uint8)


def levels(stream: Stream) -> list[int]:
    """What the pictures in a stream's ring show; they are taken out."""
    count = stream.input.buffered
    return [int(picture[0, 0, 0]) for picture in stream.input.take(count) or ()] if count else []


async def test_a_source_is_replaced_at_the_first_picture_of_the_next_one(tmp_path: Path) -> None:
    pipelines = Pipelines(SlowServing(), load_timeout_s=60)
    stream = stream_of(pipelines, tmp_path)
    stream.state.merge({"input_mode": "video"})
    stream.input.expect(4, None)
    first, second = RecordedSource(), RecordedSource()
    stream.take_source(first)
    first.feed.push(grey(1), None)

    stream.take_source(second)
    first.feed.push(grey(2), None)
    before = first.stopped, levels(stream)
    first.feed.push(grey(3), None)
    second.feed.push(grey(4), None)
    first.feed.push(grey(5), None)  # on its way when it was stopped
    after = first.stopped, second.stopped, levels(stream)
    await stream.close()

    assert before == (False, [1, 2])
    assert after == (True, False, [4])
    assert second.stopped


async def test_a_source_that_never_shows_anything_leaves_the_one_before_in_place(tmp_path: Path) -> None:
    stream = stream_of(Pipelines(SlowServing(), load_timeout_s=60), tmp_path)
    stream.state.merge({"input_mode": "video"})
    stream.input.expect(4, None)
    camera, dead = RecordedSource(), RecordedSource()
    stream.take_source(camera)
    stream.take_source(dead)

    stream.drop_source(dead)
    camera.feed.push(grey(1), None)

    assert (camera.stopped, levels(stream)) == (False, [1])
    stream.stop_sources()
    camera.feed.push(grey(2), None)
    assert (camera.stopped, levels(stream)) == (True, [])
    await stream.close()


async def test_all_controls_change_parameters_and_are_told_once_that_the_stream_is_over(
    tmp_path: Path,
) -> None:
    pipelines = Pipelines(SlowServing(), load_timeout_s=60)
    stream = stream_of(pipelines, tmp_path)
    controls = [RecordedControl(), RecordedControl()]
    over: list[bool] = []
    for control in controls:
        stream.add_control(control)
    stream.on_closed(lambda: over.append(True))

    problems = [
        await stream.update({"paused": True}),
        *await stream.update_by_messages([json.dumps({"base_seed": 7})], together=False),
    ]
    stream.begin()  # nothing is loaded: its worker ends
    stream.begin()
    await until(lambda: stream.stopped, 30, "the end of the stream")
    stream.stop("once more")
    await stream.close()
    await pipelines.close()

    assert problems == [[], []]
    assert (stream.state.paused, stream.state.effective["base_seed"]) == (True, 7)
    told = [
        [m["type"] for m in control.messages if m["type"] != "parameters_updated"] for control in controls
    ]
    assert told == [["stream_stopped"]] * 2
    assert over == [True]
