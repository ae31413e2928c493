"""Pipelines on engines that are Triton models: the pictures are those of engines in this process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton_aio

from export.onnx.store import EngineStore
from gateway.embedded.server import EmbeddedTriton
from streaming.engines.engine_set import EngineSet, read_engine_set
from streaming.engines.served import InProcess, open_model, with_choices
from streaming.memory.plan import IN_PROCESS, memory_plan, read_manifests
from streaming.specs import SPECS
from streaming.triton.model_pipeline import ModelPipeline, ModelStream
from tests.engines import SIZE, load_plan
from tests.server.stream_comparison import ServedStream, assert_like_in_process
from tests.server.triton_fixtures import ModelClient, running_triton

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

# With what a load may choose, so that the memory bank is full and chooses among its frames early.
PIPELINES: dict[str, dict[str, int | bool]] = {
    "streamdiffusionv2": {},
    "krea-realtime-video": {},
    "reward-forcing": {"sink_ema_float32": True},
    "memflow": {"record_interval": 1},
}
KEPT_BESIDE_THE_CACHE = ("reward-forcing", "memflow")
BOAT, BIRD = ([{"text": text, "weight": 1.0}] for text in ("a boat", "a bird"))


@pytest.fixture(scope="module")
def store(all_engines: Path) -> EngineStore:
    return EngineStore(all_engines / "engines")


@pytest.fixture(scope="module")
def sets(store: EngineStore) -> dict[str, EngineSet]:
    found = map(read_engine_set, store.sets.iterdir())
    return {engines.pipeline: engines for engines in found}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(store: EngineStore, sets: dict[str, EngineSet]) -> AsyncIterator[EmbeddedTriton]:
    """A server with the engines of all these pipelines."""
    async with running_triton(store.models) as server:
        client = triton_aio.InferenceServerClient(server.grpc_url)
        names = {name for pipeline in PIPELINES for name in sets[pipeline].engines()}
        await asyncio.gather(*(client.load_model(name) for name in names))
        await client.close()
        yield server


def stream_in_process(pipeline: str, store: EngineStore, engines: EngineSet) -> ModelStream:
    spec = with_choices(SPECS[pipeline], PIPELINES[pipeline])
    model = open_model(store.sets / engines.name, spec, InProcess(store.models))
    stream = ModelPipeline(spec, model, spec.base_seed).open_stream()
    assert isinstance(stream, ModelStream)
    return stream


@pytest.mark.parametrize("pipeline", PIPELINES)
async def test_a_served_stream_makes_the_pictures_of_one_in_this_process_whoever_else_watches(
    pipeline: str, store: EngineStore, sets: dict[str, EngineSet], triton: EmbeddedTriton
) -> None:
    """Until the window has moved on and the bank is full, then another prompt, then the camera.

    Then once more, exactly, while somebody with another prompt, seed and mode takes turns.
    """
    video = np.random.default_rng(0).integers(0, 255, (12, *SIZE, 3), np.uint8)
    chunks: list[dict[str, Any]] = [{"prompts": BOAT, "input_mode": "text", "denoising_step_list": [500]}]
    chunks += [{}, {}, {}, {}, {"prompts": BIRD}, {}, {"input_mode": "video"}, {}]
    others: list[dict[str, Any]] = [chunks[0] | {"prompts": BIRD, "input_mode": "video", "base_seed": 5}]
    others += [{}, {}, {"prompts": BOAT}, {}, {"input_mode": "text"}, {}, {}, {}]
    plan = load_plan(store, sets[pipeline], backend="triton", loop=PIPELINES[pipeline])

    async with ModelClient(triton, pipeline) as client:
        await client.load(plan.as_parameters())
        local = stream_in_process(pipeline, store, sets[pipeline])
        alone = await assert_like_in_process(ServedStream(client, 1, video), local, chunks, SIZE)
        one, other = ServedStream(client, 2, video), ServedStream(client, 3, video[::-1])
        for changes, their_changes, expected in zip(chunks, others, alone, strict=True):
            theirs = await other.next(their_changes)
            np.testing.assert_array_equal(await one.next(changes), expected)
            assert theirs.shape != expected.shape or not np.array_equal(theirs, expected)
        await client.unload()


@pytest.mark.parametrize("pipeline", KEPT_BESIDE_THE_CACHE)
async def test_the_plan_counts_what_is_kept_beside_the_cache(
    pipeline: str, store: EngineStore, sets: dict[str, EngineSet]
) -> None:
    stream = stream_in_process(pipeline, store, sets[pipeline])
    loop = with_choices(SPECS[pipeline], PIPELINES[pipeline]).loop
    assert loop is not None
    manifests = read_manifests(store.models, sets[pipeline].engines())
    for _ in range(5):
        parameters = {"prompts": BOAT, "denoising_step_list": [500]}
        for _ in stream.next_chunk(parameters, None, lambda: False):
            pass

    session, plan = stream.session, memory_plan(sets[pipeline], manifests, loop, placement=IN_PROCESS)
    sink = session.kv.sink.frames if session.kv.sink is not None else ()
    blocks = {id(b.kv): b.kv for layer in session.bank.blocks for b in layer}
    kept = [*(frame for layer in sink for frame in layer), *blocks.values()]
    kept += [block.kv for block in session.bank.pending if id(block.kv) not in blocks]
    assert plan.session["KV cache"] == sum(layer.nbytes for layer in session.kv.slots.layers)
    planned = plan.session["averaged sink"] + plan.session["memory bank"]
    assert 0 < sum(frame.nbytes for frame in kept) <= planned
