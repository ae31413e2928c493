"""A server whose memory has no room for the text encoder beside the other engines."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.onnx.store import EngineStore
from gateway.serving.memory import fit
from streaming.engines.engine_set import EngineSet
from streaming.engines.memory_plan import IN_PROCESS, memory_plan, read_manifests
from streaming.specs import LONGLIVE
from tests.engines import SIZE
from tests.server.gateway_calls import load, session_parameters, sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

MB = 1_000_000
BEGAN_AGAIN = re.compile(r"Chunk \d+ begins again")


@pytest.fixture
def server(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Iterator[ServerProcess]:
    root, engines = exported_engines
    assert LONGLIVE.loop is not None
    manifests = read_manifests(EngineStore(root / "engines").models, engines.engines(SIZE))
    others = {name: found for name, found in manifests.items() if name != engines.text_encoder}
    least = memory_plan(engines, others, LONGLIVE.loop, SIZE, IN_PROCESS).total()
    limit_mb = 1 + least // MB
    assert fit(engines, manifests, LONGLIVE.loop, SIZE, IN_PROCESS, limit_mb * MB).make_room
    env = {
        "WANSTREAM_ENGINES_DIR": str(root / "engines"),
        "WANSTREAM_MEMORY_LIMIT_MB": str(limit_mb),
    }
    process = ServerProcess("gateway", tmp_path, env, ["-N"])
    yield process
    process.stop(within_s=30)


async def test_new_prompts_at_any_moment_of_a_chunk_are_taken(server: ServerProcess) -> None:
    await load(server.client, LONGLIVE.id, within_s=60)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "a red ball"})
        await peer.wait_frames(12, within_s=60)
        for number in range(10):
            text = f"prompt {number} of {time.time_ns()}"  # nobody has encoded it
            peer.send({"prompts": [{"text": text, "weight": 1.0}]})
            await peer.wait_frames(5 + number, within_s=60)

        async def taken() -> bool:
            return (await session_parameters(server.client))["prompts"] == [{"text": text, "weight": 1.0}]

        await until(taken, 30, "the last prompt is in force")
        await peer.wait_frames(24, within_s=60)
        (metrics,) = (await sessions(server.client)).values()
        tail = (await server.client.call("GET", "/api/v1/logs/tail?lines=1000")).json()["lines"]

        assert [line for line in tail if BEGAN_AGAIN.search(line)], "no prompt came in the middle of a chunk"
        assert metrics["failed_chunks"] == 0
        assert {m["type"] for m in peer.messages} & {"parameter_error", "stream_stopped"} == set()
        assert (await session_parameters(server.client))["prompts"] == [{"text": text, "weight": 1.0}]
