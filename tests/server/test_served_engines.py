"""Exported engines, served by the embedded Triton: the same numbers as everywhere else."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from export.graphs.signature import Signature
from export.onnx.jobs import components
from export.onnx.onnx_export import random_inputs
from export.onnx.repository import config_text
from export.onnx.run import plan
from export.onnx.store import EngineStore
from export.pytorch.engine import ModuleEngine
from gateway.embedded.server import EmbeddedTriton
from streaming.engines.engine import Engine, TritonEngine
from streaming.engines.engine_config import engine_config
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import MANIFEST, ONNX_FILE
from streaming.engines.served import PROMPTS, InProcess, open_model
from streaming.specs import SPECS
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.sessions import Images
from tests.engines import SIZE, load_plan, small_request
from tests.server.grpc_models import GrpcModels
from tests.server.stream_comparison import ServedStream, assert_like_in_process
from tests.server.triton_fixtures import ModelClient, override, running_triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONGLIVE = "longlive"
TENSORRT_HALF = "tensorrt_half"  # bfloat16 and a profile for each of two sizes
TENSORRT, DAMAGED, MOVED = "tensorrt_variant", "damaged", "moved"
SIZES = {"F": 3, "T": 60, "S+T": 140}  # of a transformer at 64x80 with a cache of four latent frames
PLACEMENTS = ["torch", "ort", "served"]
BACKENDS = ["onnxruntime", "triton"]
FIRST_CHUNK = 9  # pictures of the three latent frames that begin a stream; later chunks have 12


def load_parameters(store: EngineStore, engines: EngineSet, **changes: Any) -> dict[str, str]:
    """What the gateway says when it loads the pipeline."""
    return load_plan(store, engines, **changes).as_parameters()


def write_other_models(repository: Path, store: EngineStore, engines: EngineSet) -> Path:
    """TensorRT variants of engines, an engine whose weights are cut short, and one under another's name."""
    manifest = store.verified(engines.transformer)
    half = {"inputs": manifest.inputs, "outputs": manifest.outputs}
    for part, tensors in half.items():
        half[part] = tuple(tensor.model_copy(update={"dtype": "bfloat16"}) for tensor in tensors)
    variants = {
        TENSORRT: manifest,
        TENSORRT_HALF: manifest.model_copy(update=half | {"profiles": manifest.profiles * 2}),
    }
    for name, variant in variants.items():
        named = variant.model_copy(update={"name": name})
        (repository / name / "1").mkdir(parents=True)
        text = config_text(engine_config(named, "tensorrt", gpus=(0, 1)))
        (repository / name / "config.pbtxt").write_text(text)
        (repository / name / "1" / "model.plan").write_bytes(b"no plan: only the configuration is tested")
    damaged = repository / DAMAGED
    shutil.copytree(store.models / engines.text_kv, damaged)
    text = (damaged / "config.pbtxt").read_text().replace(engines.text_kv, DAMAGED)
    (damaged / "config.pbtxt").write_text(text)
    (damaged / "1" / f"{ONNX_FILE}.data").write_bytes(b"short")
    manifest = store.verified(engines.text_kv).model_copy(update={"name": DAMAGED})
    (damaged / "1" / MANIFEST).write_text(manifest.model_dump_json())
    moved = repository / MOVED
    shutil.copytree(store.models / engines.text_kv, moved)
    (moved / "config.pbtxt").write_text(text.replace(DAMAGED, MOVED))
    return repository


@pytest.fixture(scope="module")
def store(exported_engines: tuple[Path, EngineSet]) -> EngineStore:
    return EngineStore(exported_engines[0] / "engines")


@pytest.fixture(scope="module")
def engine_set(exported_engines: tuple[Path, EngineSet]) -> EngineSet:
    return exported_engines[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(
    store: EngineStore, engine_set: EngineSet, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedTriton]:
    """A server with all engines of the set loaded; the pipeline itself is not."""
    own = write_other_models(tmp_path_factory.mktemp("other"), store, engine_set)
    async with running_triton(store.models, own) as server:
        client = triton_aio.InferenceServerClient(server.grpc_url)
        await asyncio.gather(*(client.load_model(name) for name in engine_set.engines()))
        await client.close()
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def api(triton: EmbeddedTriton) -> AsyncIterator[triton_aio.InferenceServerClient]:
    client = triton_aio.InferenceServerClient(triton.grpc_url)
    yield client
    await client.close()


def module_of(name: str, models: Path) -> tuple[Engine, Signature]:
    """The graph that engine `name` was exported from, as a PyTorch module."""
    parts = components(small_request(models))
    planned = next(engine for part in parts for engine in plan(part) if engine.name == name)
    module, signature = planned.graph.build(planned.component.load())
    return ModuleEngine(module, signature), signature


@pytest.mark.parametrize("kind", ["text_encoder", "text_kv", "transformer"])
@pytest.mark.parametrize("placement", PLACEMENTS)
async def test_an_engine_gives_the_outputs_that_are_asked_for_wherever_it_runs(
    kind: str,
    placement: str,
    exported_engines: tuple[Path, EngineSet],
    store: EngineStore,
    triton: EmbeddedTriton,
) -> None:
    root, engines = exported_engines
    name = getattr(engines, kind)
    reference, signature = module_of(name, root / "models")
    manifest = store.verified(name)
    engine: Engine = reference
    if placement == "ort":
        engine = InProcess(store.models)(name)
    elif placement == "served":
        engine = TritonEngine(manifest, GrpcModels(triton.grpc_url))
    sizes = SIZES | {"B": 2}
    inputs = dict(zip(reference.inputs, random_inputs(signature.inputs, sizes), strict=True))
    wanted = engine.outputs[::-1][:2]

    results = await asyncio.to_thread(engine.run, inputs, wanted)

    expected = reference.run(inputs, wanted)
    assert tuple(results) == wanted
    assert (engine.inputs, engine.outputs) == (reference.inputs, reference.outputs)
    for output in wanted:
        torch.testing.assert_close(results[output], expected[output], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_served_stream_makes_the_pictures_of_one_in_this_process(
    backend: str, store: EngineStore, engine_set: EngineSet, triton: EmbeddedTriton
) -> None:
    """Three text chunks, the last under another prompt, then the camera: every engine is used."""
    spec = SPECS[LONGLIVE]
    model = open_model(store.sets / engine_set.name, spec, InProcess(store.models))
    local = ModelPipeline(spec, model, spec.base_seed).open_stream()
    video = np.random.default_rng(0).integers(0, 255, (13, *SIZE, 3), np.uint8)
    chunks: list[dict[str, Any]] = [
        {"prompts": [{"text": "a fox", "weight": 1.0}], "input_mode": "text"},
        {},
        {"prompts": [{"text": "snow", "weight": 1.0}]},
        {"input_mode": "video", "noise_controller": False},
    ]

    async with ModelClient(triton, LONGLIVE) as client:
        await client.load(load_parameters(store, engine_set, backend=backend))
        await assert_like_in_process(ServedStream(client, 1, video), local, chunks, SIZE)
        await client.unload()


async def made_by(client: ModelClient, sequence: int, **changes: Any) -> Images:
    """The pictures of the next chunk, uint8 [T, H, W, 3]."""
    responses = await client.generate(sequence, **changes)
    return np.concatenate([response.frames for response in responses if response.frames.size])


async def test_sessions_of_one_server_make_what_each_makes_alone_and_a_cancelled_chunk_leaves_no_trace(
    store: EngineStore, engine_set: EngineSet, triton: EmbeddedTriton
) -> None:
    """Two viewers take turns while one of them gives up a chunk; then each of them again, alone."""
    viewers = {
        1: {"prompts": "a fox", "base_seed": 1, "denoising_step_list": [1000, 500]},
        2: {"prompts": "a deep blue sea", "base_seed": 2, "denoising_step_list": [1000]},
    }
    together: dict[int, list[Images]] = {number: [] for number in viewers}

    async with ModelClient(triton, LONGLIVE) as client:
        await client.load(load_parameters(store, engine_set))
        for number, parameters in viewers.items():
            await client.start(number, **parameters)
        for k in range(3):
            if k == 1:
                async for response in client.stream(1, client.command(1, prompts="x")):
                    if response.frames.size:
                        break  # the rest of the chunk is cancelled
            for number in viewers:
                changes = {"prompts": "snow"} if (number, k) == (1, 2) else {}
                together[number].append(await made_by(client, number, **changes))
        for number, parameters in viewers.items():
            await client.start(number + 10, **parameters)
            for k, expected in enumerate(together[number]):
                changes = {"prompts": "snow"} if (number, k) == (1, 2) else {}
                np.testing.assert_array_equal(await made_by(client, number + 10, **changes), expected)
        await client.unload()

    assert not np.array_equal(together[1][0], together[2][0])


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_text_encoder_on_demand_takes_turns_with_the_other_engines(
    backend: str, store: EngineStore, engine_set: EngineSet, triton: EmbeddedTriton
) -> None:
    """It is gone before and after a prompt; known prompts, in memory or on the disk, do not need it."""
    models, others = GrpcModels(triton.grpc_url), [*engine_set.engines()]
    others.remove(engine_set.text_encoder)
    prompt = {"prompts": f"a prompt that nobody has used with {backend}", "denoising_step_list": [1000]}

    async with ModelClient(triton, LONGLIVE) as client:
        await client.load(load_parameters(store, engine_set))
        await client.start(1, **prompt, base_seed=3)
        resident = await made_by(client, 1)
        await client.unload()
        shutil.rmtree(store.root / PROMPTS)
        models.unload(engine_set.text_encoder)
        await client.load(load_parameters(store, engine_set, backend=backend, make_room=tuple(others)))
        await client.start(2, **prompt, base_seed=3)
        on_demand = await made_by(client, 2)
        ready = [name for name in engine_set.engines() if models.is_ready(name)]
        hidden = store.models / engine_set.text_encoder
        hidden.rename(store.root / "hidden")  # from now on it cannot be loaded
        try:
            await client.start(3, **prompt, base_seed=3)
            from_cache = await made_by(client, 3)
        finally:
            (store.root / "hidden").rename(hidden)
        await client.unload()
    models.unload(engine_set.text_encoder)  # as the gateway does in case it is loaded; it is not
    models.load(engine_set.text_encoder)

    np.testing.assert_array_equal(on_demand, resident)
    np.testing.assert_array_equal(from_cache, resident)
    assert ready == others
    assert len(list((store.root / PROMPTS).glob("*.safetensors"))) == 1


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_prompt_in_the_middle_of_a_chunk_works_with_the_text_encoder_on_demand(
    backend: str, store: EngineStore, engine_set: EngineSet, triton: EmbeddedTriton
) -> None:
    """The transformer leaves the memory for the new prompt just after it was called with the same caches."""
    others = tuple(name for name in engine_set.engines() if name != engine_set.text_encoder)

    async with ModelClient(triton, LONGLIVE) as client:
        await client.load(load_parameters(store, engine_set, backend=backend, make_room=others))
        shutil.rmtree(store.root / PROMPTS, ignore_errors=True)
        for sequence in range(1, 11):
            later = {"prompts": f"another one with {backend}, {sequence}"}
            await client.start(sequence, prompts="the first", base_seed=3)
            async for response in client.stream(sequence, client.command(sequence)):
                if response.frames.size:
                    break  # the rest of the chunk is cancelled
            on_demand = await made_by(client, sequence, **later)
            if len(on_demand) == FIRST_CHUNK:
                break  # else the chunk had ended before it was cancelled
        await client.unload()
        GrpcModels(triton.grpc_url).load(engine_set.text_encoder)
        await client.load(load_parameters(store, engine_set, backend=backend))
        shutil.rmtree(store.root / PROMPTS, ignore_errors=True)
        await client.start(1, prompts="the first", base_seed=3)
        resident = await made_by(client, 1, **later)
        await client.unload()

    np.testing.assert_array_equal(on_demand, resident)


@pytest.mark.parametrize("variant", [TENSORRT, TENSORRT_HALF])
async def test_the_tensorrt_configuration_is_accepted_where_only_the_backend_is_missing(
    variant: str, api: triton_aio.InferenceServerClient
) -> None:
    reason = "unable to find backend library for backend 'tensorrt'"

    with pytest.raises(InferenceServerException, match=reason):
        await api.load_model(variant)


async def test_a_damaged_engine_is_not_served(api: triton_aio.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"is damaged: .* has 5 bytes, not"):
        await api.load_model(DAMAGED)


async def test_an_engine_under_another_name_is_not_served(
    engine_set: EngineSet, api: triton_aio.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException, match=f"holds engine '{engine_set.text_kv}', not '{MOVED}'"):
        await api.load_model(MOVED)


async def test_a_pipeline_whose_engine_is_not_loaded_names_it(
    store: EngineStore, engine_set: EngineSet, api: triton_aio.InferenceServerClient
) -> None:
    await api.unload_model(engine_set.text_kv)
    try:
        parameters = load_parameters(store, engine_set, backend="triton")
        with pytest.raises(
            InferenceServerException, match=f"Engine '{engine_set.text_kv}' is not loaded. Load the pipeline"
        ):
            await api.load_model(LONGLIVE, config=override(LONGLIVE, parameters))
    finally:
        await api.load_model(engine_set.text_kv)


async def test_a_failing_engine_says_why(engine_set: EngineSet, triton: EmbeddedTriton) -> None:
    models = GrpcModels(triton.grpc_url)
    wrong = {"prompt_embeds": np.zeros((1, 3, 16), np.float32)}
    reason = r"unexpected shape for input 'prompt_embeds'.*\[1,12,16\]"

    with pytest.raises(InferenceServerException, match=reason):
        await asyncio.to_thread(models.run, engine_set.text_kv, wrong, ["cross_kv_00"])
