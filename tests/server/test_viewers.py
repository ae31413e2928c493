"""Several browsers on one stream: who drives it, and what becomes of the others when one leaves."""

import asyncio
import collections
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.server.client import Answer
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, session_parameters, sessions
from tests.server.peer import Peer, until

PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    yield double_server
    for session_id in await sessions(double_server.client):
        await double_server.client.call("DELETE", f"/api/v1/webrtc/offer/{session_id}")


async def join(peer: Peer, stream_id: str | None, role: str = "viewer", **more: Any) -> Answer:
    """Offer to join a stream; on success wait for the connection."""
    body = {"sdp": await peer.offer_sdp(), "type": "offer", "streamId": stream_id, "role": role} | more
    answer = await peer.client.call("POST", "/api/v1/webrtc/offer", json_body=body)
    if answer.status == 200:
        await peer.accept(answer.json())
        await peer.connected()
    return answer


async def test_a_second_browser_sees_the_same_pictures_and_does_not_end_the_stream(
    server: DoubleProcess,
) -> None:
    async with Peer(server.client) as owner, Peer(server.client, direction="recvonly") as viewer:
        await owner.connect(PROMPTS)
        await owner.wait_frames(5)
        opened = len(server.sessions())

        answer = (await join(viewer, owner.session_id)).json()
        seen = await viewer.wait_frames(10)
        state = await viewer.wait_message("stream_state")
        shown = {frame.number for frame in owner.frames}
        told = await owner.wait_message("viewers_changed")
        await viewer.close()
        gone = await owner.wait_message("viewers_changed", 30, since=owner.messages.index(told) + 1)

        assert (answer["streamId"], answer["role"]) == (owner.session_id, "viewer")
        assert answer["sessionId"] != owner.session_id
        assert len(server.sessions()) == opened, "one stream, one sequence of chunks"
        assert len({frame.number for frame in seen} & shown) >= 5
        assert (state["driver"], state["role"], state["state"]) == (owner.session_id, "viewer", "running")
        assert state["parameters"]["prompts"] == PROMPTS["prompts"]
        assert (told["viewers"], gone["viewers"]) == (1, 0)
        assert await owner.wait_frames(5)


async def test_a_viewer_changes_nothing_and_a_controller_drives_when_it_has_the_seat(
    server: DoubleProcess,
) -> None:
    async with Peer(server.client) as owner, Peer(server.client) as viewer, Peer(server.client) as other:
        await owner.connect(PROMPTS)
        await owner.wait_frames(1)
        await join(viewer, owner.session_id)
        await join(other, owner.session_id, "controller", label="second desk")

        viewer.send({"base_seed": 1})
        refused = [(await viewer.wait_message("parameter_error"))["errors"][0]["type"]]
        other.send({"base_seed": 2})
        refused.append((await other.wait_message("parameter_error"))["errors"][0]["type"])
        other.send({"take_control": True})
        request = await owner.wait_message("control_requested")
        owner.send({"hand_over": request["sessionId"]})
        changed = await viewer.wait_message("driver_changed")
        other.send({"base_seed": 3})
        news = [await peer.wait_message("parameters_updated") for peer in (owner, viewer)]

        assert refused == ["not_driver"] * 2
        assert request == {"type": "control_requested", "sessionId": other.session_id, "label": "second desk"}
        assert changed["driver"] == other.session_id
        assert [message["parameters"] for message in news] == [{"base_seed": 3}] * 2
        assert (await session_parameters(server.client))["base_seed"] == 3
        assert not any(message["type"] == "parameters_updated" for message in other.messages)


async def test_when_the_owner_leaves_viewers_are_told_and_a_controller_keeps_the_stream(
    server: DoubleProcess,
) -> None:
    async with Peer(server.client) as viewer, Peer(server.client) as heir:
        async with Peer(server.client) as owner:
            await owner.connect(PROMPTS)
            await owner.wait_frames(1)
            await join(viewer, owner.session_id)
            await join(heir, owner.session_id, "controller")
        stream_id = str(owner.session_id)
        changed = await viewer.wait_message("driver_changed", 30)
        heir.send({"take_control": True})
        await heir.wait_message("driver_changed", since=len(heir.messages) - 1)
        goes_on = await viewer.wait_frames(5)

        await heir.delete()
        stopped = await viewer.wait_message("stream_stopped", 30)
        await until(lambda: viewer.pc.connectionState == "closed", 30, "the viewer is closed")

        assert changed["driver"] is None
        assert goes_on
        assert "error_message" not in stopped
        assert stream_id not in await sessions(server.client)
        assert server.sessions()[-1]["closed"]


async def test_offers_that_cannot_join_are_refused(server: DoubleProcess) -> None:
    async with Peer(server.client) as owner, Peer(server.client) as viewer:
        await owner.connect(PROMPTS)

        unknown = await join(viewer, "no-such-stream")
        with_parameters = await join(viewer, owner.session_id, initialParameters=PROMPTS)
        wrong_role = await join(viewer, owner.session_id, "driver")

        assert (unknown.status, unknown.json()["detail"]) == (404, "Stream no-such-stream not found")
        assert with_parameters.status == 400
        assert wrong_role.status == 422
        assert list(await sessions(server.client)) == [owner.session_id]


async def test_a_controller_s_parameters_are_merged_like_a_message(server: DoubleProcess) -> None:
    async with Peer(server.client) as owner, Peer(server.client) as other:
        await owner.connect(PROMPTS)
        owner.send({"take_control": False})
        await owner.wait_message("driver_changed")

        await join(other, owner.session_id, "controller", initialParameters={"base_seed": 5})

        assert (await session_parameters(server.client))["base_seed"] == 5
        assert (await session_parameters(server.client))["prompts"] == PROMPTS["prompts"]


async def test_viewers_who_leave_while_they_connect_leave_nothing_behind(server: DoubleProcess) -> None:
    """A connection that is closed in the middle of its making must not go on with it."""
    async with Peer(server.client) as owner:
        await owner.connect(PROMPTS)
        before = collections.Counter(server.tasks())
        for number in range(12):
            async with Peer(server.client, direction="recvonly") as viewer:
                body = {"sdp": await viewer.offer_sdp(), "type": "offer", "streamId": owner.session_id}
                answer = await server.client.call("POST", "/api/v1/webrtc/offer", json_body=body)
                await viewer.accept(answer.json())
                await asyncio.sleep(0.02 * (number % 5))
                await viewer.delete()
        await owner.wait_frames(5)

        def nothing_is_left() -> bool:
            new = collections.Counter(server.tasks()) - before
            return not {name for name in new if "query_consent" in name or "rtcp" in name}

        await until(nothing_is_left, 30, "the viewers' connections to end")


async def test_a_stream_waits_for_whoever_said_so_and_is_gone_on_with(server: DoubleProcess) -> None:
    async with Peer(server.client) as viewer, Peer(server.client) as again:
        async with Peer(server.client) as owner:
            body = {"sdp": await owner.offer_sdp(), "type": "offer", "initialParameters": PROMPTS}
            refused = await server.client.call(
                "POST", "/api/v1/webrtc/offer", json_body={**body, "grace_s": 3600}
            )
            answer = await server.client.call(
                "POST", "/api/v1/webrtc/offer", json_body={**body, "grace_s": 60}
            )
            await owner.accept(answer.json())
            await owner.connected()
            stream_id = answer.json()["streamId"]
            await join(viewer, stream_id)
            await viewer.wait_frames(1)
            opened = len(server.sessions())
        changed = await viewer.wait_message("driver_changed", 30)  # it has left
        joined = (await join(again, stream_id, "controller")).json()
        again.send({"prompts": [{"text": "again", "weight": 1}]})
        await until(lambda: server.prompts() == ["again"], 30, "what the page has set")
        told = [message["type"] for message in viewer.messages]
        path = f"/api/v1/webrtc/offer/{joined['sessionId']}"
        bad = await server.client.call("DELETE", f"{path}?grace_s=61")
        await server.client.call("DELETE", path)  # in place of what the offer has said
        stopped = await viewer.wait_message("stream_stopped", 30)

        assert (refused.status, bad.status) == (422, 422)
        assert changed["driver"] is None
        assert joined["role"] == "driver"
        assert "stream_stopped" not in told
        assert len(server.sessions()) == opened, "the same caches, without a gap"
        assert stopped["type"] == "stream_stopped"
