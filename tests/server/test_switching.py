"""One real pipeline takes another's place while peers stream in both modes (api.md 4.5)."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.onnx.store import EngineStore
from streaming.engines.engine_set import read_engine_set
from streaming.engines.served import InProcess, open_model
from streaming.specs import LONGLIVE, STREAMDIFFUSIONV2, TEXT, VIDEO, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.sessions import Images
from tests.engines import ABSENT_VAE, BROKEN_VAE, SIZE
from tests.server.camera import NumberedCamera
from tests.server.gateway_calls import load, pipeline_status, session_parameters, sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess
from tests.server.recording import SAME

CHUNKS = 3
MINE = {"prompts": [{"text": "a red ball", "weight": 1.0}], "denoising_step_list": [700], "base_seed": 5}


def beginning(spec: PipelineSpec, engines: Path) -> Images:
    """The first pictures of a new stream with the text peer's parameters, made in this process."""
    store = EngineStore(engines / "engines")
    found = {d: read_engine_set(d) for d in store.sets.iterdir()}
    directory = next(d for d, s in found.items() if s.pipeline == spec.id and s.vae_type == "wan")
    stream = ModelPipeline(spec, open_model(directory, spec, InProcess(store.models)), 42).open_stream()
    chunks = [
        list(stream.next_chunk({"input_mode": TEXT, **MINE}, None, lambda: False)) for _ in range(CHUNKS)
    ]
    return np.concatenate([images for groups in chunks for images, _ in groups])


async def shows(peer: Peer, expected: Images, since: int) -> None:
    """Wait until the peer's pictures from number `since` on have `expected` among them."""
    small, checked, closest = thumbnails(expected), since, float("inf")

    async def seen() -> bool:
        nonlocal checked, closest
        while checked + len(small) <= len(peer.pictures):
            stretch = thumbnails(peer.pictures[checked : checked + len(small)])
            closest = min(closest, float(np.median(np.abs(stretch - small).mean(axis=(1, 2, 3)))))
            checked += 1
        return closest < SAME

    try:
        await until(seen, 60, "the beginning of a stream")
    except AssertionError as error:
        raise AssertionError(
            f"{error}; of {checked - since} places the nearest differs by {closest:.1f}"
        ) from error


def thumbnails(pictures: Any) -> Any:
    """float64 [N, 16, 20, 3]: means over blocks of 4 x 4 pixels."""
    array = np.asarray(pictures, np.float64)
    return array.reshape(len(array), SIZE[0] // 4, 4, SIZE[1] // 4, 4, 3).mean(axis=(2, 4))


async def states_while_loading(server: ServerProcess, spec: PipelineSpec) -> list[str]:
    """Ask for a pipeline; what the status says until it is loaded."""
    body = {"pipeline_id": spec.id}
    answer = await server.client.call("POST", "/api/v1/pipeline/load", json_body=body)
    assert answer.status == 200, answer.text
    seen: list[str] = []
    deadline = time.monotonic() + 120
    while not seen or seen[-1] != "loaded":
        assert time.monotonic() < deadline, seen
        status = await pipeline_status(server.client)
        seen.append(status["status"])
        assert status["loading_pipeline_id"] == (spec.id if seen[-1] == "loading" else None)
        await asyncio.sleep(0.05)
    return seen


@pytest.mark.timeout(400)
async def test_streams_go_on_with_their_parameters_on_the_pipeline_that_takes_over(
    demo_server: ServerProcess, all_engines: Path
) -> None:
    """Text and camera; to streamdiffusionv2, whose chunks are shorter, and back."""
    expected = {spec: beginning(spec, all_engines) for spec in (LONGLIVE, STREAMDIFFUSIONV2)}
    await load(demo_server.client, LONGLIVE.id, within_s=120)
    text, camera = (
        Peer(demo_server.client, keep_pictures=True),
        Peer(demo_server.client, source=NumberedCamera()),
    )
    async with text, camera:
        await text.connect({"input_mode": TEXT, **MINE})
        await camera.connect({"input_mode": VIDEO, **MINE})
        await shows(text, expected[LONGLIVE], since=0)
        await camera.wait_frames(13, within_s=60)

        for spec in (STREAMDIFFUSIONV2, LONGLIVE):
            since = len(text.pictures)
            states = await states_while_loading(demo_server, spec)
            await shows(text, expected[spec], since)
            await camera.wait_frames(13, within_s=60)

            assert set(states) == {"loading", "loaded"}
            assert states[0] == "loading"
            newest = await session_parameters(demo_server.client)  # the camera's
            assert newest.items() >= {"input_mode": VIDEO, **MINE}.items()
        numbers = await sessions(demo_server.client)

        assert {text.pc.connectionState, camera.pc.connectionState} == {"connected"}
        assert set(numbers) == {text.session_id, camera.session_id}
        assert {number["failed_chunks"] for number in numbers.values()} == {0}
        told = [*text.messages, *camera.messages]
        assert {message["type"] for message in told} == {"pipeline_changed"}
        assert {(f.height, f.width) for f in camera.frames} == {SIZE}


@pytest.mark.timeout(400)
async def test_every_stream_is_told_why_when_what_should_take_over_cannot_be_loaded(
    demo_server: ServerProcess,
) -> None:
    await load(demo_server.client, LONGLIVE.id, within_s=120)
    text, camera = Peer(demo_server.client), Peer(demo_server.client, source=NumberedCamera())
    async with text, camera:
        await text.connect({"input_mode": TEXT, **MINE})
        await camera.connect({"input_mode": VIDEO, **MINE})
        await text.wait_frames(5, within_s=60)
        await camera.wait_frames(5, within_s=60)

        body = {"pipeline_id": LONGLIVE.id, "load_params": {"vae_type": BROKEN_VAE}}
        answer = await demo_server.client.call("POST", "/api/v1/pipeline/load", json_body=body)
        messages = [await peer.wait_message("stream_stopped", 60) for peer in (text, camera)]

    assert answer.status == 200
    status = await pipeline_status(demo_server.client)
    assert status["status"] == "error"
    assert {message["error_message"] for message in messages} == {status["error"]}
    assert "'damaged'" in status["error"]  # the engine that has another content


@pytest.mark.timeout(400)
async def test_a_load_that_no_engines_can_serve_is_refused_and_streams_go_on(
    demo_server: ServerProcess,
) -> None:
    await load(demo_server.client, LONGLIVE.id, within_s=120)
    async with Peer(demo_server.client) as peer:
        await peer.connect({"input_mode": TEXT, **MINE})
        await peer.wait_frames(5, within_s=60)
        before = await pipeline_status(demo_server.client)

        answers = [
            await demo_server.client.call(
                "POST",
                "/api/v1/pipeline/load",
                json_body={"pipeline_id": LONGLIVE.id, "load_params": {"vae_type": vae_type}},
            )
            for vae_type in (ABSENT_VAE, "tae")
        ]
        await peer.wait_frames(len(peer.frames) + 13, within_s=60)

    assert [answer.status for answer in answers] == [400, 400]
    assert "There is no engine in" in answers[0].text
    assert "absent" in answers[0].text
    assert await pipeline_status(demo_server.client) == before
    assert peer.messages == []
