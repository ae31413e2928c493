"""A gateway in front of a Triton that somebody else runs: restarts, deaths, and what is left of them."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.embedded.installation import TritonInstallation
from gateway.embedded.leftovers import SHARED_MEMORY
from gateway.embedded.plain_paths import PlainPaths
from gateway.embedded.server import EmbeddedTriton, model_repository
from gateway.triton.shared_frames import BESIDE
from streaming.triton.server_id import server_id
from tests.server.camera import NumberedCamera
from tests.server.gateway_calls import load, pipeline_status, wait_status
from tests.server.peer import Peer, numbers_of, until
from tests.server.processes import ServerProcess, free_port
from tests.server.triton_fixtures import DOUBLER, PASSTHROUGH, ModelClient, model_processes, write_test_models

LOAD = "/api/v1/pipeline/load"
WITHIN_S = 30.0


@pytest.fixture
async def triton(tmp_path: Path) -> AsyncIterator[EmbeddedTriton]:
    """A server that always comes back on the same ports. It does not run yet."""
    ports = [free_port(), free_port()]
    repositories = [model_repository(), write_test_models(tmp_path / "models")]
    server = Named(repositories, find_ports=lambda count: ports)
    server.address = f"127.0.0.1:{ports[0]}"  # type: ignore[attr-defined]
    yield server
    await server.stop(timeout_s=0)


class Named(EmbeddedTriton):
    """Tells its version, as that of the image does."""

    server_id = server_id()

    def _command(self, installation: TritonInstallation, paths: PlainPaths) -> list[str]:
        return [*super()._command(installation, paths), f"--id={self.server_id}"]


class Gateways:
    """Gateways in front of one Triton; all are ended with the test."""

    def __init__(self, triton_url: str, directory: Path) -> None:
        self._env = {"WANSTREAM_TRITON_URL": triton_url}
        self._directory = directory
        self._started: list[ServerProcess] = []

    def start(self, **env: str) -> ServerProcess:
        home = self._directory / f"gateway{len(self._started)}"
        self._started.append(ServerProcess("gateway", home, self._env | env, ["-N"]))
        return self._started[-1]

    def end(self) -> None:
        for gateway in self._started:
            gateway.kill()


@pytest.fixture
def gateways(triton: EmbeddedTriton, tmp_path: Path) -> Iterator[Gateways]:
    started = Gateways(triton.address, tmp_path)  # type: ignore[attr-defined]
    yield started
    started.end()


async def ready(gateway: ServerProcess) -> tuple[int, str | None]:
    answer = await gateway.client.call("GET", "/ready")
    return answer.status, answer.json()["reason"]


async def streams(gateway: ServerProcess) -> None:
    async with Peer(gateway.client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        assert numbers_of(await peer.wait_frames(10))


async def turns(gateway: ServerProcess, wanted: str) -> str | None:
    """Wait for a state; the error that the status tells then."""

    async def reached() -> bool:
        return (await pipeline_status(gateway.client))["status"] == wanted

    await until(reached, WITHIN_S, f"status {wanted}")
    error = (await pipeline_status(gateway.client))["error"]
    return None if error is None else str(error)


async def restart(triton: EmbeddedTriton) -> None:
    await triton.stop(timeout_s=0)
    await triton.start()


async def test_a_restart_of_triton_is_noticed_though_nobody_streams(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    await triton.start()
    gateway = gateways.start()
    await load(gateway.client, PASSTHROUGH)

    await restart(triton)
    error = await turns(gateway, "error")
    await load(gateway.client, PASSTHROUGH)
    await streams(gateway)
    await restart(triton)
    answer = await gateway.client.call("POST", LOAD, json_body={"pipeline_id": PASSTHROUGH})
    await wait_status(gateway.client, "loaded", WITHIN_S)
    await streams(gateway)

    assert "Load the pipeline again" in str(error)
    assert answer.json()["status"] == "loading"  # before the watch looks


async def test_models_of_another_version_are_not_used(triton: Named, gateways: Gateways) -> None:
    triton.server_id = "wanstream-0.0.1-0123abc"
    await triton.start()
    gateway = gateways.start()

    async def refused() -> bool:
        return "wanstream-0.0.1-0123abc" in str((await ready(gateway))[1])

    await until(refused, WITHIN_S, "the other version is noticed")
    status, reason = await ready(gateway)
    triton.server_id = server_id()
    await restart(triton)
    await load(gateway.client, PASSTHROUGH, within_s=WITHIN_S)

    assert status == 503
    assert f"this gateway is {server_id()}" in str(reason)
    assert "Build and start both from one checkout" in str(reason)


async def test_a_dead_model_process_is_noticed_though_nobody_streams(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    await triton.start()
    gateway = gateways.start()
    await load(gateway.client, PASSTHROUGH)

    model_processes(triton.pid)[0].kill()
    error = await turns(gateway, "error")
    await load(gateway.client, PASSTHROUGH, within_s=WITHIN_S)
    await streams(gateway)

    assert "not healthy" in str(error)


async def test_a_stop_does_not_wait_for_an_unload_that_never_ends(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    """That of a model whose process is dead is such a one."""
    await triton.start()
    gateway = gateways.start()
    await load(gateway.client, PASSTHROUGH)

    model_processes(triton.pid)[0].kill()
    code = await asyncio.to_thread(gateway.stop)

    assert code == 0


async def test_what_a_killed_gateway_left_on_triton_goes_when_the_next_one_connects(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    await triton.start()
    async with ModelClient(triton, DOUBLER) as foreign, ModelClient(triton, PASSTHROUGH) as ours:
        await foreign.api.load_model(DOUBLER)
        killed = gateways.start()
        await load(killed.client, PASSTHROUGH)
        before = await ours.state()
        killed.send_signal(signal.SIGKILL)

        following = gateways.start()
        await until(lambda: is_ready(following), WITHIN_S, "connected")
        after = await ours.state()
        others = await foreign.state()
        await load(following.client, PASSTHROUGH)
        await streams(following)

    assert (before, after, others) == ("READY", "UNAVAILABLE", "READY")


async def is_loaded(model: ModelClient) -> bool:
    return await model.state() == "READY"


async def is_ready(gateway: ServerProcess) -> bool:
    return (await ready(gateway))[0] == 200


async def test_a_second_gateway_leaves_the_models_of_the_first_alone(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    await triton.start()
    first = gateways.start()
    await load(first.client, PASSTHROUGH)

    second = gateways.start()

    async def refused() -> bool:
        return "Another gateway" in str((await ready(second))[1])

    await until(refused, WITHIN_S, "the second gateway says why it waits")
    await streams(first)


async def test_with_a_pipeline_set_it_comes_back_by_itself(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    gateway = gateways.start(PIPELINE=PASSTHROUGH)
    without_triton = await ready(gateway)

    await triton.start()
    await until(lambda: is_ready(gateway), WITHIN_S, "loaded when Triton had come")
    status = await pipeline_status(gateway.client)
    await restart(triton)
    async with ModelClient(triton, PASSTHROUGH) as restarted:
        await until(lambda: is_loaded(restarted), WITHIN_S, "loaded on the new server")
    await until(lambda: is_ready(gateway), WITHIN_S, "ready again")
    await streams(gateway)
    await gateway.client.call("POST", "/api/v1/pipeline/unload")
    unloaded = await ready(gateway)

    assert without_triton[0] == unloaded[0] == 503
    assert "does not answer" in str(without_triton[1])
    assert status["status"] == "loaded"
    assert f"Pipeline {PASSTHROUGH} is not loaded" in str(unloaded[1])


def files_beside() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"{BESIDE}*")}


async def test_pictures_go_through_memory_that_both_see_and_nothing_is_left(
    triton: EmbeddedTriton, gateways: Gateways
) -> None:
    """Of a gateway that was killed, too."""
    await triton.start()
    others = files_beside()  # of other gateways on this machine
    first = gateways.start(WANSTREAM_TRITON_SHARED_MEMORY="on")
    await load(first.client, PASSTHROUGH)
    async with Peer(first.client, source=NumberedCamera()) as peer:
        await peer.connect({"input_mode": "video"})
        assert numbers_of(await peer.wait_frames(10))
        used = files_beside() - others
        first.kill()
    second = gateways.start(WANSTREAM_TRITON_SHARED_MEMORY="on")
    await load(second.client, PASSTHROUGH)
    await streams(second)

    assert used
    assert not used & files_beside()
    assert second.stop(signal.SIGTERM, within_s=15) == 0
    assert files_beside() <= others
    assert "Pictures travel in messages" not in first.log + second.log
