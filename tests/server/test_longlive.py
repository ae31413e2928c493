"""LongLive from the gateway to the pictures: small exported engines in the embedded Triton."""

import asyncio
import itertools
from typing import Any

import pytest

from gateway.stream.parameters.checks import FIELDS
from tests.engines import SIZE
from tests.server.gateway_calls import load, pipeline_status, session_parameters, sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

HEIGHT, WIDTH = SIZE
WRONG: dict[str, Any] = {
    "input_mode": "film",
    "prompts": [],
    "prompt_interpolation_method": "cubic",
    "transition": {"num_steps": 2},
    "denoising_step_list": [300, 900],
    "noise_scale": 1.5,
    "noise_controller": "perhaps",
    "manage_cache": 3,
    "reset_cache": "often",
    "kv_cache_attention_bias": 0,
    "base_seed": -1,
    "lora_scales": "all",
    "vace_ref_images": ["../../etc/passwd"],
    "first_frame_image": "nowhere.png",
    "last_frame_image": 7,
    "images": ["picture.exe"],
    "vace_context_scale": "strong",
    "vace_enabled": [],
    "vace_use_input_video": {},
    "vace_preprocessor": "cubism",
    "paused": "soon",
    "recording": "later",
    "spout_sender": {"enabled": "perhaps"},
    "spout_receiver": 5,
    "output_sinks": "ndi",
    "input_source": 3,
    "quantize_mode": "half",
    "lookahead_ms": -1,
    "take_control": 2,
    "hand_over": 3,
    "pipeline_ids": "longlive",
    "height": 128,
    "width": 128,
}


@pytest.mark.timeout(400)
async def test_a_prompt_becomes_video_of_the_exported_size(demo_server: ServerProcess) -> None:
    await load(demo_server.client, "longlive", within_s=90)
    status = await pipeline_status(demo_server.client)
    async with Peer(demo_server.client) as peer:
        await peer.connect({"prompts": "a red ball"})

        frames = await peer.wait_frames(25, within_s=60)
        await peer.delete()

    assert (status["load_params"]["height"], status["load_params"]["width"]) == (HEIGHT, WIDTH)
    assert {(f.height, f.width) for f in frames} == {(HEIGHT, WIDTH)}
    plan = status["load_plan"]
    assert {(e["backend"], e["runtime"], e["device"]) for e in plan["engines"]} == {
        ("onnxruntime", "onnxruntime", "cpu")
    }
    assert plan["sessions"] >= 1
    assert sum(plan["memory"]["parts"].values()) == plan["memory"]["total_bytes"]


async def test_parameters_change_while_it_streams(demo_server: ServerProcess) -> None:
    await load(demo_server.client, "longlive", within_s=90)
    async with Peer(demo_server.client) as peer:
        await peer.connect({"prompts": "a red ball"})
        await peer.wait_frames(12, within_s=60)

        peer.send({"prompts": "a blue cube", "denoising_step_list": [1000, 500]})
        peer.send({"transition": {"target_prompts": [{"text": "snow"}], "num_steps": 2}})
        await peer.wait_frames(40, within_s=60)
        peer.send({"reset_cache": True})
        await peer.wait_frames(20, within_s=60)
        numbers = await sessions(demo_server.client)

        assert numbers[str(peer.session_id)]["failed_chunks"] == 0
        assert [m for m in peer.messages if m["type"] == "parameter_error"] == []


async def test_changes_without_end_do_not_stop_the_stream(demo_server: ServerProcess) -> None:
    await load(demo_server.client, "longlive", within_s=90)
    async with Peer(demo_server.client) as peer:
        await peer.connect({"prompts": "a red ball"})
        await peer.wait_frames(12, within_s=60)

        async def drag() -> None:
            for number in itertools.count():
                peer.send({"prompts": [{"text": "a red ball"}, {"text": "snow", "weight": number % 100}]})
                await asyncio.sleep(0.01)

        dragging = asyncio.ensure_future(drag())
        try:
            await peer.wait_frames(60, within_s=90)
        finally:
            dragging.cancel()
        numbers = await sessions(demo_server.client)

        assert numbers[str(peer.session_id)]["failed_chunks"] == 0
        assert [m for m in peer.messages if m["type"] == "parameter_error"] == []


async def test_wrong_values_are_refused_by_name_and_the_stream_goes_on_with_the_old_ones(
    demo_server: ServerProcess,
) -> None:
    await load(demo_server.client, "longlive", within_s=90)
    mine = {"prompts": "a red ball", "denoising_step_list": [900, 300], "noise_scale": 0.4, "seed": 3}
    async with Peer(demo_server.client) as peer:
        await peer.connect(mine)
        await peer.wait_frames(12, within_s=60)
        before = await session_parameters(demo_server.client)

        for name, value in WRONG.items():
            peer.send({name: value})
        await until(lambda: len(peer.messages) >= len(WRONG), 30, "an answer to each message")
        await peer.wait_frames(25, within_s=60)
        numbers = await sessions(demo_server.client)

        refused = [(m["type"], m["errors"][0]["loc"][0]) for m in peer.messages]
        assert refused == [("parameter_error", name) for name in WRONG]
        assert all(len(m["errors"][0]["msg"]) > 10 for m in peer.messages)
        assert await session_parameters(demo_server.client) == before
        assert before["denoising_step_list"] == [900, 300]
        assert numbers[str(peer.session_id)]["failed_chunks"] == 0


def test_a_wrong_value_of_every_parameter_is_tried() -> None:
    assert WRONG.keys() == FIELDS.keys() | {"height", "width"}


async def test_two_viewers_have_streams_of_their_own(demo_server: ServerProcess) -> None:
    await load(demo_server.client, "longlive", within_s=90)
    async with Peer(demo_server.client) as one, Peer(demo_server.client) as two:
        await one.connect({"prompts": "a red ball"})
        await two.connect({"prompts": "a green field"})

        await one.wait_frames(12, within_s=90)
        await two.wait_frames(12, within_s=90)
        numbers = await sessions(demo_server.client)

    assert {number["failed_chunks"] for number in numbers.values()} == {0}


async def test_a_size_without_engines_is_refused_with_the_sizes_there_are(demo_server: ServerProcess) -> None:
    body = {"pipeline_id": "longlive", "load_params": {"height": 320, "width": 576}}

    answer = await demo_server.client.call("POST", "/api/v1/pipeline/load", json_body=body)

    assert answer.status == 400
    assert f"{HEIGHT}x{WIDTH}" in answer.json()["detail"]


async def test_a_pipeline_without_engines_says_what_to_run(server: ServerProcess) -> None:
    answer = await server.client.call(
        "POST", "/api/v1/pipeline/load", json_body={"pipeline_id": "streamdiffusionv2"}
    )

    assert answer.status == 400
    assert "wanstream-export streamdiffusionv2" in answer.json()["detail"]
