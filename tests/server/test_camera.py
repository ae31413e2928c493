"""Cameras that a server cannot use as they are: too large, too small. Real Triton, real peers."""

import numpy as np
import pytest
from av import VideoFrame

from tests.server.camera import GreyCamera, NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

VIDEO = {"input_mode": "video"}


class NarrowCamera(NumberedCamera):
    """Pictures that are one pixel wide."""

    async def recv(self) -> VideoFrame:
        whole = await super().recv()
        frame = VideoFrame.from_ndarray(np.full((64, 1, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = whole.pts, whole.time_base
        return frame


async def test_a_camera_that_is_too_large_is_named_once_and_may_become_smaller(server: ServerProcess) -> None:
    await load(server.client, "passthrough")

    async with Peer(server.client, source=GreyCamera(4096, 2304)) as peer:
        await peer.connect(VIDEO)
        refusal = await peer.wait_message("parameter_error", within_s=60)
        refused_pictures = len(peer.frames)
        peer.pc.getSenders()[0].replaceTrack(NumberedCamera())
        frames = await peer.wait_frames(5, within_s=60)

    assert [error["type"] for error in refusal["errors"]] == ["picture_too_large"]
    assert "4096x2304" in refusal["errors"][0]["msg"]
    assert refused_pictures == 0
    assert [message["type"] for message in peer.messages].count("parameter_error") == 1
    assert (frames[-1].width, frames[-1].height) == (256, 192)


async def test_a_picture_that_cannot_be_encoded_ends_the_stream_with_a_sentence(
    server: ServerProcess,
) -> None:
    await load(server.client, "passthrough")

    async with Peer(server.client, source=NarrowCamera()) as peer:
        await peer.connect(VIDEO)
        stopped = await peer.wait_message("stream_stopped", within_s=30)

        assert "1x64 pixels" in stopped["error_message"]

        async def gone() -> bool:
            return peer.session_id not in await sessions(server.client)

        await until(gone, 30, "the slot is free")


@pytest.mark.parametrize("begin", ["text", "video"])
async def test_nothing_of_the_camera_is_kept_while_it_is_not_wanted(
    begin: str, double_server: DoubleProcess
) -> None:
    await load(double_server.client, "longlive")

    async with Peer(double_server.client, source=NumberedCamera(640, 480)) as peer:
        await peer.connect({"input_mode": begin, "prompts": "x"})
        await peer.wait_frames(15)
        peer.send({"input_mode": "text"})

        async def arriving_without_being_kept() -> bool:
            numbers = (await sessions(double_server.client))[str(peer.session_id)]
            return bool(numbers["frames_in"] > 30 and numbers["buffered_input_frames"] == 0)

        await until(arriving_without_being_kept, 30, "an empty ring in text mode")
        peer.send({"input_mode": "video"})

        async def kept() -> bool:
            numbers = (await sessions(double_server.client))[str(peer.session_id)]
            return bool(numbers["buffered_input_frames"] > 0)

        await until(kept, 30, "pictures in video mode")
        await peer.wait_frames(15)
