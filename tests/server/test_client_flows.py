"""Whole flows of the documented clients, call by call, as their pages do them (api.md 14.1, clients.md 1)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.server.camera import NumberedCamera
from tests.server.case_runner import png_of
from tests.server.client import HttpClient
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import pipeline_status, session_parameters
from tests.server.peer import Peer, until

LOAD = "/api/v1/pipeline/load"
SIZE = {"height": 96, "width": 128}


@pytest.fixture
async def server(double_server: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    """The double, with nothing loaded; files that a test leaves are removed."""
    await double_server.client.call("POST", "/api/v1/pipeline/unload")
    yield double_server
    double_server.reset_faults()
    for directory in (double_server.assets, double_server.loras):
        for path in directory.rglob("*"):
            path.unlink()


async def states_until_loaded(client: HttpClient, load: dict[str, Any]) -> set[str]:
    """Send a load request and poll the status until it is loaded; all states that were seen."""
    answer = await client.call("POST", LOAD, json_body=load)
    assert answer.status == 200, answer.text
    seen: set[str] = set()

    async def loaded() -> bool:
        seen.add((await pipeline_status(client))["status"])
        return "loaded" in seen

    await until(loaded, 30, f"loaded after {load}")
    return seen


async def test_first_quick_start(server: DoubleProcess) -> None:
    server.set_faults(load_delay_s=0.3)
    load = {"pipeline_ids": ["longlive"], "load_params": SIZE}
    assert await states_until_loaded(server.client, load) == {"loading", "loaded"}
    servers = (await server.client.call("GET", "/api/v1/webrtc/ice-servers")).json()["iceServers"]
    assert servers[0]["urls"]

    prompts = [{"text": "A 3D animated scene.", "weight": 1.0}]
    async with Peer(server.client) as peer:
        steps = {"denoising_step_list": [1000, 750, 500, 250], "manage_cache": True}
        await peer.offer({"prompts": prompts, **steps}, candidates=False)
        answer = await peer.trickle()
        await peer.connected()
        frames = await peer.wait_frames(10)
        await server.client.call("POST", "/api/v1/pipeline/unload")
        stopped = await peer.wait_message("stream_stopped")

    assert answer.status == 204
    assert {(frame.width, frame.height) for frame in frames} == {(128, 96)}
    assert stopped == {"type": "stream_stopped"}


async def test_second_quick_start_never_sees_not_loaded(server: DoubleProcess) -> None:
    server.set_faults(load_delay_s=0.3)

    first = await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": {}})
    second = await states_until_loaded(server.client, {"pipeline_id": "memflow", "load_params": SIZE})

    assert first == second == {"loading", "loaded"}


async def wait_for_pipeline_loaded(client: HttpClient) -> None:
    """The second quick start's loop: it gives up as soon as nothing is loading."""
    for _ in range(200):
        status = await pipeline_status(client)
        if status["status"] == "loaded":
            return
        assert status["status"] not in ("error", "not_loaded"), f"gave up: {status}"
        await asyncio.sleep(0.02)
    raise AssertionError("never loaded")


@pytest.mark.parametrize("before", ["not_loaded", "error", "loaded"])
async def test_second_quick_start_with_updates_while_streaming(before: str, server: DoubleProcess) -> None:
    if before == "error":
        await server.client.call("POST", LOAD, json_body={"pipeline_id": "nope"})
    elif before == "loaded":
        await states_until_loaded(server.client, {"pipeline_id": "memflow", "load_params": SIZE})
    assert (await pipeline_status(server.client))["status"] == before
    server.set_faults(load_delay_s=0.2)

    accepted = await server.client.call(
        "POST", LOAD, json_body={"pipeline_id": "longlive", "load_params": {}}
    )
    await wait_for_pipeline_loaded(server.client)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "A panda", "weight": 1.0}]})
        frames = await peer.wait_frames(1)
        peer.send({"denoising_step_list": [800, 600, 400]})
        peer.send({"prompts": [{"text": "A bear", "weight": 1.0}]})
        await until(lambda: server.prompts() == ["A bear"], 30, "new prompt")
        parameters = await session_parameters(server.client)

    assert accepted.status == 200
    assert (frames[0].width, frames[0].height) == (576, 320)  # {} stands for the defaults
    assert parameters["denoising_step_list"] == [800, 600, 400]
    assert peer.messages == []


@pytest.mark.parametrize(("failure", "end"), [(None, "loaded"), ("no such engine", "error")])
async def test_two_pollers_both_see_how_a_load_ends(
    failure: str | None, end: str, server: DoubleProcess
) -> None:
    server.set_faults(load_delay_s=0.3, load_error=failure)
    await server.client.call("POST", LOAD, json_body={"pipeline_id": "longlive", "load_params": SIZE})

    async def poll() -> dict[str, Any]:
        while True:
            status = await pipeline_status(server.client)
            if status["status"] in ("loaded", "error"):
                return status
            await asyncio.sleep(0.1)

    ends = await asyncio.wait_for(asyncio.gather(poll(), poll()), 30)

    assert [status["status"] for status in ends] == [end, end]
    assert [failure is None or failure in status["error"] for status in ends] == [True, True]


async def test_candidates_one_by_one_and_in_a_batch_before_the_answer_is_applied(
    server: DoubleProcess,
) -> None:
    await states_until_loaded(server.client, {"pipeline_ids": ["longlive"], "load_params": SIZE})

    async with Peer(server.client) as peer:
        body = {"sdp": await peer.offer_sdp(candidates=False), "type": "offer", "initialParameters": {}}
        answer = (await server.client.call("POST", "/api/v1/webrtc/offer", json_body=body)).json()
        peer.session_id = answer["sessionId"]
        own = [line[2:] for line in peer.pc.localDescription.sdp.splitlines() if line.startswith("a=cand")]
        entries = [{"candidate": c, "sdpMid": "0", "sdpMLineIndex": 0} for c in own]
        batched = await peer.trickle([*entries, {"candidate": "", "sdpMid": "1", "sdpMLineIndex": None}])
        single = await peer.trickle(entries[:1])
        await peer.accept(answer)
        await peer.connected()
        await peer.wait_frames(3)
        end = await peer.trickle([{"candidate": "", "sdpMid": "0", "sdpMLineIndex": 0}])

    assert [(a.status, a.body) for a in (batched, single, end)] == [(204, b"")] * 3


async def test_refused_load_ends_the_polling_of_a_client_that_ignores_answers(server: DoubleProcess) -> None:
    await server.client.call("POST", LOAD, json_body={"pipeline_ids": ["longlife"]})

    status = await pipeline_status(server.client)

    assert status["status"] == "error"
    assert "longlife" in status["error"]


@pytest.mark.parametrize("vace", [False, True])
async def test_video_to_video_without_noise_scale(vace: bool, server: DoubleProcess) -> None:
    load = {"pipeline_id": "longlive", "load_params": {**SIZE, "vace_enabled": vace}}
    await states_until_loaded(server.client, load)
    initial = {
        "input_mode": "video",
        "prompts": [{"text": "A painting", "weight": 100}],
        "denoising_step_list": [700, 500],
    }

    async with Peer(server.client, video=False) as peer:
        peer.pc.addTrack(NumberedCamera())
        await peer.connect(initial)
        await peer.wait_frames(5)
        parameters = await session_parameters(server.client)
        control = await server.client.call("GET", "/api/v1/streams/main/control")

    first = server.chunks()[0]
    assert first["video_frames"] == 12
    assert first["parameters"]["denoising_step_list"] == [700, 500]
    assert first["parameters"]["prompts"] == [{"text": "A painting", "weight": 1.0}]
    assert (parameters["noise_scale"], parameters["noise_controller"]) == (0.7, True)
    assert parameters["vace_enabled"] is vace
    if vace:
        assert (control.status, control.body[:3]) == (200, b"\xff\xd8\xff")
    else:
        assert (control.status, control.json()["detail"]) == (
            404,
            "No control picture available: VACE takes no input video now",
        )


async def test_reference_image_from_upload_to_chunk(server: DoubleProcess) -> None:
    await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": SIZE})
    binary = {"Content-Type": "application/octet-stream"}
    image = png_of("my face.png")

    upload = "/api/v1/assets?filename=my%20face.png"
    stored = (await server.client.call("POST", upload, body=image, headers=binary)).json()
    listed = (await server.client.call("GET", "/api/v1/assets?type=image")).json()["assets"]
    served = await server.client.call("GET", "/api/v1/assets/my%20face.png")
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "a"}]})
        await peer.wait_frames(1)
        peer.send({"vace_ref_images": [stored["path"]], "vace_context_scale": 0.8})
        await until(lambda: server.chunks()[-1]["parameters"].get("vace_context_scale") == 0.8, 30, "used")

    assert [asset["path"] for asset in listed] == [stored["path"]]
    assert (served.body, served.headers["content-type"]) == (image, "image/png")
    assert [c["vace_ref_images"] for c in server.chunks() if c["vace_ref_images"]] == [["my face.png"]]


async def test_the_image_picker_scale_and_control_mode_of_scopes_page(server: DoubleProcess) -> None:
    """Its messages, in its order: images also inside `load_params`, where they have no effect."""
    binary = {"Content-Type": "application/octet-stream"}
    paths = []
    for name in ("first.png", "second.png"):
        upload = f"/api/v1/assets?filename={name}"
        answer = await server.client.call("POST", upload, body=png_of(name), headers=binary)
        paths.append(answer.json()["path"])
    vace = {"vace_enabled": True, "vace_ref_images": paths[:1], "vace_context_scale": 1.5}
    await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": {**SIZE, **vace}})

    def used() -> list[Any]:
        return [c["vace_ref_images"] for c in server.chunks() if c["vace_ref_images"]]

    async with Peer(server.client, video=False) as peer:
        peer.pc.addTrack(NumberedCamera())
        control = {"input_mode": "video", "vace_use_input_video": True}
        await peer.connect({**control, **vace, "prompts": [{"text": "a", "weight": 100}]})
        await peer.wait_frames(1)
        first = server.chunks()[0]
        peer.send({"vace_ref_images": paths[1:]})
        await until(lambda: len(used()) == 2, 30.0, "the second image")
        peer.send({"vace_ref_images": []})
        peer.send({"vace_context_scale": 0.25})
        peer.send({"vace_use_input_video": False})
        await until(lambda: not newest(server)["vace_use_input_video"], 30.0, "image to image")
        assert [m for m in peer.messages if m["type"] == "parameter_error"] == []

    assert used() == [["first.png"], ["second.png"]]
    assert (first["video_frames"], first["parameters"]["vace_context_scale"]) == (12, 1.5)
    assert newest(server)["vace_context_scale"] == 0.25


def newest(server: DoubleProcess) -> dict[str, Any]:
    """Parameters of the chunk that was made last."""
    return dict(server.chunks()[-1]["parameters"])


async def test_two_pipelines_in_a_row_and_then_a_stream(server: DoubleProcess) -> None:
    await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": SIZE})
    load = {"pipelines": [{"node_id": "n", "pipeline_id": "memflow", "load_params": SIZE}]}
    await states_until_loaded(server.client, load)

    async with Peer(server.client, audio=True) as peer:
        initial = {"pipeline_ids": ["memflow"], "graph": {}, "recording": False, "produces_video": True}
        await peer.connect(initial)
        peer.send({"quantize_mode": None, "lookahead_ms": 0})
        peer.send({"prompts": [{"text": "b"}], "denoising_step_list": [749]})
        await until(lambda: server.prompts() == ["b"], 30, "new prompt")

    assert peer.messages == []


async def test_stream_survives_a_reload_with_another_resolution(server: DoubleProcess) -> None:
    await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": SIZE})

    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "a"}]})
        await peer.wait_frames(3)
        larger = {"pipeline_id": "longlive", "load_params": {"height": 128, "width": 192}}
        await states_until_loaded(server.client, larger)
        await until(lambda: peer.frames[-1].width == 192, 30, "the new size")
        peer.send({"prompts": [{"text": "b"}]})
        await until(lambda: server.prompts() == ["b"], 30, "new prompt")
        after = await peer.wait_frames(3)

    assert {(frame.width, frame.height) for frame in after} == {(192, 128)}
    pts = [frame.pts for frame in peer.frames]
    assert pts == sorted(set(pts))
    assert peer.messages == []
    assert server.chunks()[0]["init_cache"] is True
    assert server.chunks()[0]["active_prompts"][0]["text"] == "a"


@pytest.mark.parametrize(
    ("direction", "channel"), [("recvonly", True), ("recvonly", False), ("sendrecv", False)]
)
async def test_a_client_that_only_watches(direction: str, channel: bool, server: DoubleProcess) -> None:
    await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": SIZE})

    async with Peer(server.client, direction=direction, data_channel=channel) as peer:
        await peer.offer({"prompts": "A panda"}, candidates=False)
        await peer.trickle()
        await peer.trickle([{"candidate": "", "sdpMid": "0", "sdpMLineIndex": 0}])
        await peer.connected()
        frames = await peer.wait_frames(5)

    assert len(frames) == 5
    assert server.chunks()[0]["active_prompts"] == [{"text": "A panda", "weight": 1.0}]


async def test_lora_scale_changes_while_streaming(server: DoubleProcess) -> None:
    (server.loras / "style.safetensors").write_bytes(bytes(1000))
    listed = (await server.client.call("GET", "/api/v1/lora/list")).json()["lora_files"]
    adapter = {"path": listed[0]["path"], "scale": 1, "merge_mode": "runtime_peft"}
    load_params = {**SIZE, "loras": [adapter], "lora_merge_mode": "permanent_merge"}
    await states_until_loaded(server.client, {"pipeline_id": "longlive", "load_params": load_params})
    loaded = (await pipeline_status(server.client))["loaded_lora_adapters"]

    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "a"}]})
        await peer.wait_frames(1)
        peer.send({"lora_scales": [{"path": loaded[0]["path"], "scale": 0.5}]})
        scaled = [{**adapter, "adapter_name": "style", "scale": 0.5}]

        async def status_follows() -> bool:
            return bool((await pipeline_status(server.client))["loaded_lora_adapters"] == scaled)

        await until(status_follows, 30, "the status shows the new scale")

    assert sent_scales(server) == [[{"path": loaded[0]["path"], "scale": 0.5}]]
    assert loaded == [{**adapter, "adapter_name": "style"}]


def sent_scales(server: DoubleProcess) -> list[Any]:
    """The LoRA scales that chunks were given."""
    return [c["parameters"]["lora_scales"] for c in server.chunks() if "lora_scales" in c["parameters"]]
