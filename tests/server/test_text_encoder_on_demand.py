"""A server whose memory has no room for the text encoder beside the other engines."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.onnx.store import EngineStore
from streaming.engines.engine_set import read_engine_set
from streaming.memory.fit import fit
from streaming.memory.plan import IN_PROCESS, memory_plan, read_manifests
from streaming.specs import STREAMDIFFUSIONV2, TEXT, OnPromptChange
from tests.engines import SIZE
from tests.server.gateway_calls import load, session_parameters, sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

MB = 1_000_000
SLOW = {"denoising_step_list": list(range(1000, 0, -100))}  # most of a chunk is before its first picture
BEGAN_AGAIN = re.compile(r"Chunk \d+ begins again")


@pytest.fixture
def server(all_engines: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """Its pipeline goes on with the caches that it has: one that makes them anew could do without."""
    store, loop = EngineStore(all_engines / "engines"), STREAMDIFFUSIONV2.loop
    assert loop is not None
    assert loop.on_prompt_change is OnPromptChange.KEEP
    sets = map(read_engine_set, store.sets.iterdir())
    engines = next(found for found in sets if found.pipeline == STREAMDIFFUSIONV2.id)
    manifests = read_manifests(store.models, engines.engines(SIZE))
    others = {name: found for name, found in manifests.items() if name != engines.text_encoder}
    limit_mb = 1 + memory_plan(engines, others, loop, SIZE, IN_PROCESS).total() // MB
    assert fit(engines, manifests, loop, SIZE, IN_PROCESS, limit_mb * MB).make_room
    env = {"WANSTREAM_ENGINES_DIR": str(store.root), "WANSTREAM_MEMORY_LIMIT_MB": str(limit_mb)}
    process = ServerProcess("gateway", tmp_path, env, ["-N"])
    yield process
    process.stop(within_s=30)


async def test_new_prompts_at_any_moment_of_a_chunk_are_taken(server: ServerProcess) -> None:
    await load(server.client, STREAMDIFFUSIONV2.id, within_s=60)
    async with Peer(server.client) as peer:
        await peer.connect({"input_mode": TEXT, "prompts": "a red ball", **SLOW})
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
