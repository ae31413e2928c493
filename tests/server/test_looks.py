"""Looks over REST and OSC, kept across a restart, recalled by a stream that runs, alone and in a cue list."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pythonosc.udp_client import SimpleUDPClient

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until
from tests.server.test_cues import call

LOOKS = "/api/v1/looks"
BOOK: dict[str, Any] = {
    "version": 1,
    "looks": [
        {"name": "lake", "set": {"prompts": "a lake", "noise_scale": 0.2}},
        {"name": "storm", "title": "The storm", "set": {"prompts": "a storm"}, "transition_s": 1.0},
    ],
}
MAPPING = {"type": "trigger", "source": {"midi_note": 36}, "target": {"look": "lake"}}


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    await call(double_server, "PUT", LOOKS, 200, BOOK)
    yield double_server
    await call(double_server, "PUT", LOOKS, 200, {"version": 1})
    await double_server.client.call("DELETE", "/api/v1/cues/evening")


async def test_looks_are_kept_moved_and_recalled_by_name_number_and_osc(server: DoubleProcess) -> None:
    await call(server, "PUT", f"{LOOKS}/end", 200, {"set": {"prompts": "the end"}})
    moved = await call(server, "POST", f"{LOOKS}/end/move", 200, {"to": 0})
    await call(server, "PUT", "/api/v1/midi", 200, {"midi": [MAPPING]})
    kept = await call(server, "GET", LOOKS, 200)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "before"})
        await peer.wait_frames(2)
        recall = f"/api/v1/streams/{peer.session_id}/looks"

        answer = await call(server, "POST", f"{recall}/storm", 202, {"transition_s": 0})
        await until(lambda: server.prompts() == ["a storm"], 30, "the look by its name")
        await call(server, "POST", f"{recall}/1", 202)
        await until(lambda: server.prompts() == ["the end"], 30, "the look by its number")
        SimpleUDPClient("127.0.0.1", server.port).send_message("/scope/look/lake", 1.0)
        await until(lambda: server.prompts() == ["a lake"], 30, "the look by OSC")
        refused = await call(server, "POST", f"{recall}/nothing", 404)

        async def measured() -> bool:
            metrics = (await call(server, "GET", "/api/v1/session/metrics", 200))["sessions"]
            delay = metrics[peer.session_id]["change_to_picture_ms"]
            return bool(delay and delay["count"] >= 3 and delay["median"] > 0 and delay["spread"] >= 0)

        await until(measured, 30, "the delay from change to picture")
        scrape = (await server.client.call("GET", "/metrics")).text

    assert [look["name"] for look in moved["looks"]] == ["end", "lake", "storm"]
    assert kept["midi"][0]["target"]["look"] == "lake"
    assert answer == {"status": "recalled", "errors": []}
    assert "no look 'nothing'" in refused["detail"]
    assert 'wanstream_change_to_picture_seconds_count{pipeline="longlive"}' in scrape
    await call(server, "DELETE", f"{LOOKS}/end", 204)


async def test_a_transition_is_seen_in_the_chunks_between(server: DoubleProcess) -> None:
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "before"})
        await peer.wait_frames(2)

        await call(server, "POST", f"/api/v1/streams/{peer.session_id}/looks/storm", 202)
        await until(lambda: server.prompts() == ["a storm"], 30, "the end of the transition")

    points = [chunk["blend_t"] for chunk in server.chunks() if chunk["blend_t"] is not None]
    between = [point for point in points if 0 < point < 1]
    assert between == sorted(between)
    assert len(between) >= 1


async def test_a_show_plays_looks_while_nobody_has_its_page_open(server: DoubleProcess) -> None:
    lines = [{"look": "lake"}, {"at": 0.3, "look": "storm", "transition_s": 0}]
    show = {"clock": "time", "loop": True, "length": 0.6, "lines": lines}
    await call(server, "PUT", "/api/v1/cues/evening", 200, show)
    wrong = await call(server, "PUT", "/api/v1/cues/evening", 422, {**show, "length": 0.1})
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "before"})
        await peer.wait_frames(2)
        cues = f"/api/v1/streams/{peer.session_id}/cues"
        await call(server, "POST", f"{cues}/evening", 202)
        await peer.wait_message("cues_changed", 30)
        stream_id = peer.session_id
    cues = f"/api/v1/streams/{stream_id}/cues"  # its peer has gone

    async def second_round() -> bool:
        return bool((await call(server, "GET", cues, 200)).get("round", 0) >= 1)

    await until(second_round, 30, "the second round")
    await call(server, "DELETE", cues, 204)

    assert wrong["detail"][0]["msg"].startswith("Line 1: The list is longer")
    streams = await call(server, "GET", "/api/v1/streams", 200)
    assert stream_id not in [s["id"] for s in streams["streams"] if s["state"] != "ended"]


async def test_looks_survive_a_restart(tmp_path: Path) -> None:
    for round_ in range(2):
        server = await asyncio.to_thread(DoubleProcess, tmp_path / "home")
        try:
            if round_ == 0:
                await call(server, "PUT", LOOKS, 200, BOOK)
            names = [look["name"] for look in (await call(server, "GET", LOOKS, 200))["looks"]]
        finally:
            await asyncio.to_thread(server.stop)
    assert names == ["lake", "storm"]
