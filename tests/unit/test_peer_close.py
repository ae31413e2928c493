"""The end of a peer and its stream whose caller goes away in the middle of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from gateway.pipelines.load_params import LoadRequest
from gateway.pipelines.state import Pipelines
from gateway.stream.encoding.codecs import VideoEncoder
from gateway.stream.parameters.state import ParameterContext, ParameterState
from gateway.stream.stream import Stream
from gateway.webrtc.aiortc_patches.sender import install_sender
from gateway.webrtc.candidates import CandidateFilter
from gateway.webrtc.peer import Peer
from streaming.specs import SPECS
from tests.unit.test_pipelines import SlowServing


class Nobody:
    """An observer that is not interested."""

    def chunk_done(self, pipeline: str, seconds: float) -> None: ...

    def chunk_failed(self, pipeline: str) -> None: ...

    def input_shown(self, seconds: float) -> None: ...

    def change_shown(self, pipeline: str, seconds: float) -> None: ...


@pytest.mark.parametrize("steps", range(4))
async def test_a_peer_ends_once_although_its_closer_is_cancelled(steps: int, tmp_path: Path) -> None:
    spec = SPECS["passthrough"]
    state = ParameterState.open(ParameterContext(spec, {"height": 512, "width": 512}, tmp_path), None)
    ended: list[Peer] = []
    stream = Stream("stream", Pipelines(SlowServing(), load_timeout_s=60), state, Nobody())
    peer = Peer("stream", RTCPeerConnection(), stream, CandidateFilter([]), ended.append)
    peer.spawn(asyncio.sleep(60), "work")

    closer = asyncio.create_task(peer.close())
    for _ in range(steps):
        await asyncio.sleep(0)
    closer.cancel()
    await asyncio.wait({closer})
    await peer.close()

    assert ended == [peer]
    assert peer.connection.connectionState == "closed"


async def stopped_stream(peer: Peer, viewer: RTCPeerConnection) -> dict[str, Any]:
    """Connect a viewer to a peer; the message with which the stream ends."""
    stopped: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    channel = viewer.createDataChannel("parameters")
    channel.on("message", lambda text: stopped.done() or stopped.set_result(json.loads(text)))
    viewer.addTransceiver("video", direction="recvonly")
    await viewer.setLocalDescription(await viewer.createOffer())
    await peer.connection.setRemoteDescription(viewer.localDescription)
    peer.connection.addTrack(peer.track)
    await peer.connection.setLocalDescription(await peer.connection.createAnswer())
    await viewer.setRemoteDescription(peer.connection.localDescription)
    return await asyncio.wait_for(stopped, 30)


@pytest.mark.parametrize("what", ["encoder", "decoder"])
async def test_a_codec_that_fails_ends_the_stream_and_the_peer_is_told(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of order")

    install_sender()
    monkeypatch.setattr(VideoEncoder, "encode", fail)
    pipelines = Pipelines(SlowServing(), load_timeout_s=60)
    spec = SPECS["passthrough"]
    pipelines.request_load(LoadRequest(spec, {}, [], chosen=frozenset()))  # never done: the worker waits
    state = ParameterState.open(ParameterContext(spec, {"height": 512, "width": 512}, tmp_path), None)
    ended = asyncio.Event()
    without_stun = RTCConfiguration(iceServers=[])
    stream = Stream("stream", pipelines, state, Nobody())
    peer = Peer(
        "stream",
        RTCPeerConnection(without_stun),
        stream,
        CandidateFilter([]),
        on_end=lambda peer: ended.set(),
    )
    viewer = RTCPeerConnection(without_stun)
    if what == "encoder":
        stream.output.put(np.zeros((2, 64, 64, 3), np.uint8))
    else:
        failure = "The camera's video could not be decoded"
        viewer.on(
            "connectionstatechange",
            lambda: viewer.connectionState == "connected" and peer._on_camera_ended(failure),
        )

    message = await stopped_stream(peer, viewer)
    await asyncio.wait_for(ended.wait(), 30)
    await viewer.close()
    await pipelines.close()

    assert message["type"] == "stream_stopped"
    assert what.removesuffix("r") in message["error_message"]
