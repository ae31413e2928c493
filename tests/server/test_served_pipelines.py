"""Pipelines in the embedded Triton, from exported engines to pictures: the same as in this process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton_aio

from export.store import EngineStore
from gateway.embedded import EmbeddedTriton
from streaming.engine_set import ENGINE_SET, MODELS, EngineSet, read_engine_set
from streaming.memory_plan import CPU, memory_plan, read_manifests
from streaming.model_pipeline import ModelPipeline, ModelStream
from streaming.served import in_process, open_model, with_choices
from streaming.specs import SPECS
from tests.engines import SIZE
from tests.server.triton_fixtures import ModelClient, running_triton

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

# With what a load may choose, so that the memory bank is full and chooses among its frames early.
PIPELINES = {"reward-forcing": {"sink_ema_float32": "true"}, "memflow": {"record_interval": "1"}}
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
    model = open_model(store.sets / engines.name, spec, in_process(store.models))
    stream = ModelPipeline(spec, model, spec.base_seed).open_stream()
    assert isinstance(stream, ModelStream)
    return stream


@pytest.mark.parametrize("pipeline", PIPELINES)
async def test_a_served_stream_makes_the_pictures_of_one_in_this_process(
    pipeline: str, store: EngineStore, sets: dict[str, EngineSet], triton: EmbeddedTriton
) -> None:
    """Until the window has moved on and the bank is full, then another prompt, then the camera."""
    video = np.random.default_rng(0).integers(0, 255, (12, *SIZE, 3), np.uint8)
    changes: list[dict[str, Any]] = [{"prompts": BOAT, "input_mode": "text", "denoising_step_list": [500]}]
    changes += [{}, {}, {}, {}, {"prompts": BIRD}, {}, {"input_mode": "video"}, {}]
    given = {MODELS: str(store.models), ENGINE_SET: str(store.sets / sets[pipeline].name)}
    stream = stream_in_process(pipeline, store, sets[pipeline])
    parameters: dict[str, Any] = {}

    async with ModelClient(triton, pipeline) as client:
        await client.load(given | PIPELINES[pipeline])
        await client.start(1, **changes[0])
        for change in changes:
            parameters |= change
            pictures = video if parameters["input_mode"] == "video" else None
            responses = await client.generate(1, pictures, **change)
            expected = [images for images, _ in stream.next_chunk(parameters, pictures, lambda: False)]

            made = np.concatenate([response.frames for response in responses if response.frames.size])
            difference = np.abs(made.astype(int) - np.concatenate(expected).astype(int))
            assert made.shape[1:] == (*SIZE, 3)
            assert difference.max() <= 1, f"{change}: {difference.max()}"
            assert made.std() > 5  # not one colour: the comparison means something
        await client.unload()


@pytest.mark.parametrize("pipeline", PIPELINES)
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

    session, plan = stream.session, memory_plan(sets[pipeline], manifests, loop, placement=CPU)
    sink = session.kv.sink.frames if session.kv.sink is not None else ()
    blocks = {id(b.kv): b.kv for layer in session.bank.blocks for b in layer}
    kept = [*(frame for layer in sink for frame in layer), *blocks.values()]
    kept += [block.kv for block in session.bank.pending if id(block.kv) not in blocks]
    assert plan.session["KV cache"] == sum(layer.nbytes for layer in session.kv.slots.layers)
    assert 0 < sum(frame.nbytes for frame in kept) <= plan.session["frames kept beside it"]
