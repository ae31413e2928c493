"""Work in threads: what may not wait for what."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from gateway.stream.encoding.encoders import Encoders, Encoding
from gateway.stream.pictures.hub import Hub
from gateway.threads import separate_threads
from gateway.webrtc.aiortc_patches.sender import install_sender
from gateway.webrtc.track import EncodedTrack

BLOCKERS = 64  # more than any executor has threads


@asynccontextmanager
async def sent_video() -> AsyncIterator[RTCPeerConnection]:
    """A viewer that is sent a paused stream by another peer connection."""
    install_sender()
    hub = Hub(lambda: None)
    hub.put(np.zeros((1, 64, 64, 3), np.uint8))
    hub.paused = True
    encoders = Encoders(hub, Encoding(), on_demand=lambda: None)
    sender, viewer = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    try:
        sender.addTrack(EncodedTrack(encoders))
        await sender.setLocalDescription(await sender.createOffer())
        await viewer.setRemoteDescription(sender.localDescription)
        await viewer.setLocalDescription(await viewer.createAnswer())
        await sender.setRemoteDescription(viewer.localDescription)
        yield viewer
    finally:
        await asyncio.gather(sender.close(), viewer.close())
        await encoders.close()


@pytest.mark.parametrize("kind", ["files", "names"])
async def test_pictures_go_on_while_every_other_thread_is_blocked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    separate_threads()
    loop = asyncio.get_running_loop()
    end = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: end.wait(60) and [])

    async with sent_video() as viewer:
        track = viewer.getReceivers()[0].track
        await track.recv()
        if kind == "files":
            blocked = [asyncio.ensure_future(asyncio.to_thread(end.wait, 60)) for _ in range(BLOCKERS)]
        else:
            blocked = [asyncio.ensure_future(loop.getaddrinfo("silent.example", 1)) for _ in range(BLOCKERS)]
        try:
            for _ in range(10):
                await asyncio.wait_for(track.recv(), 30)
            waiting = sum(not task.done() for task in blocked)
        finally:
            end.set()
            await asyncio.gather(*blocked)

    assert waiting == BLOCKERS


async def test_a_silent_name_server_does_not_hold_up_files(monkeypatch: pytest.MonkeyPatch) -> None:
    separate_threads()
    end = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args: end.wait(60) and [])
    loop = asyncio.get_running_loop()
    lookups = [asyncio.ensure_future(loop.getaddrinfo("silent.example", 1)) for _ in range(BLOCKERS)]

    read = await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 30)
    pending = sum(not lookup.done() for lookup in lookups)
    end.set()
    await asyncio.gather(*lookups)

    assert (read, pending) == ("read", BLOCKERS)
