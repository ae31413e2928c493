"""The documented clients' flows with `passthrough`, through a real Triton (api.md 14.1)."""

from typing import Any

import pytest

from tests.server.camera import NumberedCamera
from tests.server.gateway_calls import pipeline_status, sessions, wait_status
from tests.server.peer import Peer, numbers_of, until
from tests.server.processes import ServerProcess

LOAD = "/api/v1/pipeline/load"
VIDEO = {"input_mode": "video", "noise_scale": 0.7, "noise_controller": True}


@pytest.mark.parametrize(
    "load",
    [
        {"pipeline_ids": ["passthrough"]},
        {"pipeline_id": "passthrough", "load_params": {}},
        {"pipeline_id": "passthrough", "load_params": {"height": 512, "width": 512}},
        {"pipelines": [{"node_id": "n", "pipeline_id": "passthrough", "load_params": None}]},
    ],
    ids=["first quick start", "second quick start", "classic page", "modern page"],
)
async def test_camera_comes_back(load: dict[str, Any], server: ServerProcess) -> None:
    await server.client.call("POST", LOAD, json_body=load)
    at_once = (await pipeline_status(server.client))["status"]
    await wait_status(server.client, "loaded")

    async with Peer(server.client, source=NumberedCamera()) as peer:
        await peer.offer(VIDEO, candidates=False)
        patched = await peer.trickle()
        await peer.connected()
        frames = await peer.wait_frames(10)

    assert at_once in ("loading", "loaded")
    assert patched.status == 204
    assert numbers_of(frames[3:])


async def test_an_equal_load_leaves_the_stream_alone_and_another_one_is_survived(
    server: ServerProcess,
) -> None:
    load = {"pipeline_id": "passthrough", "load_params": {"height": 512, "width": 512}}
    await server.client.call("POST", LOAD, json_body=load)
    await wait_status(server.client, "loaded")

    async with Peer(server.client, source=NumberedCamera()) as peer:
        await peer.connect(VIDEO)
        await peer.wait_frames(5)
        equal = await server.client.call("POST", LOAD, json_body={"pipeline_id": "passthrough"})
        await peer.wait_frames(5)
        larger = {"pipeline_id": "passthrough", "load_params": {"height": 480, "width": 640}}
        other = await server.client.call("POST", LOAD, json_body=larger)
        await wait_status(server.client, "loaded")
        after = await peer.wait_frames(5)

    assert equal.json()["status"] == "loaded"
    assert other.json()["status"] == "loading"
    assert {(frame.width, frame.height) for frame in after} == {(256, 192)}
    assert peer.messages == []


async def test_a_client_that_sends_no_picture_is_told_after_a_while(server: ServerProcess) -> None:
    await server.client.call("POST", LOAD, json_body={"pipeline_ids": ["passthrough"]})
    await wait_status(server.client, "loaded")

    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "A panda"}]})
        message = await peer.wait_message("parameter_error", within_s=30)
        await peer.delete()
        await until(lambda: peer.pc.connectionState == "closed", 30, "closed by the server")

    assert message["errors"][0]["type"] == "no_input"
    assert "add a video track" in message["errors"][0]["msg"]
    assert peer.session_id not in await sessions(server.client)
