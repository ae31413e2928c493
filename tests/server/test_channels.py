"""Data channels as peers use and misuse them, on a gateway without Triton."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiortc import RTCDataChannel

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, session_parameters, sessions
from tests.server.peer import Peer, until

PROMPTS = {"prompts": [{"text": "a"}]}


@pytest.fixture
async def peer(double_server: DoubleProcess) -> AsyncIterator[Peer]:
    """A connected peer of LongLive."""
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    async with Peer(double_server.client) as peer:
        await peer.connect(PROMPTS)
        yield peer
        await peer.delete()


async def another(peer: Peer, label: str) -> tuple[RTCDataChannel, list[dict[str, Any]]]:
    """A further channel of the peer, open, and the messages that come over it."""
    received: list[dict[str, Any]] = []
    channel = peer.pc.createDataChannel(label)
    channel.on("message", lambda text: received.append(json.loads(text)))
    await until(lambda: channel.readyState == "open", 30, f"channel {label} open")
    return channel, received


async def noise_scale(peer: Peer) -> float:
    return float((await session_parameters(peer.client))["noise_scale"])


async def has_noise_scale(peer: Peer, value: float, within_s: float = 30.0) -> None:
    async def reached() -> bool:
        return await noise_scale(peer) == value

    await until(reached, within_s, f"noise_scale {value} in force")


@pytest.mark.parametrize("label", ["parameters", "control"])
async def test_what_is_wrong_is_told_on_the_channel_that_asked(peer: Peer, label: str) -> None:
    newest, on_newest = await another(peer, label)
    newest.send('{"noise_scale": 0.25}')
    await has_noise_scale(peer, 0.25)

    peer.send({"noise_scale": 9})
    await peer.wait_message("parameter_error")
    newest.send('{"base_seed": -1}')
    await until(lambda: on_newest, 30, "an error on the newest channel")

    assert [message["errors"][0]["loc"] for message in on_newest] == [["base_seed"]]
    assert [message["errors"][0]["loc"] for message in peer.messages] == [["noise_scale"]]


async def test_channels_of_other_names_are_not_heard(peer: Peer) -> None:
    chat, on_chat = await another(peer, "chat")

    chat.send('{"noise_scale": 0.111}')
    chat.send("hello")
    peer.send({"noise_scale": 0.222})
    await has_noise_scale(peer, 0.222)
    await peer.wait_frames(5)

    assert on_chat == []
    assert peer.messages == []
    assert await noise_scale(peer) == 0.222


async def test_a_new_channel_takes_the_place_of_one_that_closed(peer: Peer) -> None:
    old = peer.channel
    assert old is not None
    old.close()
    await until(lambda: old.readyState == "closed", 30, "closed")

    new, on_new = await another(peer, "again")
    new.send('{"noise_scale": 0.333}')
    await has_noise_scale(peer, 0.333)
    await peer.client.call("POST", "/api/v1/session/parameters", json_body={"noise_scale": 0.444})
    await until(lambda: on_new, 30, "a notification on the new channel")

    assert on_new == [{"type": "parameters_updated", "parameters": {"noise_scale": 0.444}}]


async def test_of_many_channels_the_first_ones_are_kept(peer: Peer) -> None:
    channels = [peer.pc.createDataChannel("parameters") for _ in range(40)]
    await until(lambda: all(c.readyState in ("open", "closed") for c in channels), 30, "all are decided on")
    await until(lambda: channels[-1].readyState == "closed", 30, "the last one is closed")

    peer.send({"noise_scale": 0.555})
    await has_noise_scale(peer, 0.555)

    assert sum(channel.readyState == "open" for channel in channels) == 15
    assert await peer.wait_frames(5)


async def test_a_peer_that_opens_channels_without_end_is_sent_away(peer: Peer) -> None:
    for _ in range(300):
        peer.pc.createDataChannel("chat")

    message = await peer.wait_message("stream_stopped", 30)

    assert "data channels" in message["error_message"]


async def test_control_that_sends_too_fast_is_heard_to_its_last_value(peer: Peer) -> None:
    await peer.wait_frames(5)
    for i in range(1500):
        peer.send({"noise_scale": (i % 100) / 100})
        if i == 1000:
            peer.send({"manage_cache": False})
    peer.send({"noise_scale": 0.777})
    await has_noise_scale(peer, 0.777, within_s=20)

    assert await peer.wait_frames(5, 30)  # a lost packet holds up aiortc's receiver for seconds
    assert len(peer.messages) <= 1  # on a slow machine it is not too fast
    assert (await session_parameters(peer.client))["manage_cache"] is False


async def test_a_message_without_an_end_closes_the_channels_only(
    peer: Peer, double_server: DoubleProcess
) -> None:
    send_chunk = peer.pc.sctp._send_chunk

    async def without_end(chunk: Any) -> None:
        if hasattr(chunk, "user_data"):
            chunk.flags &= ~1  # the last fragment of a message
        await send_chunk(chunk)

    peer.pc.sctp._send_chunk = without_end
    for _ in range(60):
        peer.send("x" * 60_000)
    channel = peer.channel
    assert channel is not None
    await until(lambda: channel.readyState == "closed", 30, "the channels are closed")

    assert await peer.wait_frames(5)
    assert await sessions(peer.client)
