"""Which set of engines the gateway takes, and what it refuses before Triton is asked."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.onnx.run import export_pipeline
from export.onnx.store import EngineStore
from export.tensorrt.build import Build
from gateway.serving.engine_checks import checked_manifests, why_refused
from gateway.serving.engine_sets import EngineSets, FoundSet
from gateway.serving.interface import Combination, ServingError
from gateway.serving.load_plans import plan_load
from streaming.engines.engine_set import SET, EngineSet, read_engine_set
from streaming.engines.load_plan import LoadPlan
from streaming.engines.manifest import MANIFEST, ONNX_FILE, PLAN_FILE, EngineManifest, read_manifest
from streaming.engines.records import EngineError
from streaming.specs import LONGLIVE
from tests.engines import SIZE, small_request
from tests.unit.test_engine_build import H100, Gpu

PARAMS: dict[str, Any] = {"height": SIZE[0], "width": SIZE[1], "vae_type": "wan", "base_seed": 42}


@pytest.fixture
def store(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> EngineStore:
    """A copy of the small set, real weights as far as anybody knows."""
    shutil.copytree(exported_engines[0] / "engines", tmp_path / "engines")
    store = EngineStore(tmp_path / "engines")
    directory = next(store.sets.iterdir())
    engines = read_engine_set(directory).model_copy(update={"demo": False})
    (directory / SET).write_text(engines.model_dump_json())
    return store


def add_set(store: EngineStore, **changes: Any) -> str:
    """The same engines under the name of another set; returns the name."""
    first = sorted(store.sets.iterdir())[0]
    engines = read_engine_set(first).model_copy(update=changes)
    shutil.copytree(first, store.sets / engines.name)
    (store.sets / engines.name / SET).write_text(engines.model_dump_json())
    return engines.name


def found_name(store: EngineStore, on_cpu: bool, **params: Any) -> str:
    return EngineSets(store.root, on_cpu=on_cpu).find(LONGLIVE, PARAMS | params).content.name


def test_a_cpu_takes_float32_and_a_gpu_bfloat16(store: EngineStore) -> None:
    full = read_engine_set(next(store.sets.iterdir())).name
    half = add_set(store, name="another", precision="bf16")

    assert found_name(store, on_cpu=True) == full
    assert found_name(store, on_cpu=False) == half


def test_sets_are_read_again_only_when_they_change(
    store: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    sets = EngineSets(store.root, on_cpu=True)
    (store.sets / "zz_broken").mkdir()
    before = [sets.availability(LONGLIVE).supported_resolutions for _ in range(3)]
    warnings = len(caplog.records)

    bigger = read_engine_set(next(store.sets.glob("*/" + SET)).parent)
    other = tuple(vae.model_copy(update={"height": 2 * vae.height}) for vae in bigger.vae)
    name = add_set(store, name="another", vae=other)
    with_another = sets.availability(LONGLIVE).supported_resolutions
    shutil.rmtree(store.sets / name)

    assert before == [[SIZE]] * 3
    assert warnings == 1  # of the broken one
    assert with_another == [SIZE, (2 * SIZE[0], SIZE[1])] or with_another == [(2 * SIZE[0], SIZE[1]), SIZE]
    assert sets.availability(LONGLIVE).supported_resolutions == [SIZE]


def test_manifests_are_read_again_only_when_they_change(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def read(directory: Path) -> EngineManifest:
        reads.append(directory)
        return read_manifest(directory)

    monkeypatch.setattr("gateway.serving.engine_sets.read_manifest", read)
    sets = EngineSets(store.root, on_cpu=True)
    name = read_engine_set(next(store.sets.iterdir())).transformer
    before = [sets.manifest(name) for _ in range(2)][-1]
    changed = before.model_copy(update={"form": "portable" if before.form == "cpu" else "cpu"})
    store.write_file(store.engine(name) / MANIFEST, changed.model_dump_json().encode())

    assert sets.manifest(name) == changed
    assert len(reads) == 2


def test_a_demonstration_is_the_last_choice(store: EngineStore) -> None:
    full = read_engine_set(next(store.sets.iterdir())).name
    add_set(store, name="a_demo", demo=True, precision="bf16")

    assert found_name(store, on_cpu=False) == full


def test_quantized_engines_are_taken_when_they_are_asked_for(store: EngineStore) -> None:
    full = read_engine_set(next(store.sets.iterdir())).name
    with pytest.raises(ServingError, match=r"with fp8_e4m3fn\. Make them: wanstream-export longlive --pre"):
        found_name(store, on_cpu=False, quantization="fp8_e4m3fn")
    quantized = add_set(store, name="quantized", precision="fp8")

    assert found_name(store, on_cpu=False) == full
    assert found_name(store, on_cpu=False, quantization="fp8_e4m3fn") == quantized


RUNTIME = {"lora_merge_mode": "runtime_peft"}


def test_engines_that_take_adapters_are_taken_when_they_are_asked_for_and_not_otherwise(
    store: EngineStore,
) -> None:
    full = read_engine_set(next(store.sets.iterdir())).name
    with pytest.raises(
        ServingError, match=r"take no LoRA files .* Run: wanstream-export longlive --adapters"
    ):
        found_name(store, on_cpu=True, **RUNTIME)
    before = EngineSets(store.root, on_cpu=True).availability(LONGLIVE).runtime_loras
    adapted = add_set(store, name="a_adapters", adapters=True)

    assert found_name(store, on_cpu=True) == full
    assert found_name(store, on_cpu=True, **RUNTIME) == adapted
    assert found_name(store, on_cpu=True, loras=[{"merge_mode": "runtime_peft"}]) == adapted
    assert found_name(store, on_cpu=True, loras=[{"merge_mode": "permanent_merge"}]) == full
    assert (before, EngineSets(store.root, on_cpu=True).availability(LONGLIVE).runtime_loras) == (False, True)
    with pytest.raises(ServingError, match=r"--size 96x96 --vae-type wan --adapters\."):
        found_name(store, on_cpu=True, height=96, width=96, **RUNTIME)


def test_only_what_one_set_has_goes_together(store: EngineStore) -> None:
    small = read_engine_set(next(store.sets.iterdir()))
    other = small.vae[0].model_copy(update={"height": 96, "width": 96})
    add_set(store, name="another", vae_type="tae", vae=(other,), precision="fp8")

    combinations = EngineSets(store.root, on_cpu=False).availability(LONGLIVE).combinations

    assert combinations == (
        Combination(*SIZE, "wan", None, vace=False),
        Combination(96, 96, "tae", "fp8_e4m3fn", vace=False),
    )


def planned(store: EngineStore, on_cpu: bool = True, **params: Any) -> LoadPlan:
    found = EngineSets(store.root, on_cpu=on_cpu).find(LONGLIVE, PARAMS)
    return plan_load(found, store.models, PARAMS | params, on_cpu=on_cpu)


def check(store: EngineStore, on_cpu: bool = True, **params: Any) -> None:
    """As a load does before it asks Triton."""
    plan = planned(store, on_cpu, **params)
    checked_manifests(read_engine_set(plan.engine_set), store.models, SIZE, plan.variant)


def cut(directory: Path) -> None:
    path = directory / f"{ONNX_FILE}.data"
    path.write_bytes(path.read_bytes()[:-1])


def make_half(directory: Path) -> None:
    manifest = read_manifest(directory).model_copy(update={"precision": "bf16"})
    (directory / MANIFEST).write_text(manifest.model_dump_json())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is damaged: .* bytes, not"),
        (lambda directory: shutil.rmtree(directory), "There is no engine in"),
        (lambda directory: (directory / ONNX_FILE).unlink(), "is incomplete: .* is missing"),
        (make_half, "is bf16, which ONNX Runtime cannot run on the CPU"),
    ],
    ids=["cut", "absent", "no graph", "bfloat16"],
)
def test_an_engine_that_cannot_run_is_refused(
    store: EngineStore, damage: Callable[[Path], None], message: str
) -> None:
    check(store)
    damage(store.engine(read_engine_set(next(store.sets.iterdir())).text_kv))

    with pytest.raises(EngineError, match=message):
        check(store)


def build(store: EngineStore, engine_set: str) -> Build:
    return Build(engine_set, store, lambda line: None, machine=H100, builder=Gpu(), compare=False)


def test_plans_are_for_a_triton_with_a_gpu(store: EngineStore) -> None:
    name = read_engine_set(next(store.sets.iterdir())).name
    build(store, name).run()
    engine = read_engine_set(next(store.sets.iterdir())).text_kv

    check(store, on_cpu=False)
    check(store, on_cpu=True)
    assert planned(store, on_cpu=True).variant == "onnxruntime"  # the embedded Triton has no TensorRT
    manifest = store.verified(engine, hashes=False)
    assert f"built for {H100.gpu} with TensorRT {H100.tensorrt}" in why_refused(manifest, "tensorrt", "no")
    assert why_refused(manifest, "onnxruntime", "no") == ""
    said = "ModuleNotFoundError: No module named 'streaming.ort_model'"
    assert "export the pipeline again" in why_refused(manifest, "onnxruntime", said)
    (store.engine(engine) / PLAN_FILE).write_bytes(b"cut")
    with pytest.raises(EngineError, match=f"has 3 bytes, not .* wanstream-build {name}"):
        check(store, on_cpu=False)


def test_engines_of_an_earlier_version_go_on(store: EngineStore) -> None:
    directory = next(store.sets.iterdir())
    engines = read_engine_set(directory)
    old = json.loads((directory / SET).read_text())
    del old["serve_with"], old["gpus"]
    (directory / SET).write_text(json.dumps(old))
    for name in engines.engines():
        path = store.engine(name) / MANIFEST
        flags = {"keeps_caches": True, "begins_streams": True, "holds_inputs": False}
        path.write_text(json.dumps(json.loads(path.read_text()) | flags))

    check(store)

    assert planned(store).variant == "onnxruntime"


def test_an_external_triton_is_not_asked_for_engines_that_its_models_cannot_name(tmp_path: Path) -> None:
    external = EngineSets(tmp_path / "motörs", on_cpu=False).availability(LONGLIVE)
    embedded = EngineSets(tmp_path / "motörs", on_cpu=True).availability(LONGLIVE)

    assert "WANSTREAM_ENGINES_DIR" in str(external.reason)
    assert "not exported" in str(embedded.reason)


def test_a_set_that_shares_engines_keeps_its_own_choice(store: EngineStore) -> None:
    """And so does a load: what another one is served with stands in no file that both read."""
    name = read_engine_set(next(store.sets.iterdir())).name
    other = add_set(store, name="other")
    build(store, name).run()
    build(store, other).run()

    build(store, other).serve_with("onnxruntime")

    variants = {}
    for found in map(read_engine_set, store.sets.iterdir()):
        chosen = FoundSet(store.sets / found.name, found)
        variants[found.name] = plan_load(chosen, store.models, PARAMS, on_cpu=False).variant
    assert variants == {name: "tensorrt", other: "onnxruntime"}
    assert planned(store, on_cpu=False, backend="onnxruntime").variant == "onnxruntime"


@pytest.mark.parametrize(
    ("on_cpu", "backend", "expected"),
    [
        (True, "auto", ("onnxruntime", ())),
        (True, "triton", ("triton", ())),
        (True, "onnxruntime", ("onnxruntime", ())),
        (False, "auto", ("triton", (0, 1))),
        (False, "triton", ("triton", (0, 1))),
        (False, "onnxruntime", ("onnxruntime", ())),
    ],
)
def test_a_load_may_say_where_engines_run(
    on_cpu: bool, backend: str, expected: tuple[str, tuple[int, ...]], store: EngineStore
) -> None:
    name = read_engine_set(next(store.sets.iterdir())).name
    replace(build(store, name), gpus=(0, 1)).run()

    plan = planned(store, on_cpu, backend=backend)

    assert (plan.backend, plan.gpus) == expected


def test_an_export_of_the_same_engines_keeps_what_serves_them(
    store: EngineStore, exported_engines: tuple[Path, EngineSet]
) -> None:
    name = read_engine_set(next(store.sets.iterdir())).name
    build(store, name).run()

    request = small_request(exported_engines[0] / "models")
    export_pipeline(request, store, lambda line: None)

    assert read_engine_set(store.sets / name).serve_with == "tensorrt"
