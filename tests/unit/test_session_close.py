"""The end of a WebRTC session whose caller goes away in the middle of it."""

import asyncio
from pathlib import Path

import pytest
from aiortc import RTCPeerConnection

from gateway.pipelines import Pipelines
from gateway.webrtc.parameters import ParameterContext, ParameterState
from gateway.webrtc.session import Session
from gateway.webrtc.signalling import CandidateFilter
from streaming.specs import SPECS
from tests.unit.test_pipelines import SlowServing


class Nobody:
    """An observer that is not interested."""

    def chunk_done(self, pipeline: str, seconds: float) -> None: ...

    def chunk_failed(self, pipeline: str) -> None: ...


@pytest.mark.parametrize("steps", range(4))
async def test_session_ends_once_although_its_closer_is_cancelled(steps: int, tmp_path: Path) -> None:
    spec = SPECS["passthrough"]
    state = ParameterState.open(ParameterContext(spec, {"height": 512, "width": 512}, tmp_path), None)
    ended: list[Session] = []
    session = Session(
        RTCPeerConnection(),
        Pipelines(SlowServing(), load_timeout_s=60),
        state,
        Nobody(),
        CandidateFilter([]),
        ended.append,
    )
    session.spawn(asyncio.sleep(60), "work")

    closer = asyncio.create_task(session.close())
    for _ in range(steps):
        await asyncio.sleep(0)
    closer.cancel()
    await asyncio.wait({closer})
    await session.close()

    assert ended == [session]
    assert session.peer.connectionState == "closed"
