"""A viewer of generated video meets the death of the model, leaves in mid-chunk, and comes back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streaming.engines.engine_set import EngineSet
from tests.server.gateway_calls import load, pipeline_status, sessions, wait_status
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

LONGLIVE = "longlive"
PROMPT = {"prompts": "a red ball"}
STUB = "triton_python_backend_stub"


@pytest.fixture(scope="module")
def server(
    exported_engines: tuple[Path, EngineSet], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Stopping it is checked: no process, no shared memory, no port is left."""
    env = {"WANSTREAM_ENGINES_DIR": str(exported_engines[0] / "engines")}
    process = ServerProcess("gateway", tmp_path_factory.mktemp("recovery"), env, ["-N"])
    yield process
    process.stop(within_s=30)


def model_process(server: ServerProcess, model: str) -> psutil.Process:
    """The process of one Triton model."""
    stubs = [p for p in server.children() if STUB in p.cmdline()[0]]
    return next(p for p in stubs if f"/{model}/" in " ".join(p.cmdline()))


async def until_it_works(process: psutil.Process) -> None:
    """Wait until the process computes something: a chunk is under way."""
    before = process.cpu_times().user

    async def works() -> bool:
        return bool(process.cpu_times().user > before)

    await until(works, 60, "the engine works")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["onnxruntime", "triton"])
async def test_a_process_that_dies_in_the_middle_of_a_chunk_is_told_and_a_new_load_heals(
    backend: str, server: ServerProcess, exported_engines: tuple[Path, EngineSet]
) -> None:
    """The pipeline's, with all its engines; or that of one engine, where each has a process of its own."""
    name = LONGLIVE if backend == "onnxruntime" else exported_engines[1].transformer
    await load(server.client, LONGLIVE, {"backend": backend}, within_s=150)
    async with Peer(server.client) as peer:
        await peer.connect(PROMPT)
        await peer.wait_frames(12, within_s=90)
        victim = model_process(server, name)
        await until_it_works(victim)

        victim.kill()
        message = await peer.wait_message("stream_stopped", 60)
        status = await wait_status(server.client, "error", 60)

    assert "died" in message["error_message"]
    assert "Load the pipeline again" in status["error"]
    await load(server.client, LONGLIVE, within_s=150)
    async with Peer(server.client) as again:
        await again.connect(PROMPT)
        assert len(await again.wait_frames(12, within_s=90)) >= 12


@pytest.mark.timeout(600)
async def test_a_viewer_may_leave_pause_and_reload_at_any_time(server: ServerProcess) -> None:
    """The next viewer has a stream of its own from the start; nothing of the former is left."""
    await load(server.client, LONGLIVE, within_s=150)
    for leave_after_s in (0.0, 0.3):
        async with Peer(server.client) as peer:
            await peer.connect(PROMPT)
            await peer.wait_frames(9, within_s=90)
            peer.send({"paused": True})
            peer.send({"paused": False})
            await asyncio.sleep(leave_after_s)  # somewhere in a chunk
    async with Peer(server.client) as watching:
        await watching.connect(PROMPT)
        await watching.wait_frames(9, within_s=90)
        await load(server.client, LONGLIVE, {"seed": 7}, within_s=150)
        parameters = (await pipeline_status(server.client))["load_params"]

    async def empty() -> bool:
        return not await sessions(server.client)

    await until(empty, 60, "every session is gone")
    assert (parameters["seed"], parameters["base_seed"]) == (7, 7)
    async with Peer(server.client) as last:
        await last.connect(PROMPT)
        await last.wait_frames(12, within_s=90)
        numbers = await sessions(server.client)
    assert [n["failed_chunks"] for n in numbers.values()] == [0]


@pytest.mark.timeout(600)
async def test_an_engine_that_dies_is_noticed_though_nobody_streams(
    server: ServerProcess, exported_engines: tuple[Path, EngineSet]
) -> None:
    await load(server.client, LONGLIVE, {"backend": "triton"}, within_s=150)

    model_process(server, exported_engines[1].text_encoder).kill()

    status = await wait_status(server.client, "error", 60)
    assert "Load the pipeline again" in status["error"]
