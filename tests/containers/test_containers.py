"""The images of docker/, built and run as the compose file says, with a picture that goes through them.

NVIDIA's image is stood in for (stand_ins.py), there is no GPU, PyTorch is lent by this machine (wheels.py).
"""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import Start
from tests.containers.podman import Container, Podman
from tests.engines import small_options
from tests.server.camera import NumberedCamera
from tests.server.client import HttpClient
from tests.server.gateway_calls import load, pipeline_status, wait_status
from tests.server.peer import Peer, numbers_of, until
from tests.server.processes import free_port

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600, func_only=True)]  # images are built before


def ports() -> dict[str, int]:
    """Settings of the compose file: a second pair on this machine, so to say."""
    return {name: free_port() for name in ("PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")}


def client(settings: dict[str, Any]) -> HttpClient:
    return HttpClient(f"http://127.0.0.1:{settings['PORT']}")


async def healthy(container: Container, within_s: float = 60) -> None:
    """Wait for the health check, a process of its own each time, to succeed."""
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(container.is_healthy):
        assert container.runs, container.log[-6000:]
        assert time.monotonic() < deadline, f"not healthy within {within_s} s:\n{container.log[-6000:]}"
        await asyncio.sleep(0.5)


async def pair(start: Start, settings: dict[str, Any], **triton: Any) -> tuple[Container, Container]:
    """Triton, and when it is healthy the gateway, as the compose file orders them."""
    server = start("triton", settings, **triton)
    await healthy(server)
    # Weights beside engines would run on the GPU, which the compose file counts on.
    gateway = start("gateway", settings, ["--env=WANSTREAM_DRAIN_S=0", "--env=WANSTREAM_PYTORCH_DEVICE=cpu"])
    await healthy(gateway)
    return server, gateway


async def ready(client: HttpClient) -> bool:
    return (await client.call("GET", "/ready")).status == 200


async def not_ready(client: HttpClient) -> bool:
    return not await ready(client)


async def streams(client: HttpClient) -> None:
    """A viewer with a camera gets its own pictures back, through `passthrough`."""
    await load(client, "passthrough", within_s=60)
    async with Peer(client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        assert numbers_of(await peer.wait_frames(5, within_s=30))


async def test_the_first_start_shows_a_picture_of_the_engines_in_the_volume(start: Start) -> None:
    settings = ports()
    export = start("export", command=[str(part) for part in small_options(Path("/data"))])
    code = await asyncio.to_thread(export.wait, 120)

    triton, gateway = await pair(start, settings)
    status = await wait_status(client(settings), "loaded", 120)
    async with Peer(client(settings)) as peer:
        await peer.connect({"prompts": "a red circle"})
        frames = await peer.wait_frames(12, within_s=60)

    assert code == 0, export.log
    assert "is complete" in export.log
    assert status["pipeline_id"] == "longlive"
    assert {(frame.width, frame.height) for frame in frames} == {(80, 64)}
    for container in (triton, gateway):
        assert rights(container) == {"Uid": "1000", "CapEff": "0" * 16, "NoNewPrivs": "1"}


def rights(container: Container) -> dict[str, str]:
    """What the first process of a container may do."""
    lines = container.run("cat", "/proc/1/status").splitlines()
    wanted = ("Uid", "CapEff", "NoNewPrivs")
    return {name: line.split()[1] for line in lines if (name := line.partition(":")[0]) in wanted}


async def test_a_killed_gateway_and_a_killed_triton_serve_again(start: Start) -> None:
    settings = ports() | {"PIPELINE": "passthrough"}
    triton, gateway = await pair(start, settings)
    await until(lambda: ready(client(settings)), 60, "the pipeline loaded")
    await streams(client(settings))

    gateway.kill()
    assert gateway.wait(20) == 137
    assert not gateway.is_healthy()
    gateway.start()
    await healthy(gateway)
    await until(lambda: ready(client(settings)), 60, "the pipeline loaded by the new gateway")
    await streams(client(settings))

    # While nobody looks on, Triton goes, and comes back with nothing loaded.
    triton.kill()
    assert triton.wait(20) == 137
    await until(lambda: not_ready(client(settings)), 30, "the loss noticed")
    triton.start()
    await healthy(triton)
    await until(lambda: ready(client(settings)), 60, "the pipeline loaded again")
    await streams(client(settings))

    gateway.stop()
    triton.stop()
    assert [gateway.wait(5), triton.wait(5)] == [0, 0]


async def test_too_little_shared_memory_is_an_error_that_can_be_read(start: Start) -> None:
    settings = ports() | {"PIPELINE": ""}
    _, gateway = await pair(start, settings, options=["--shm-size=32m"])
    body = {"pipeline_id": "passthrough"}
    await client(settings).call("POST", "/api/v1/pipeline/load", json_body=body)

    async def failed() -> bool:
        return (await pipeline_status(client(settings)))["status"] == "error"

    await until(failed, 60, "an error")
    error = (await pipeline_status(client(settings)))["error"]

    assert "space" in error or "shared memory" in error, error
    assert gateway.is_healthy()


def test_the_images_say_what_they_are_and_hold_no_secret(images: Podman) -> None:
    for name in ("gateway", "triton"):
        (found,) = json.loads(images("inspect", "--type=image", f"localhost/{name}"))
        labels, environment = found["Labels"], found["Config"]["Env"]

        assert labels["org.opencontainers.image.revision"] == "0123abc"
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert found["User"] == "1000:1000"
        assert not [entry for entry in environment if "TOKEN" in entry or "PASSWORD" in entry]
