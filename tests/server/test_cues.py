"""Cue lists over REST and OSC, played to a stream that runs."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pythonosc.udp_client import SimpleUDPClient

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, session_parameters
from tests.server.peer import Peer, until

CUES = "/api/v1/cues"
SHOW = {
    "lines": [
        {"label": "sun", "set": {"prompts": "a field"}},
        {"label": "rain", "chunk": 3, "set": {"prompts": [{"text": "a storm", "weight": 2.0}]}},
    ]
}


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128})
    yield double_server
    await double_server.client.call("POST", "/api/v1/tempo/disable")
    for name in (await double_server.client.call("GET", CUES)).json()["cues"]:
        await double_server.client.call("DELETE", f"{CUES}/{name}")


async def call(server: DoubleProcess, method: str, path: str, status: int, body: Any = None) -> Any:
    options = {} if body is None else {"json_body": body}
    answer = await server.client.call(method, path, **options)
    assert answer.status == status, f"{method} {path}: {answer.status} {answer.text}"
    return answer.json() if answer.body else None


async def test_a_list_is_kept_in_the_home_listed_and_removed(server: DoubleProcess) -> None:
    missing = await call(server, "GET", f"{CUES}/show", 404)
    put = await call(server, "PUT", f"{CUES}/show", 200, SHOW)
    wrong = await call(server, "PUT", f"{CUES}/show", 422, {"lines": [{"set": {"noise_scale": 9}}]})
    unnamed = await call(server, "PUT", f"{CUES}/Show", 404, SHOW)
    listed, got = await call(server, "GET", CUES, 200), await call(server, "GET", f"{CUES}/show", 200)
    kept = json.loads((server.home / "cues" / "show.json").read_text())
    await call(server, "DELETE", f"{CUES}/show", 204)
    await call(server, "DELETE", f"{CUES}/show", 404)

    assert "PUT /api/v1/cues/show makes one" in missing["detail"]
    assert wrong["detail"][0]["loc"] == ["body", "lines", 0, "set", "noise_scale"]
    assert "a-z" in unnamed["detail"]
    assert listed == {"cues": ["show"]}
    assert kept == SHOW
    assert put == got == SHOW


async def test_a_cue_is_played_chunk_by_chunk_over_rest_and_by_osc(server: DoubleProcess) -> None:
    await call(server, "PUT", f"{CUES}/show", 200, SHOW)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "before"})
        await peer.wait_frames(2)
        play = f"/api/v1/streams/{peer.session_id}/cues/show"

        played = await call(server, "POST", play, 202)
        await until(lambda: server.prompts() == ["a storm"], 30, "the second line")
        texts = [chunk["active_prompts"][0]["text"] for chunk in server.chunks()]
        await call(server, "POST", play, 202, {"label": "sun"})
        await until(lambda: server.prompts() == ["a field"], 30, "the first line alone")
        refused = [
            await call(server, "POST", play, 404, {"label": "snow"}),
            await call(server, "POST", f"{play}x", 404),
            await call(server, "POST", "/api/v1/streams/nobody/cues/show", 404),
            await call(server, "POST", play, 422, {"label": 3}),
        ]
        SimpleUDPClient("127.0.0.1", server.port).send_message("/scope/cue/show", [])
        await until(lambda: server.prompts() == ["a storm"], 30, "the cue by OSC")

    assert played == {"status": "playing", "errors": []}
    assert texts.index("a storm") - texts.index("a field") in (2, 3)
    assert all("detail" in answer for answer in refused)


async def test_with_a_tempo_a_cue_begins_on_the_beat(server: DoubleProcess) -> None:
    await call(server, "PUT", f"{CUES}/show", 200, {"lines": [{"set": {"noise_scale": 0.25}}]})
    await call(server, "POST", "/api/v1/tempo/enable", 200, {"bpm": 60, "beats_per_bar": 2})
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "before", "quantize_mode": "2_bars"})
        await peer.wait_frames(1)

        await call(server, "POST", f"/api/v1/streams/{peer.session_id}/cues/show", 202)
        scheduled = await peer.wait_message("change_scheduled", 30)
        await peer.wait_message("change_applied", 30)
        now = (await session_parameters(server.client))["noise_scale"]

    assert 0 <= scheduled["delay_ms"] <= 4000
    assert now == 0.25


async def test_cues_of_many_clients_at_once_leave_one_replay(server: DoubleProcess) -> None:
    await call(server, "PUT", f"{CUES}/show", 200, SHOW)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "before"})
        await peer.wait_frames(1)
        play = f"/api/v1/streams/{peer.session_id}/cues/show"

        await asyncio.gather(*(call(server, "POST", play, 202) for _ in range(8)))
        await until(lambda: server.prompts() == ["a storm"], 30, "the second line")
        await until(
            lambda: [m["state"] for m in peer.messages if m["type"] == "replay_changed"][-1:] == ["stopped"],
            30,
            "the end",
        )

        states = [m["state"] for m in peer.messages if m["type"] == "replay_changed"]
        assert states == ["running", "stopped"] * 8
