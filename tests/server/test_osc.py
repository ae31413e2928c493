"""OSC from a second implementation to a real server, beside a running stream."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio
from pythonosc.udp_client import SimpleUDPClient

from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, session_parameters
from tests.server.peer import Peer, until
from tests.unit.test_osc_wire import bundle, message, mutated, seeds

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def peer(double_server: DoubleProcess) -> AsyncIterator[Peer]:
    """Watches a stream that has VACE."""
    double_server.reset_faults()
    await load(double_server.client, "longlive", {"height": 96, "width": 128, "vace_enabled": True})
    async with Peer(double_server.client) as peer:
        await peer.connect({"prompts": [{"text": "first", "weight": 1.0}]})
        await peer.wait_frames(2)
        yield peer


@pytest.fixture
def osc(double_server: DoubleProcess) -> SimpleUDPClient:
    return SimpleUDPClient("127.0.0.1", double_server.port)


async def status(server: DoubleProcess) -> dict[str, Any]:
    return dict((await server.client.call("GET", "/api/v1/osc/status")).json())


@pytest.mark.parametrize(
    ("key", "value", "parameter", "expected"),
    [
        ("prompt", "a red boat", "prompts", [{"text": "a red boat", "weight": 1.0}]),
        (
            "prompt/1/text",
            "rain",
            "prompts",
            [{"text": "a red boat", "weight": 1.0}, {"text": "rain", "weight": 1.0}],
        ),
        (
            "prompts",
            ["sun", 1.0, "fog", 0.5],
            "prompts",
            [{"text": "sun", "weight": 1}, {"text": "fog", "weight": 0.5}],
        ),
        ("interpolation_method", "slerp", "prompt_interpolation_method", "slerp"),
        ("input_mode", "text", "input_mode", "text"),
        ("denoising_step_list", [900, 400], "denoising_step_list", [900, 400]),
        ("noise_scale", 0.2, "noise_scale", 0.2),
        ("noise_controller", 0, "noise_controller", False),
        ("manage_cache", False, "manage_cache", False),
        ("vace_context_scale", 1.25, "vace_context_scale", 1.25),
        ("kv_cache_attention_bias", 0.5, "kv_cache_attention_bias", 0.5),
        ("base_seed", 11.0, "base_seed", 11),
        ("paused", 1.0, "paused", True),
        ("paused", 0.0, "paused", False),
    ],
)
async def test_each_key_drives_the_stream(
    key: str,
    value: Any,
    parameter: str,
    expected: Any,
    peer: Peer,
    osc: SimpleUDPClient,
    double_server: DoubleProcess,
) -> None:
    osc.send_message(f"/wanstream/{peer.session_id}/{key}", value)

    async def has_it() -> bool:
        return (await session_parameters(double_server.client))[parameter] == expected

    await until(has_it, 30, f"{parameter} {expected}")
    await until(
        lambda: any(m.get("parameters", {}).get(parameter) == expected for m in peer.messages),
        10,
        "the peer's message about it",
    )


async def test_a_prompt_moves_and_the_cache_is_reset(
    peer: Peer, osc: SimpleUDPClient, double_server: DoubleProcess
) -> None:
    osc.send_message("/scope/transition_steps", 3)
    osc.send_message("/scope/prompt", "a quiet lake")
    await until(lambda: double_server.prompts() == ["a quiet lake"], 30, "the end of the transition")
    blended = [c["blend_t"] for c in double_server.chunks() if c["blend_t"] is not None][-3:]
    resets = sum(chunk["init_cache"] for chunk in double_server.chunks())

    osc.send_message("/scope/reset_cache", [])

    assert blended == [0.0, 0.5, 1.0]
    await until(
        lambda: sum(c["init_cache"] for c in double_server.chunks()) == resets + 1,
        10,
        "a chunk with fresh caches",
    )


async def test_hostile_datagrams_change_nothing_and_are_not_logged(
    peer: Peer, osc: SimpleUDPClient, double_server: DoubleProcess
) -> None:
    dice, kinds = random.Random(7), [seed for seed in seeds() if b"/scope/prompt" not in seed]
    before, log = await status(double_server), len(double_server.log)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for i in range(1000):
            sender.sendto(mutated(dice.choice(kinds), dice), ("127.0.0.1", double_server.port))
            if i % 50 == 0:
                await asyncio.sleep(0.01)  # a full socket buffer would keep them from the server
    sent = dice.randrange(1000)
    osc.send_message("/scope/base_seed", sent)

    async def has_it() -> bool:
        return bool((await session_parameters(double_server.client))["base_seed"] == sent)

    await until(has_it, 30, "a good message after them")
    after = await status(double_server)
    shown = len(peer.frames)
    await peer.wait_frames(shown + 2)
    refused = {
        key: after["counts"].get(key, 0) - before["counts"].get(key, 0) for key in ("parse", "address")
    }
    assert refused["parse"] > 100
    assert refused["address"] > 10
    assert len(after["recent"]) == 50
    added = double_server.log[log:]
    assert "Traceback" not in added
    assert added.count("\n") < 20


async def test_a_bundle_is_heard_whole_and_listeners_hear_it_message_by_message(
    peer: Peer, double_server: DoubleProcess
) -> None:
    heard: list[dict[str, Any]] = []
    async with (
        httpx.AsyncClient(base_url=double_server.url) as client,
        client.stream("GET", "/api/v1/osc/stream") as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == ": listening"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            parts = message("/scope/noise_scale", 0.75), message("/scope/reset_cache")
            sender.sendto(bundle(*parts), ("127.0.0.1", double_server.port))
        async for line in lines:
            if line.startswith("data: "):
                heard.append(json.loads(line.removeprefix("data: ")))
            if len(heard) == 2:
                break

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert heard == [
        {"type": "osc_command", "key": "noise_scale", "value": 0.75},
        {"type": "osc_command", "key": "reset_cache", "value": True},
    ]


async def test_only_this_machine_reaches_the_socket(double_server: DoubleProcess) -> None:
    connections = psutil.Process(double_server.pid).net_connections("udp")
    own = [c.laddr.ip for c in connections if c.laddr.port == double_server.port]

    assert own == ["127.0.0.1"]
    told = await status(double_server)
    assert (told["enabled"], told["listening"], told["host"]) == (True, True, "127.0.0.1")
    assert (told["port"], told["problem"]) == (double_server.port, None)


async def test_all_addresses_are_listed(peer: Peer, double_server: DoubleProcess) -> None:
    paths = (await double_server.client.call("GET", "/api/v1/osc/paths")).json()

    runtime = {entry["key"]: entry for entry in paths["active"]["Runtime"]}
    assert runtime["noise_scale"] == {
        "key": "noise_scale",
        "type": "number",
        "description": "How far the result may move away from the input video",
        "min": 0,
        "max": 1,
        "osc_address": "/scope/noise_scale",
    }
    assert runtime["input_mode"]["enum"] == ["text", "video"]
    own = {entry["key"]: entry for entry in paths["active"][peer.session_id]}
    assert own["noise_scale"]["osc_address"] == f"/wanstream/{peer.session_id}/noise_scale"
    assert paths["active_pipeline_ids"] == ["longlive"]
    assert {e["pipeline_id"] for e in paths["active"]["LongLive"]} == {"longlive"}
    bias = [entry for group in paths["available"].values() for entry in group if "bias" in entry["key"]]
    assert [(e["pipeline_id"], e["default"]) for e in bias] == [("krea-realtime-video", 0.3)]


async def test_settings_and_the_graph_editor_s_inventory(double_server: DoubleProcess) -> None:
    async def put(body: Any) -> tuple[int, Any]:
        answer = await double_server.client.call("PUT", "/api/v1/osc/settings", json_body=body)
        return answer.status, answer.json()

    on, off, wrong = [await put({"log_all_messages": value}) for value in (True, False, "yes")]
    inventory = await double_server.client.call("POST", "/api/v1/osc/inventory", json_body={"nodes": []})

    assert [(code, told["log_all_messages"]) for code, told in (on, off)] == [(200, True), (200, False)]
    assert wrong[0] == 422
    assert (inventory.status, inventory.json()) == (200, {"count": 0})


async def test_changes_wait_for_the_beat(
    peer: Peer, osc: SimpleUDPClient, double_server: DoubleProcess
) -> None:
    async def call(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = await double_server.client.call(method, f"/api/v1/tempo/{path}", json_body=body)
        return answer.status, answer.json()

    enabled = await call("POST", "enable", {"bpm": 240, "beats_per_bar": 4})
    peer.send({"quantize_mode": "bar", "prompts": [{"text": "on the one", "weight": 1.0}]})

    def told(kind: str) -> list[dict[str, Any]]:
        return [m for m in peer.messages if m["type"] == kind]

    await until(lambda: told("change_applied"), 30, "the bar")
    await until(lambda: double_server.prompts() == ["on the one"], 30, "a chunk of it")
    osc.send_message("/scope/tempo/bpm", 100.0)

    async def by_osc() -> bool:
        return bool((await call("GET", "status"))[1]["source"] == "osc")

    await until(by_osc, 30, "the tempo by OSC")
    status = (await call("GET", "status"))[1]
    paced = await call("POST", "set_tempo", {"bpm": 60})
    disabled = await call("POST", "disable", {})
    counted = await call("POST", "set_tempo", {"bpm": 20, "beat": 4.25})
    await call("POST", "disable", {})
    peer.send({"quantize_mode": None})

    assert (enabled[0], enabled[1]["bpm"]) == (200, 240)
    assert 0 <= told("change_scheduled")[0]["delay_ms"] <= 1000
    assert {100, 60} <= {message["bpm"] for message in told("tempo_update")}
    assert (status["bpm"], status["chunk_ms"] > 0) == (100, True)
    assert (paced[1]["bpm"], disabled[1]["enabled"]) == (60, False)
    assert (counted[1]["enabled"], counted[1]["beat"]) == (True, 4)
    assert (await call("GET", "sources"))[1]["quantize_modes"] == ["none", "beat", "bar", "2_bars", "4_bars"]
    assert (await call("POST", "tap"))[0] == 200
    for wrong in ({"bpm": 5}, {"bpm": "fast"}, {"bpm": 60, "beat": 0}, {}):
        assert (await call("POST", "set_tempo", wrong))[0] == 422
