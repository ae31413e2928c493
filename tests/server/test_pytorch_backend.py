"""Backend `pytorch` inside the real Triton, in float32 on the CPU: the reference's numbers, and streams."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.utils import InferenceServerException

from export.pytorch.pipeline import load_pipeline
from gateway.embedded.server import EmbeddedTriton
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.load_plan import TorchPlan
from streaming.engines.served import with_choices
from streaming.specs import SPECS
from tests.checkpoints import torch_load_plan, write_small
from tests.engines import SIZE
from tests.golden.case import GoldenCase
from tests.golden.exported_cases import exported_cases
from tests.server.stream_comparison import ServedStream, assert_like_in_process
from tests.server.test_served_golden import SERVED_STREAMS
from tests.server.triton_fixtures import ModelClient, running_triton, write_pipeline

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

GOLDEN = "golden"
GOLDEN_MODEL = """
from tests.server.golden_pipeline import GoldenPipeline
from streaming.triton.triton_model import StreamingModel

class TritonPythonModel(StreamingModel):
    pipeline = GoldenPipeline
"""
# With what a load may choose, so that the memory bank is full and chooses among its frames early.
CHOICES: dict[str, dict[str, int | bool]] = {
    "reward-forcing": {"sink_ema_float32": True},
    "memflow": {"record_interval": 1},
}
BOAT, BIRD = ([{"text": text, "weight": 1.0}] for text in ("a boat", "a bird"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("checkpoints") / "models")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTriton]:
    repository = tmp_path_factory.mktemp("repository")
    write_pipeline(repository, GOLDEN, GOLDEN_MODEL)
    async with running_triton(repository) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def golden_model(triton: EmbeddedTriton) -> AsyncIterator[ModelClient]:
    async with ModelClient(triton, GOLDEN) as client:
        await client.load()
        await client.start(1)
        yield client
        await client.unload()


@pytest.mark.parametrize("served_case", [*exported_cases(), *SERVED_STREAMS], ids=str)
async def test_the_reference_is_reproduced(served_case: GoldenCase, golden_model: ModelClient) -> None:
    """The networks alone, and a stream of every pipeline through its whole loop."""
    (response,) = [r for r in await golden_model.generate(1, case=str(served_case)) if r.frames.size]

    assert response.frames.shape[2] > 0  # so many tensors were compared


@pytest.mark.parametrize("pipeline", TRANSFORMER_FILES)
async def test_a_checkpoint_streams_whoever_else_watches(
    pipeline: str, models: Path, triton: EmbeddedTriton
) -> None:
    """Text, another prompt, then the camera; and once more, exactly, while somebody else takes turns."""
    spec = with_choices(SPECS[pipeline], CHOICES.get(pipeline, {}))
    video = np.random.default_rng(0).integers(0, 255, (13, *SIZE, 3), np.uint8)
    chunks: list[dict[str, Any]] = [{"prompts": BOAT, "input_mode": "text", "denoising_step_list": [500]}]
    chunks += [{}, {"prompts": BIRD}, {"input_mode": "video"}]
    others: list[dict[str, Any]] = [chunks[0] | {"prompts": BIRD, "input_mode": "video", "base_seed": 5}]
    others += [{}, {"input_mode": "text"}, {"prompts": BOAT}]
    plan = torch_load_plan(models, pipeline, loop=CHOICES.get(pipeline, {}))
    local = load_pipeline(spec, plan).open_stream()

    async with ModelClient(triton, pipeline) as client:
        await client.load(plan.as_parameters())
        alone = await assert_like_in_process(ServedStream(client, 1, video), local, chunks, SIZE)
        one, other = ServedStream(client, 2, video), ServedStream(client, 3, video[::-1])
        for changes, their_changes, expected in zip(chunks, others, alone, strict=True):
            theirs = await other.next(their_changes)
            np.testing.assert_array_equal(await one.next(changes), expected)
            assert theirs.shape != expected.shape or not np.array_equal(theirs, expected)
        await client.unload()


async def test_any_size_of_picture_and_bfloat16_too(models: Path, triton: EmbeddedTriton) -> None:
    """A portrait picture; nothing was exported for it."""
    size = (80, 64)
    plan = torch_load_plan(
        models,
        "longlive",
        height=size[0],
        width=size[1],
        pytorch=TorchPlan(checkpoints=models, vae_type="wan", precision="bf16", text_precision="bf16"),
    )
    async with ModelClient(triton, "longlive") as client:
        await client.load(plan.as_parameters())
        stream = ServedStream(client, 1, np.zeros((12, *size, 3), np.uint8))
        pictures = await stream.next({"prompts": BOAT, "denoising_step_list": [1000, 500]})
        await client.unload()

    assert pictures.shape == (9, *size, 3)
    assert pictures.std() > 5


async def test_what_is_missing_is_said_with_the_remedy(models: Path, triton: EmbeddedTriton) -> None:
    on_gpu = TorchPlan(checkpoints=models, vae_type="wan", precision="bf16", device="cuda:0")
    no_tiny = TorchPlan(checkpoints=models, vae_type="tae")
    async with ModelClient(triton, "longlive") as client:
        with pytest.raises(InferenceServerException, match=r"finds no GPU .* pip install .* torch"):
            await client.load(torch_load_plan(models, "longlive", pytorch=on_gpu).as_parameters())
        with pytest.raises(InferenceServerException, match=r"taew2_1\.pth' does not exist"):
            await client.load(torch_load_plan(models, "longlive", pytorch=no_tiny).as_parameters())
