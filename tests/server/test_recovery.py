"""What happens when processes die: Triton, its model process, a peer, the gateway itself."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.camera import NumberedCamera
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load, sessions, wait_status
from tests.server.peer import Peer, numbers_of, until
from tests.server.processes import ServerProcess, runs

LOAD = "/api/v1/pipeline/load"
STUB = "triton_python_backend_stub"
TRITON = "tritonserver"


@pytest.fixture(scope="module", autouse=True)
def abandoned(double_server: DoubleProcess) -> str:
    """Id of a streaming session whose peer was killed when this module began.

    ICE notices that after half a minute, so the test that looks is the last one.
    """
    double_server.reset_faults()
    asyncio.run(load(double_server.client, "longlive", {"height": 96, "width": 128}))
    command = [sys.executable, "-m", "tests.server.peer", double_server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout is not None
            session_id = peer.stdout.readline().strip()
            present = asyncio.run(sessions(double_server.client))
        finally:
            peer.kill()
    assert session_id in present
    return session_id


@pytest.fixture
async def streaming(server: ServerProcess) -> AsyncIterator[Peer]:
    """A peer whose video goes through the real Triton."""
    await load(server.client, "passthrough")
    async with Peer(server.client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        await peer.wait_frames(10)
        yield peer


@pytest.mark.parametrize("program", [STUB, TRITON])
async def test_death_of_triton_is_told_and_a_new_load_heals(
    program: str, server: ServerProcess, streaming: Peer
) -> None:
    server.child(program).kill()

    message = await streaming.wait_message("stream_stopped", 30)
    status = await wait_status(server.client, "error", 15)
    assert message["error_message"]
    assert "passthrough" in status["error"] or "Triton" in status["error"]

    await load(server.client, "passthrough", within_s=15)
    async with Peer(server.client, source=NumberedCamera()) as again:
        await again.connect({"input_mode": "video"})
        assert numbers_of(await again.wait_frames(10))


@pytest.mark.parametrize("program", [STUB, TRITON])
async def test_triton_may_die_without_viewers(program: str, server: ServerProcess) -> None:
    await load(server.client, "passthrough")

    server.child(program).kill()
    await wait_status(server.client, "error", 15)
    await load(server.client, "passthrough", within_s=15)

    async with Peer(server.client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        assert await peer.wait_frames(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
async def test_signal_ends_everything_within_5_s(number: signal.Signals, tmp_path: Path) -> None:
    server = ServerProcess("gateway", tmp_path, options=["-N"])
    await load(server.client, "passthrough")
    async with Peer(server.client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        await peer.wait_frames(10)

        code = await asyncio.to_thread(server.stop, number, 5.0)

        assert code == 0
        assert peer.messages[-1:] == [{"type": "stream_stopped"}]


async def test_signal_while_loading_ends_everything_within_5_s(tmp_path: Path) -> None:
    server = ServerProcess("gateway", tmp_path, options=["-N"])
    await server.client.call("POST", LOAD, json_body={"pipeline_id": "passthrough"})

    code = await asyncio.to_thread(server.stop, signal.SIGINT, 5.0)

    assert code == 0


async def test_killed_gateway_takes_triton_along(tmp_path: Path) -> None:
    server = ServerProcess("gateway", tmp_path, options=["-N"])
    await load(server.client, "passthrough")
    triton, stub = server.child(TRITON), server.child(STUB)

    server.send_signal(signal.SIGKILL)

    await until(lambda: not runs(triton) and not runs(stub), 30, "Triton ended too")


async def test_newer_load_may_cut_short_the_one_that_replaces_a_pipeline(tmp_path: Path) -> None:
    server = DoubleProcess(tmp_path, triton=True)
    server.set_faults(load_delay_s=5)
    try:
        for delay_s in (0.01, 0.015, 0.02):  # unloading takes its time; meet it at several moments
            await load(server.client, "passthrough")
            await server.client.call("POST", LOAD, json_body={"pipeline_id": "longlive"})
            await asyncio.sleep(delay_s)
            await load(server.client, "passthrough")

        async with Peer(server.client, source=NumberedCamera()) as peer:
            await peer.connect({"input_mode": "video"})
            assert await peer.wait_frames(10)
    finally:
        server.stop()


async def test_session_of_a_killed_peer_is_freed(abandoned: str, double_server: DoubleProcess) -> None:
    async def freed() -> bool:
        return abandoned not in await sessions(double_server.client)

    await until(freed, 50, "session freed")
    assert double_server.sessions()[-1]["closed"]
