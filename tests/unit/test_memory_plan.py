"""What the plan counts is what a loaded model really holds, and a load that cannot fit is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from export.onnx.store import EngineStore
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import BuildOptions, TensorRTBuild
from streaming.engines.served import InProcess, open_model
from streaming.memory.plan import (
    GPU,
    IN_PROCESS,
    MODEL_PROCESSES,
    DoesNotFitError,
    MemoryPlan,
    activation_bytes,
    memory_plan,
    read_manifests,
)
from streaming.specs import LONGLIVE
from streaming.triton.model_pipeline import ModelPipeline, ModelStream
from tests.engines import SIZE

assert LONGLIVE.loop is not None
LOOP = LONGLIVE.loop
FIXED = MemoryPlan(
    name="krea",
    height=512,
    width=512,
    placement=GPU,
    weights={"transformer": 30_000_000_000, "text_kv": 1_000_000_000},
    buffers=9_000_000_000,
    activations=2_000_000_000,
    pool=5_000_000_000,
    working=0,
    overhead=1_000_000_000,
    session={"KV cache": 2_500_000_000, "cross attention": 400_000_000},
)


@pytest.fixture(scope="module")
def store(exported_engines: tuple[Path, EngineSet]) -> EngineStore:
    return EngineStore(exported_engines[0] / "engines")


@pytest.fixture(scope="module")
def plan(store: EngineStore, exported_engines: tuple[Path, EngineSet]) -> MemoryPlan:
    engines = exported_engines[1]
    return memory_plan(engines, read_manifests(store.models, engines.engines()), LOOP, placement=IN_PROCESS)


def size_of(tensors: tuple[Tensor, ...] | None) -> int:
    assert tensors, "nothing is kept"
    return sum(tensor.nbytes for tensor in tensors)


def test_the_caches_of_a_session_are_those_of_a_stream(
    plan: MemoryPlan, store: EngineStore, exported_engines: tuple[Path, EngineSet]
) -> None:
    model = open_model(store.sets / exported_engines[1].name, LONGLIVE, InProcess(store.models))
    stream = ModelPipeline(LONGLIVE, model, 42).open_stream()
    assert isinstance(stream, ModelStream)

    video = np.zeros((12, *SIZE, 3), np.uint8)
    request = {"prompts": "a", "input_mode": "video", "denoising_step_list": [500]}
    for _ in stream.next_chunk(request, video, lambda: False):
        pass

    session = stream.session
    kept = size_of(session.encoder_caches) + size_of(session.decoder_caches)
    assert plan.session["KV cache"] == size_of(session.kv.slots.layers)
    assert plan.session["cross attention"] == size_of(session.conditions.cross_kv)
    assert plan.session["VAE caches"] == kept
    assert plan.session["latents and pictures"] >= session.clean.nbytes


def test_weights_are_the_files_of_the_engines(plan: MemoryPlan, store: EngineStore) -> None:
    files = {
        name: sum(p.stat().st_size for p in store.engine(name).glob("model.onnx*")) for name in plan.weights
    }

    assert plan.weights == files
    assert len(files) == 7


def test_an_engine_that_is_not_loaded_is_not_counted(
    plan: MemoryPlan, store: EngineStore, exported_engines: tuple[Path, EngineSet]
) -> None:
    engines = exported_engines[1]
    others = [name for name in engines.engines() if name != engines.text_encoder]

    without = memory_plan(engines, read_manifests(store.models, tuple(others)), LOOP, placement=IN_PROCESS)

    saved = plan.weights[engines.text_encoder] + IN_PROCESS.engine_bytes
    assert without.per_session == plan.per_session
    assert without.shared <= plan.shared - saved


def test_engines_in_one_process_take_less_than_in_processes_of_their_own(
    plan: MemoryPlan, store: EngineStore, exported_engines: tuple[Path, EngineSet]
) -> None:
    engines = exported_engines[1]
    manifests = read_manifests(store.models, engines.engines())

    apart = memory_plan(engines, manifests, LOOP, placement=MODEL_PROCESSES)

    assert (apart.weights, apart.per_session) == (plan.weights, plan.per_session)
    assert apart.overhead - plan.overhead >= len(manifests) * 90_000_000
    assert apart.activations > plan.activations  # one engine runs at a time, and keeps nothing


def test_the_text_names_every_part_and_the_sum(plan: MemoryPlan) -> None:
    text = "\n".join(plan.lines())

    assert f"{SIZE[0]}x{SIZE[1]}" in text
    assert {what for what, _ in plan.parts() if what not in text} == set()
    assert plan.total() == sum(size for _, size in plan.parts())


def test_a_load_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        FIXED.check(24_000_000_000)

    text = str(refusal.value)
    for part in (
        "512x512",
        "50.9 GB of GPU memory",
        "24.0 GB are free",
        "weights 31.0 GB",
        "KV cache 2.5 GB",
    ):
        assert part in text
    assert "second copies" not in text  # nothing is said about what takes nothing


@given(free=st.integers(0, 200_000_000_000))
def test_as_many_sessions_as_are_promised_fit_and_not_one_more(free: int) -> None:
    sessions = FIXED.sessions_in(free)

    if sessions:
        FIXED.check(free, sessions)
    with pytest.raises(DoesNotFitError):
        FIXED.check(free, sessions + 1)


def test_a_built_plan_tells_its_activations(
    store: EngineStore, exported_engines: tuple[Path, EngineSet]
) -> None:
    manifest = store.verified(exported_engines[1].transformer, hashes=False)
    build = TensorRTBuild(
        engine_set="",
        plan=manifest.files[0],
        version="10",
        gpu="-",
        compute_capability="9.0",
        driver="-",
        options=BuildOptions(),
        parity=None,
        activation_bytes=123,
    )

    assert activation_bytes(manifest.model_copy(update={"tensorrt": build})) == 123
    assert activation_bytes(manifest) > 0
