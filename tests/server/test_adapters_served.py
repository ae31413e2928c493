"""LoRA files in the weights of what is served: the same pictures from engines, PyTorch, and Triton."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from export.onnx.store import EngineStore
from export.pytorch.pipeline import load_pipeline
from gateway.embedded.server import EmbeddedTriton
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.checkpoints.shapes import parameter_shapes
from streaming.engines.engine_set import EngineSet, read_engine_set
from streaming.engines.load_plan import LoadPlan, PlannedAdapter
from streaming.engines.served import served_pipeline
from streaming.specs import SPECS
from streaming.triton.sessions import Images, LoadContext
from tests.checkpoints import torch_load_plan
from tests.engines import SIZE, TRANSFORMER, load_plan
from tests.server.stream_comparison import ServedStream, assert_like_in_process
from tests.server.triton_fixtures import ModelClient, running_triton

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

CHUNK: dict[str, Any] = {
    "prompts": [{"text": "a boat", "weight": 1.0}],
    "input_mode": "text",
    "denoising_step_list": [500],
}
RANK = 4


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> PlannedAdapter:
    """Changes every linear layer of the small transformer, in kohya's names and 16 bit."""
    path = tmp_path_factory.mktemp("loras") / "style.safetensors"
    generator, tensors = torch.Generator().manual_seed(0), {}
    for key, shape in parameter_shapes(TRANSFORMER).items():
        if key.endswith(".weight") and len(shape) == 2:
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = (
                torch.randn(RANK, shape[1], generator=generator).half() * 0.3
            )
            tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], RANK, generator=generator).half() * 0.3
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return PlannedAdapter(path=path, name=path.name, scale=0.8)


@pytest.fixture(scope="module")
def store(all_engines: Path) -> EngineStore:
    return EngineStore(all_engines / "engines")


@pytest.fixture(scope="module")
def sets(store: EngineStore) -> dict[str, EngineSet]:
    found = [read_engine_set(directory) for directory in store.sets.iterdir()]
    return {engines.pipeline: engines for engines in found if engines.vae_type == "wan"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(store: EngineStore) -> AsyncIterator[EmbeddedTriton]:
    async with running_triton(store.models) as server:
        yield server


def first_chunk(plan: LoadPlan, pipeline: str) -> Images:
    """As the model in Triton makes it, in this process."""
    context = LoadContext(plan.as_parameters(), models=None, directory=Path())  # type: ignore[arg-type]
    stream = served_pipeline(SPECS[pipeline])(context).open_stream()
    return np.concatenate([images for images, _ in stream.next_chunk(CHUNK, None, lambda: False)])


def difference(one: Images, other: Images) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("pipeline", TRANSFORMER_FILES)
async def test_engines_and_pytorch_make_the_same_pictures_of_it(
    pipeline: str, store: EngineStore, sets: dict[str, EngineSet], adapter: PlannedAdapter, all_engines: Path
) -> None:
    """Of every pipeline, whichever of its layers are fused."""
    engines = load_plan(store, sets[pipeline], adapters=(adapter,))
    checkpoint = torch_load_plan(all_engines / "models", pipeline, adapters=(adapter,))

    by_engines, by_torch = first_chunk(engines, pipeline), first_chunk(checkpoint, pipeline)
    plain = first_chunk(load_plan(store, sets[pipeline]), pipeline)

    assert difference(by_engines, by_torch) <= 2
    assert difference(by_engines, plain) > 30


async def test_a_merged_adapter_is_served(
    store: EngineStore,
    sets: dict[str, EngineSet],
    adapter: PlannedAdapter,
    all_engines: Path,
    triton: EmbeddedTriton,
) -> None:
    checkpoint = torch_load_plan(all_engines / "models", "longlive", adapters=(adapter,))
    local = load_pipeline(SPECS["longlive"], checkpoint).open_stream()

    async with ModelClient(triton, "longlive") as client:
        await client.load(checkpoint.as_parameters())
        stream = ServedStream(client, 1, np.zeros((12, *SIZE, 3), np.uint8))
        await assert_like_in_process(stream, local, [CHUNK, {}], SIZE)
        await client.unload()
