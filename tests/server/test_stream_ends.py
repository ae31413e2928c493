"""What the end of one part means for the others of a stream that nobody's browser has made."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.server.camera import NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, pipeline_status
from tests.server.peer import Peer, until
from tests.server.sdp_peer import SdpPeer, closed
from tests.server.test_viewers import join
from tests.server.whip_calls import metric

ROOT = "/api/v1/streams"


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """The double with LongLive, and no stream left over."""
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    yield double_server
    double_server.reset_faults()
    for stream in (await double_server.client.call("GET", ROOT)).json()["streams"]:
        await double_server.client.call("DELETE", f"{ROOT}/{stream['id']}")


async def call(server: DoubleProcess, method: str, path: str, body: Any = None) -> Any:
    answer = await server.client.call(method, path, json_body={} if body is None else body)
    assert answer.status < 300, f"{method} {path}: {answer.status} {answer.text}"
    return answer.json() if answer.body else None


async def phase(server: DoubleProcess, stream_id: str) -> str:
    return str((await server.client.call("GET", f"{ROOT}/{stream_id}")).json().get("state", "gone"))


async def test_a_kept_stream_that_fails_for_good_ends_for_all_after_its_take_is_complete(
    server: DoubleProcess,
) -> None:
    await call(server, "POST", ROOT, {"name": "doomed", "parameters": {"prompts": "a"}})
    evicted = 'wanstream_viewers_closed_total{reason="evicted"}'
    async with (
        Peer(server.client) as driver,
        Peer(server.client, direction="recvonly") as viewer,
        SdpPeer.player(server.client, "/whep/doomed?wait=1") as player,
    ):
        await join(driver, "doomed", "controller")
        await join(viewer, "doomed")
        await player.begin()
        take = (await call(server, "POST", f"{ROOT}/doomed/recordings"))["take"]
        await player.wait_frames(5)

        server.set_faults(chunk_errors=1000, chunk_error="nothing works", fatal=True)
        told = [await peer.wait_message("stream_stopped", 30) for peer in (driver, viewer)]
        await closed(player.pc)
        await closed(viewer.pc)

    ended = (await server.client.call("GET", f"/api/v1/takes/{take}")).json()
    log = server.log
    players_end = log.index("Connection closed", log.index("[whep doomed"))
    assert [message["error_message"] for message in told] == ["nothing works"] * 2
    assert (ended["state"], ended["error"]) == ("done", None)
    assert ended["frames"] > 0
    assert log.index(f"The take {take} is complete") < players_end
    assert await phase(server, "doomed") == "gone"
    assert await metric(server.client, evicted) >= 2
    await call(server, "DELETE", f"/api/v1/takes/{take}")


async def test_a_failed_load_ends_what_a_browser_has_made(server: DoubleProcess) -> None:
    async with Peer(server.client) as browser:
        await browser.connect({"prompts": "a"})
        await browser.wait_frames(3)

        await fail_to_load(server)
        stopped = await browser.wait_message("stream_stopped", 30)

    assert "no room for it" in stopped["error_message"]


async def test_a_publisher_s_stream_waits_when_a_load_fails(server: DoubleProcess) -> None:
    async with (
        SdpPeer.publisher(server.client, NumberedCamera(), "/whip/obs") as publisher,
        Peer(server.client, direction="recvonly") as viewer,
    ):
        await publisher.begin()
        await join(viewer, "obs")
        await viewer.wait_frames(3)

        await fail_to_load(server)
        state = await phase(server, "obs")
        await load(server.client, "longlive", {"height": 64, "width": 128})
        await until(lambda: viewer.frames[-1].height == 64, 30, "pictures of the new load")

        assert state == "waiting"
        assert publisher.pc.connectionState == "connected"
        assert not any(message["type"] == "stream_stopped" for message in viewer.messages)


async def test_a_kept_stream_waits_with_its_viewers_when_a_load_fails_and_goes_on_with_the_next(
    server: DoubleProcess,
) -> None:
    await call(server, "POST", ROOT, {"name": "kept", "parameters": {"prompts": "a"}})
    async with (
        Peer(server.client, direction="recvonly") as viewer,
        SdpPeer.player(server.client, "/whep/kept?wait=1") as player,
    ):
        await join(viewer, "kept")
        await player.begin()
        for peer in (viewer, player):
            await peer.wait_frames(3)

        await fail_to_load(server)
        failed = await phase(server, "kept")
        picture = await server.client.call("GET", f"{ROOT}/kept/frame")
        await load(server.client, "longlive", {"height": 64, "width": 128})
        for peer in (viewer, player):
            await until(lambda peer=peer: peer.frames[-1].height == 64, 30, "pictures of the new load")
        pts = [frame.pts for frame in viewer.frames]

        assert (failed, await phase(server, "kept")) == ("waiting", "running")
        assert (picture.status, picture.headers["content-type"]) == (200, "image/jpeg")
        assert pts == sorted(set(pts))
        assert not any(message["type"] == "stream_stopped" for message in viewer.messages)


async def fail_to_load(server: DoubleProcess) -> None:
    server.set_faults(load_error="no room for it")
    body = {"pipeline_id": "memflow", "load_params": {"height": 64, "width": 128}}
    await server.client.call("POST", "/api/v1/pipeline/load", json_body=body)

    async def failed() -> bool:
        return (await pipeline_status(server.client))["status"] == "error"

    await until(failed, 30, "the load to fail")
    server.reset_faults()
