"""Engines with bfloat16 inputs and outputs through Triton, as TensorRT serves them: numpy has no such type.

What runs the graphs here is ONNX's reference implementation, for ONNX Runtime has no bfloat16 on the CPU.
"""

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from export.onnx.jobs import DTYPES, components
from export.onnx.onnx_export import random_inputs
from export.onnx.run import plan
from export.onnx.store import EngineStore
from gateway.embedded.server import EmbeddedTriton
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import engine_directory
from streaming.engines.records import EngineError
from streaming.engines.served import InProcess, open_model
from streaming.specs import LONGLIVE
from streaming.triton.model_pipeline import ModelPipeline
from tests.engines import SIZE, load_plan, small_request
from tests.server.reference_engine import MODEL_SOURCE, ReferenceEngine, in_reference
from tests.server.triton_fixtures import ModelClient, running_triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = ["text_encoder", "text_kv", "transformer"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(
    bfloat16_engines: tuple[EngineStore, EngineSet], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedTriton]:
    """A server with the set's engines: those in bfloat16 run in the reference implementation."""
    store, engines = bfloat16_engines
    models = tmp_path_factory.mktemp("models")
    for name in engines.engines():
        shutil.copytree(store.models / name, models / name)
    for kind in KINDS:
        (engine_directory(models, getattr(engines, kind)) / "model.py").write_text(MODEL_SOURCE)
    async with running_triton(models) as server:
        client = triton_aio.InferenceServerClient(server.grpc_url)
        for name in engines.engines():
            await client.load_model(name)
        await client.close()
        yield server


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exported_file_computes_what_pytorch_does_in_bfloat16(
    kind: str, bfloat16_engines: tuple[EngineStore, EngineSet], exported_engines: tuple[Path, EngineSet]
) -> None:
    store, engines = bfloat16_engines
    name = getattr(engines, kind)
    parts = components(replace(small_request(exported_engines[0] / "models"), precision="bf16"))
    planned = next(engine for part in parts for engine in plan(part) if engine.name == name)
    module, signature = planned.graph.build(planned.component.load())
    engine = ReferenceEngine(store.engine(name))
    values = random_inputs(signature.inputs, planned.graph.example)
    typed = [
        value if spec.integer or spec.float32 else value.to(DTYPES["bf16"])
        for spec, value in zip(signature.inputs, values, strict=True)
    ]

    results = engine.run(dict(zip(engine.inputs, typed, strict=True)), engine.outputs)

    with torch.inference_mode():
        expected = module(**signature.arguments(typed))
    tensors = expected if isinstance(expected, tuple) else (expected,)
    for result, wanted in zip(results.values(), tensors, strict=True):
        assert result.dtype == wanted.dtype == torch.bfloat16
        # Two roundings of 8 bits; sums of other order in between.
        torch.testing.assert_close(result, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())


async def test_a_stream_of_served_bfloat16_engines_is_that_of_engines_in_this_process(
    bfloat16_engines: tuple[EngineStore, EngineSet], triton: EmbeddedTriton
) -> None:
    store, engines = bfloat16_engines
    place = in_reference(store.models, InProcess(store.models))
    model = open_model(store.sets / engines.name, LONGLIVE, place)
    stream = ModelPipeline(LONGLIVE, model, LONGLIVE.base_seed).open_stream()
    video = np.random.default_rng(0).integers(0, 255, (13, *SIZE, 3), np.uint8)
    chunks: list[tuple[dict[str, Any], Any]] = [
        ({"prompts": [{"text": "a fox", "weight": 1.0}], "input_mode": "text"}, None),
        ({"prompts": [{"text": "snow", "weight": 1.0}]}, None),
        ({"input_mode": "video", "noise_controller": False}, video),
    ]
    parameters: dict[str, Any] = {}

    assert model.dtype == torch.bfloat16
    async with ModelClient(triton, "longlive") as client:
        await client.load(load_plan(store, engines, backend="triton").as_parameters())
        await client.start(1)
        for changes, pictures in chunks:
            parameters |= changes
            responses = await client.generate(1, pictures, **parameters)
            expected = [images for images, _ in stream.next_chunk(parameters, pictures, lambda: False)]

            made = np.concatenate([response.frames for response in responses if response.frames.size])
            difference = np.abs(made.astype(int) - np.concatenate(expected).astype(int))
            assert difference.max() <= 1, f"{changes}: {difference.max()}"
            assert made.std() > 5  # not one colour: the comparison means something
        await client.unload()


async def test_onnx_runtime_refuses_bfloat16_and_says_what_to_export(
    bfloat16_engines: tuple[EngineStore, EngineSet],
) -> None:
    store, engines = bfloat16_engines
    message = "is bf16, which ONNX Runtime cannot run on the CPU. Export with --precision fp32"

    with pytest.raises(EngineError, match=message):
        InProcess(store.models)(engines.text_kv)
    async with running_triton(store.models) as server:
        client = triton_aio.InferenceServerClient(server.grpc_url)
        with pytest.raises(InferenceServerException, match=message):
            await client.load_model(engines.text_kv)
        await client.close()
