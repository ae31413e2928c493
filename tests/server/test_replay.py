"""Replays: the same pictures again from a take, and parameters in the chunks where they belong."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.__main__ import engine_sets, make_serving
from gateway.app import Services, create_app
from gateway.config import Config
from gateway.stream.stream import Stream
from streaming.engines.engine_set import EngineSet
from tests.engines import SIZE
from tests.serve_app import serving
from tests.server.client import HttpClient
from tests.server.gateway_calls import load
from tests.server.peer import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURES = 60


class Gateway:
    """The whole gateway on a real Triton with tiny engines, in this process: its raw pictures can be seen."""

    def __init__(self, services: Services, client: HttpClient) -> None:
        self.services = services
        self.client = client

    async def stream(self, parameters: dict[str, Any]) -> Stream:
        return await self.services.streams.create(parameters=parameters, kept=True)

    async def call(self, method: str, path: str, status: int, body: Any = None) -> Any:
        answer = await self.client.call(method, path, json_body=body)
        assert answer.status == status, f"{method} {path}: {answer.status} {answer.text}"
        return answer.json() if answer.body else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    exported_engines: tuple[Path, EngineSet], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    env = {
        "WANSTREAM_HOME": str(tmp_path_factory.mktemp("replayed")),
        "WANSTREAM_ENGINES_DIR": str(exported_engines[0] / "engines"),
        "WANSTREAM_DEMO": "off",
        "WANSTREAM_OSC": "off",
    }
    config = Config.from_env(env)
    config.directories.create()
    app = create_app(config, make_serving(config, engine_sets(config)))
    async with serving(app) as client:
        height, width = SIZE
        await load(client, "longlive", {"height": height, "width": width}, within_s=60)
        yield Gateway(app.extensions["wanstream"], client)


class Watch:
    """Looks at a stream; hashes of its raw pictures, as the pipeline made them."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.hashes: list[str] = []
        self._sink = stream.output.join()
        self._task = asyncio.create_task(self._run())
        stream.begin()

    async def shown(self, count: int) -> None:
        await until(lambda: len(self.hashes) >= count, 60, f"{count} pictures")

    async def close(self) -> list[str]:
        """The hashes. Asserts that no picture was missed."""
        self._sink.close()
        await self._task
        assert (self._sink.frames_dropped, self.stream.output.frames_dropped) == (0, 0)
        return self.hashes

    async def _run(self) -> None:
        while (picture := await self._sink.next_picture()) is not None:
            if not picture.repeated:
                self.hashes.append(hashlib.sha256(picture.image.tobytes()).hexdigest())


async def test_a_replay_by_the_chunk_gives_the_same_pictures(gateway: Gateway) -> None:
    blend = [{"text": "a bird", "weight": 1.0}, {"text": "a boat", "weight": 3.0}]
    first = await gateway.stream({"prompts": "a boat", "base_seed": 7, "recording": True})
    watch = Watch(first)
    await watch.shown(10)
    await first.update({"prompts": blend})
    await watch.shown(20)
    await first.update({"denoising_step_list": [1000, 500], "manage_cache": False})
    await watch.shown(30)
    await first.update({"transition": {"target_prompts": "a house", "num_steps": 3}})
    await watch.shown(PICTURES)
    take = (await gateway.call("POST", f"/api/v1/streams/{first.id}/recordings/stop", 200))["take"]
    recorded = (await watch.close())[:PICTURES]
    await first.close()

    second = await gateway.stream({"prompts": "a storm", "base_seed": 1})
    path = f"/api/v1/streams/{second.id}/replay"
    answer = await gateway.call("POST", path, 202, {"take": take})
    watch = Watch(second)
    await watch.shown(PICTURES)
    replayed = (await watch.close())[:PICTURES]
    await second.close()

    assert answer == {"status": "replaying", "lines": answer["lines"], "errors": []}
    assert len(set(recorded)) > 30
    assert replayed == recorded
