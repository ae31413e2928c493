"""FP8: what ModelOpt, in its own environment, makes of the small pipeline; and what happens without it."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper

from export.__main__ import main
from export.fp8.calibration import CallRecorder, record_stream
from export.fp8.float32_reference import write_float32_reference
from export.fp8.quantization import ModelOpt, ModelOptError, quantized_products
from export.graphs.transformer import TextKV, Transformer
from export.onnx.jobs import Request, components
from export.onnx.outline import outline
from export.onnx.run import export_pipeline, plan
from export.onnx.store import EngineStore
from export.onnx.verify import verify_set
from export.tensorrt.build import Build
from export.tensorrt.tensorrt_build import TOLERANCES, BuildError
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import ONNX_FILE, BuildOptions, EngineManifest
from streaming.memory.machine import Machine
from streaming.memory.plan import GPU, memory_plan
from tests.engines import small_request
from tests.unit.test_engine_build import Gpu

MODELOPT = Path(sys.prefix) / "modelopt" / "bin" / "python"  # scripts/setup.sh makes it
L40S = Machine("NVIDIA L40S", "8.9", "570.86.15", "10.9.0.34")
PRODUCTS = 8  # of a block: q, k, v, o; q, o of the prompt; two of the feed forward


@pytest.fixture(scope="module")
def request_of_fp8(exported_engines: tuple[Path, EngineSet]) -> Request:
    return replace(small_request(exported_engines[0] / "models"), precision="fp8")


@pytest.fixture(scope="module")
def quantized(
    bfloat16_engines: tuple[EngineStore, EngineSet],
    request_of_fp8: Request,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[EngineStore, EngineSet]:
    """The small set in FP8, beside the bfloat16 one with which it shares all but the transformer."""
    assert MODELOPT.exists(), "ModelOpt's environment is not there. Run: make setup-dev"
    store = EngineStore(tmp_path_factory.mktemp("fp8") / "engines")
    shutil.copytree(bfloat16_engines[0].root, store.root)
    return store, export_pipeline(request_of_fp8, store, lambda line: None, modelopt=ModelOpt(MODELOPT))


@pytest.fixture(scope="module")
def recorded(request_of_fp8: Request, tmp_path_factory: pytest.TempPathFactory) -> CallRecorder:
    """The calls that calibrated it, once more."""
    transformer, text_kv = components(request_of_fp8)[1].load()
    assert isinstance(transformer, Transformer)
    assert isinstance(text_kv, TextKV)
    directory = tmp_path_factory.mktemp("calls")
    return record_stream(request_of_fp8, transformer.float(), text_kv.float(), directory)


def transformer_of(quantized: tuple[EngineStore, EngineSet]) -> tuple[Path, EngineManifest]:
    store, engines = quantized
    return store.engine(engines.transformer) / ONNX_FILE, store.verified(engines.transformer)


def test_the_matrix_products_of_the_blocks_have_pairs_and_nothing_else(
    quantized: tuple[EngineStore, EngineSet],
) -> None:
    graph = onnx.load(str(transformer_of(quantized)[0])).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    users = {name: [n for n in graph.node if name in n.input] for node in graph.node for name in node.output}

    found = []
    for node in (n for n in graph.node if n.op_type == "MatMul"):
        sides = [made_by[x] for x in node.input if x in made_by and made_by[x].op_type == "DequantizeLinear"]
        if sides:
            activation, weight = sides
            assert made_by[activation.input[0]].op_type == "QuantizeLinear"
            assert weights[weight.input[0]].data_type == TensorProto.FLOAT8E4M3FN
            found.append(weight.input[0])

    assert len(found) == PRODUCTS
    assert all(name.startswith("blocks.0.") and name.endswith(".weight_t") for name in found)
    pairs = [n for n in graph.node if n.op_type == "DequantizeLinear"]
    assert all(user.op_type == "MatMul" for pair in pairs for user in users[pair.output[0]])
    scales = {weights[name].data_type for pair in pairs for name in pair.input[1:2]}
    assert scales == {TensorProto.BFLOAT16}
    others = [t for name, t in weights.items() if name.endswith("weight_t") and name not in found]
    assert {tensor.data_type for tensor in others} == {TensorProto.BFLOAT16}


def test_it_can_be_verified_later(quantized: tuple[EngineStore, EngineSet]) -> None:
    store, engines = quantized

    assert {"fp8"} < {manifest.precision for manifest in verify_set(store, engines.name)}


def test_what_is_not_quantised_is_shared_with_other_sets(
    quantized: tuple[EngineStore, EngineSet],
    exported_engines: tuple[Path, EngineSet],
    request_of_fp8: Request,
) -> None:
    engines = quantized[1]
    bf16 = [e.name for part in components(replace(request_of_fp8, precision="bf16")) for e in plan(part)]

    assert {engines.text_encoder, engines.text_kv} < set(bf16)
    assert engines.vae == exported_engines[1].vae
    assert engines.precision == "fp8"
    assert engines.name == "demo_longlive_fp8_wan_window7"


def test_the_calls_come_from_a_stream(recorded: CallRecorder) -> None:
    """First chunk, last chunk, and the pass on a new prompt; every noise level, and caches that fill."""
    calls = [np.load(file) for file in recorded.files]
    times = {call["time_sin"].tobytes() for call in calls}
    cached = [float(np.abs(call["kv_00"]).max()) for call in calls]

    assert len(calls) == 2 * (4 + 1) + 1
    assert len(times) > 4
    assert cached[0] == 0
    assert cached[-1] > 0
    assert len({call["cross_kv_00"].tobytes() for call in calls}) == 2
    assert all(np.isfinite(array).all() for call in calls for array in call.values())


def test_the_scales_are_those_of_the_recorded_calls(
    quantized: tuple[EngineStore, EngineSet], recorded: CallRecorder, tmp_path: Path
) -> None:
    path, _ = transformer_of(quantized)
    model = onnx.load(str(path))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    rounds = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    plain = write_float32_reference(path, tmp_path)
    reference = onnx.load(str(plain))
    reference.graph.output.extend(
        onnx.helper.make_tensor_value_info(n.input[0], TensorProto.FLOAT, None) for n in rounds
    )
    onnx.save(reference, str(plain))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(plain), options)

    largest = dict.fromkeys((n.input[0] for n in rounds), 0.0)
    for file in recorded.files:
        values = session.run(list(largest), dict(np.load(file)))
        largest = {
            name: max(largest[name], float(np.abs(v).max())) for name, v in zip(largest, values, strict=True)
        }

    scales = [float(numpy_helper.to_array(weights[node.input[1]])) for node in rounds]
    room = [448 * scale / largest[node.input[0]] for scale, node in zip(scales, rounds, strict=True)]
    # The first activation is that of the unquantised graph; later ones have been rounded on their way.
    assert room == pytest.approx([(448 / 127) ** 2] * len(rounds), rel=0.1)
    for name, tensor in weights.items():
        if tensor.data_type == TensorProto.FLOAT8E4M3FN and name.endswith("weight_t"):
            assert 30 < np.abs(numpy_helper.to_array(tensor).astype(np.float32)).max() < 448


def test_the_error_against_float32_is_measured_and_recorded(
    quantized: tuple[EngineStore, EngineSet],
) -> None:
    _, manifest = transformer_of(quantized)

    record = manifest.quantization
    assert record is not None
    assert record.tool.startswith("modelopt 0.")
    assert (record.products, record.calls) == (PRODUCTS, 11)
    assert 0.002 < record.relative_rms_error < 0.08  # three bits of mantissa: neither exact nor broken
    assert record.cosine > 0.995


def test_its_plan_needs_no_flag_and_a_gpu_with_float8(quantized: tuple[EngineStore, EngineSet]) -> None:
    store, engines = quantized
    build = Build(engines.name, store, lambda line: None)

    (described,) = [p for p in build.plans() if p.engine == engines.transformer]

    assert described.flags == ("STRONGLY_TYPED",)
    assert described.least_compute_capability == "8.9"


def test_a_plan_of_it_is_compared_with_its_float32_reference(
    quantized: tuple[EngineStore, EngineSet], tmp_path: Path
) -> None:
    """ONNX's reference implementation, with its roundings to bfloat16 and float8, is in the plan's place."""
    store = EngineStore(tmp_path / "engines")
    shutil.copytree(quantized[0].root, store.root)
    build = Build(quantized[1].name, store, lambda line: None, machine=L40S, builder=Gpu())

    build.run()

    parity = {m.precision: m.tensorrt.parity for m in build.manifests(hashes=True) if m.tensorrt}
    assert 1e-4 < parity["bf16"] < TOLERANCES["bf16"]
    assert 1e-4 < parity["fp8"] < TOLERANCES["fp8"]
    with pytest.raises(BuildError, match=r"differs by .* of the largest element, and 0\.0"):
        replace(build, builder=Gpu(factor=1.3), options=BuildOptions(level=5)).run()


def test_a_gpu_without_float8_is_refused(quantized: tuple[EngineStore, EngineSet]) -> None:
    store, engines = quantized
    a100 = Machine("NVIDIA A100", "8.0", "570.86.15", "10.9.0.34")
    build = Build(engines.name, store, lambda line: None, machine=a100, builder=Gpu())

    with pytest.raises(BuildError, match=r"is fp8, which needs a GPU of compute capability 8\.9 or more"):
        build.run()


def test_the_memory_plan_counts_a_byte_for_each_quantised_weight() -> None:
    krea = Request("krea-realtime-video", Path("nowhere"), ((512, 512),), precision="fp8")
    fp8, bf16 = outline(krea), outline(replace(krea, precision="bf16"))

    weights = [found.manifests[found.engines.transformer].bytes for found in (fp8, bf16)]
    plans = [memory_plan(f.engines, f.manifests, f.loop, placement=GPU).total() for f in (fp8, bf16)]

    assert 0.5 < weights[0] / weights[1] < 0.55
    assert plans[1] - plans[0] == weights[1] - weights[0]


def test_without_modelopt_the_command_says_how_to_get_it(
    exported_engines: tuple[Path, EngineSet], tmp_path: Path
) -> None:
    models = exported_engines[0] / "models"
    arguments = ["longlive", "--demo", "--models", models, "--precision", "fp8", "--home", tmp_path]

    result = CliRunner().invoke(main, [str(a) for a in arguments], env={"WANSTREAM_MODELOPT": None})

    assert result.exit_code == 1
    assert f"'{sys.executable}' has none" in result.stderr
    assert "No module named 'modelopt'" in result.stderr
    assert "~/modelopt/bin/pip install 'nvidia-modelopt[onnx]" in result.stderr
    assert not (tmp_path / "engines").exists()


def test_a_modelopt_that_fails_leaves_no_engine(
    quantized: tuple[EngineStore, EngineSet], request_of_fp8: Request, tmp_path: Path
) -> None:
    """Everything but the transformer is there already."""
    store = EngineStore(tmp_path / "engines")
    shutil.copytree(quantized[0].root, store.root)
    shutil.rmtree(store.models / quantized[1].transformer)
    shutil.rmtree(store.sets / quantized[1].name)
    failing = tmp_path / "python"
    failing.write_text('#!/bin/sh\n[ "$#" = 2 ] && echo modelopt 9 || { echo no memory >&2; exit 3; }\n')
    failing.chmod(0o755)

    with pytest.raises(ModelOptError, match="ended with exit code 3: no memory"):
        export_pipeline(request_of_fp8, store, lambda line: None, modelopt=ModelOpt(failing))

    assert not (store.models / quantized[1].transformer).exists()
    assert not (store.sets / quantized[1].name).exists()
    assert not (store.root / ".partial").exists()


def test_a_relative_path_of_the_interpreter_is_taken_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELOPT.parent)

    assert ModelOpt(Path(MODELOPT.name)).version().startswith("modelopt 0.")


def test_products_outside_the_blocks_are_left_alone() -> None:
    graph = onnx.GraphProto()
    for i, weight in enumerate(("head.head.weight_t", "blocks.3.ffn.2.weight_t", "blocks_weight_t", "kv")):
        graph.node.append(onnx.helper.make_node("MatMul", ["x", weight], [f"y{i}"], f"node{i}"))

    assert quantized_products(graph) == {"node1": "blocks.3.ffn.2.weight_t"}
