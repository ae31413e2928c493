"""One stream and what is attached to it: a source at a time, controls that are told."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.pipelines.state import Pipelines
from gateway.stream.parameters import ParameterContext, ParameterState
from gateway.stream.stream import Stream
from streaming.specs import SPECS
from tests.server.peer import until
from tests.unit.test_peer_close import Nobody
from tests.unit.test_pipelines import SlowServing


class RecordedSource:
    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class RecordedControl:
    def __init__(self) -> None:
        self.messages: list[Mapping[str, Any]] = []

    def notify(self, message: Mapping[str, Any]) -> None:
        self.messages.append(message)


def stream_of(pipelines: Pipelines, directory: Path) -> Stream:
    context = ParameterContext(SPECS["passthrough"], {"height": 64, "width": 64}, directory)
    return Stream("stream", pipelines, ParameterState.open(context, None), Nobody())


async def test_a_stream_has_one_source_at_a_time(tmp_path: Path) -> None:
    stream = stream_of(Pipelines(SlowServing(), load_timeout_s=60), tmp_path)
    first, second = RecordedSource(), RecordedSource()

    stream.take_source(first)
    stream.take_source(second)
    stream.drop_source(first)  # it learns late that it has ended
    before_the_end = (first.stopped, second.stopped)
    await stream.close()

    assert before_the_end == (True, False)
    assert second.stopped


async def test_all_controls_change_parameters_and_are_told_once_that_the_stream_is_over(
    tmp_path: Path,
) -> None:
    pipelines = Pipelines(SlowServing(), load_timeout_s=60)
    stream = stream_of(pipelines, tmp_path)
    controls = [RecordedControl(), RecordedControl()]
    over: list[bool] = []
    for control in controls:
        stream.add_control(control)
    stream.on_stopped(lambda: over.append(True))

    problems = [
        await stream.update({"paused": True}),
        *await stream.update_by_messages([json.dumps({"base_seed": 7})], together=False),
    ]
    stream.begin()  # nothing is loaded: its worker ends
    stream.begin()
    await until(lambda: stream.stopped, 5, "the end of the stream")
    stream.stop("once more")
    await stream.close()
    await pipelines.close()

    assert problems == [[], []]
    assert (stream.state.paused, stream.state.effective["base_seed"]) == (True, 7)
    assert [[m["type"] for m in control.messages] for control in controls] == [["stream_stopped"]] * 2
    assert over == [True]
