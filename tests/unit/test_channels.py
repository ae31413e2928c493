"""What waits in the data channels of a session: for its check, and for a peer that does not read."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection

from gateway.errors import Problem
from gateway.pipelines.state import Pipelines
from gateway.stream.parameters.checks import ParameterContext, Validated, newest_values
from gateway.stream.parameters.state import ParameterState, check_messages
from gateway.stream.stream import Stream
from gateway.webrtc.channels import Channels, Message
from streaming.specs import SPECS
from tests.server.peer import until
from tests.unit.test_peer_close import Nobody
from tests.unit.test_pipelines import SlowServing


@dataclass
class Connected:
    """Two peers of this process: `channels` is our end, `client` the other end's channel."""

    channels: Channels
    client: RTCDataChannel
    received: list[dict[str, Any]]
    state: ParameterState


@pytest.fixture
async def connected(tmp_path: Path) -> AsyncIterator[Connected]:
    state = ParameterState(ParameterContext(SPECS["longlive"], {}, tmp_path))

    async def update(messages: Sequence[Message], together: bool) -> list[list[Problem]]:
        return [state.apply(checked) for checked in check_messages(state, messages, together)]

    ours, theirs = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    channels = Channels("test", "controller", "browser", update, lambda: None)
    ours.on("datachannel", channels.add)
    client = theirs.createDataChannel("parameters")
    received: list[dict[str, Any]] = []
    client.on("message", lambda text: received.append(json.loads(text)))
    await theirs.setLocalDescription(await theirs.createOffer())
    await ours.setRemoteDescription(theirs.localDescription)
    await ours.setLocalDescription(await ours.createAnswer())
    await theirs.setRemoteDescription(ours.localDescription)
    await until(lambda: client.readyState == "open", 30, "channel open")
    hearing = asyncio.create_task(channels.run())
    yield Connected(channels, client, received, state)
    hearing.cancel()
    await asyncio.gather(ours.close(), theirs.close())


def error(number: int) -> list[Problem]:
    return [Problem(loc=["prompts"], msg=f"{number} " + "x" * 4000, type="string_type")]


async def test_a_peer_that_does_not_read_costs_a_bounded_amount(connected: Connected) -> None:
    connected.channels.report(error(0))
    await until(lambda: connected.received, 30, "the first message")
    acknowledge = connected.client.transport._send_sack

    async def keep_silent() -> None: ...

    connected.client.transport._send_sack = keep_silent  # type: ignore[method-assign]
    for number in range(1, 5000):
        connected.channels.report(error(number))
        await asyncio.sleep(0)
    connected.channels.notify({"type": "stream_stopped"})
    [outlet] = connected.channels._outlets
    buffered = outlet.channel.bufferedAmount

    connected.client.transport._send_sack = acknowledge  # type: ignore[method-assign]
    await until(lambda: connected.received[-1]["type"] == "stream_stopped", 30, "the last message")

    assert buffered < 300_000
    assert len(connected.received) < 500


def types_of(messages: list[dict[str, Any]]) -> list[str]:
    return [error["type"] for message in messages for error in message["errors"]]


@pytest.mark.parametrize(
    "flood",
    [['{"noise_scale": 0.5}'] * 5000, ["nonsense"] * 5000, ['{"x": "' + "y" * 60_000 + '"}'] * 100],
    ids=["a slider", "nonsense", "long texts"],
)
async def test_messages_that_come_too_fast_are_told_of_once(connected: Connected, flood: list[str]) -> None:
    [outlet] = connected.channels._outlets
    for text in [*flood, '{"base_seed": 5}', '{"noise_scale": 0.25}']:
        outlet.channel.emit("message", text)  # as fast as can be
    await until(lambda: connected.state.effective["noise_scale"] == 0.25, 30, "the last value")
    await until(lambda: connected.received, 30, "the notice")
    for text in [*flood, '{"noise_scale": 0.75}']:
        outlet.channel.emit("message", text)
    await until(lambda: connected.state.effective["noise_scale"] == 0.75, 30, "the last value again")

    assert connected.state.effective["base_seed"] == 5
    assert types_of(connected.received) == ["too_many_messages"]


async def test_a_control_of_200_values_in_a_second_is_not_too_fast(connected: Connected) -> None:
    [outlet] = connected.channels._outlets
    for second in range(3):
        for i in range(200):
            outlet.channel.emit("message", json.dumps({"noise_scale": i / 200, "base_seed": second}))
        await until(lambda: connected.state.effective["noise_scale"] == 199 / 200, 30, "the last value")
    outlet.channel.emit("message", '{"noise_scale": 9}')
    await until(lambda: connected.received, 30, "an error")

    assert types_of(connected.received) == ["less_than_equal"]


class WaitingState(ParameterState):
    """Its checks of noise_scale 0.1 end when they are told to."""

    @classmethod
    def of_longlive(cls, directory: Path) -> "WaitingState":
        state = cls(ParameterContext(SPECS["longlive"], {"height": 64, "width": 64}, directory))
        state.go_on, state.began, state.threads = threading.Event(), threading.Event(), set()
        return state

    go_on: threading.Event
    began: threading.Event
    threads: set[str]

    def check(self, values: Mapping[str, Any]) -> Validated:
        self.threads.add(threading.current_thread().name)
        if values.get("noise_scale") == 0.1:
            self.began.set()
            self.go_on.wait(10)
        return super().check(values)


async def test_slow_checks_hold_up_neither_the_loop_nor_the_order(tmp_path: Path) -> None:
    state = WaitingState.of_longlive(tmp_path)
    stream = Stream("stream", Pipelines(SlowServing(), load_timeout_s=60), state, Nobody())

    slow = asyncio.create_task(stream.update_by_messages(['{"noise_scale": 0.1}'], False))
    await until(state.began.is_set, 30, "the slow check began")  # the event loop goes on meanwhile
    quick = asyncio.create_task(stream.update({"noise_scale": 0.2}))
    await asyncio.sleep(0.05)
    before = state.effective["noise_scale"]
    state.go_on.set()
    await asyncio.gather(slow, quick)
    await stream.close()

    assert before not in (0.1, 0.2)
    assert state.effective["noise_scale"] == 0.2
    assert all(name.startswith("parameters") for name in state.threads)


@pytest.mark.parametrize(
    ("messages", "newest"),
    [
        ([{"noise_scale": 0.1}, {"noise_scale": 0.2, "paused": True}], {"noise_scale": 0.2, "paused": True}),
        ([{"seed": 1}, {"base_seed": 2}], {"base_seed": 2}),
        ([{"reset_cache": True}, {"reset_cache": False}], {"reset_cache": True}),
        ([{"transition": {"target_prompts": "b"}}, {"prompts": "c"}], {"prompts": "c"}),
        (
            [{"prompts": "c"}, {"transition": {"target_prompts": "b"}}],
            {"prompts": "c", "transition": {"target_prompts": "b"}},
        ),
        (
            [{"lora_scales": [{"path": "a", "scale": 1}, {"path": "b"}]}, {"lora_scales": [{"path": "a"}]}],
            {"lora_scales": [{"path": "b"}, {"path": "a"}]},
        ),
        ([{"nonsense": 1}, "no object", {"images": ["a.png"]}, {"images": []}], {"images": []}),
        ([{"lora_scales": [{"path": "a"}]}, {"lora_scales": 5}], {"lora_scales": 5}),
    ],
    ids=str,
)
def test_many_messages_become_one_update(messages: list[Any], newest: dict[str, Any]) -> None:
    assert newest_values([json.dumps(message) for message in messages] + [None, "{"]) == newest


def test_images_are_looked_for_once_per_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Path] = []
    walk = __import__("os").walk
    monkeypatch.setattr("os.walk", lambda top: walks.append(top) or walk(top))
    state = ParameterState(ParameterContext(SPECS["longlive"], {"vace_enabled": True}, tmp_path))

    validated = state.check({"vace_ref_images": [f"{i}.png" for i in range(16)], "images": ["a.png"]})

    assert len(validated.problems) == 2
    assert len(walks) == 1
