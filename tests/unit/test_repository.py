"""Both configurations of an engine say what its manifest says."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.onnx.repository import config_text, write_onnxruntime_model
from streaming.engines.engine_config import engine_config
from streaming.engines.engine_set import Variant
from streaming.engines.manifest import AxisRange, EngineManifest, TensorInfo

FRAMES = {"T": AxisRange(min=4, opt=12, max=16)}
MANIFEST = EngineManifest(
    name="longlive_transformer_bf16_01234567",
    kind="transformer",
    precision="bf16",
    fingerprint="0",
    inputs=(
        TensorInfo(name="tokens", shape=(1, "T", 64), dtype="bfloat16"),
        TensorInfo(name="time_sin", shape=(1, 3), dtype="float32"),
        TensorInfo(name="ids", shape=(2,), dtype="int64"),
    ),
    outputs=(TensorInfo(name="flow", shape=(1, "T", 64), dtype="float16"),),
    profiles=(FRAMES,),
    opset=20,
    files=(),
    source_checkpoints=(),
    exporter_version="0",
    parity=None,
)
TWO_PROFILES = MANIFEST.model_copy(update={"profiles": (FRAMES, FRAMES)})


def parsed(variant: Variant, manifest: EngineManifest = MANIFEST, **options: Any) -> pb.ModelConfig:
    """As Triton reads it: an unknown field or type is an error."""
    return json_format.ParseDict(engine_config(manifest, variant, **options), pb.ModelConfig())


@pytest.mark.parametrize("variant", ["onnxruntime", "tensorrt"])
def test_every_tensor_has_its_type_and_dimensions(variant: str) -> None:
    config = parsed("tensorrt" if variant == "tensorrt" else "onnxruntime")

    tensors = {t.name: (t.data_type, list(t.dims)) for t in (*config.input, *config.output)}
    assert tensors == {
        "tokens": (pb.TYPE_BF16, [1, -1, 64]),
        "time_sin": (pb.TYPE_FP32, [1, 3]),
        "ids": (pb.TYPE_INT64, [2]),
        "flow": (pb.TYPE_FP16, [1, -1, 64]),
    }
    assert config.max_batch_size == 0


def test_the_onnx_runtime_variant_is_a_python_model_on_the_cpu() -> None:
    config = parsed("onnxruntime", threads=3)

    assert (config.backend, config.platform) == ("python", "")
    assert [(g.kind, g.count) for g in config.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 1)]
    assert config.parameters["threads"].string_value == "3"


def test_the_tensorrt_variant_is_a_plan_on_each_gpu() -> None:
    config = parsed("tensorrt", gpus=(1, 2))

    assert (config.backend, config.platform) == ("", "tensorrt_plan")
    assert config.default_model_filename == "model.plan"
    group = config.instance_group[0]
    assert (group.kind, group.count, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, 1, [1, 2])
    assert list(group.profile) == []


def test_a_plan_for_several_sizes_has_all_its_profiles_active() -> None:
    config = parsed("tensorrt", TWO_PROFILES)

    assert list(config.instance_group[0].profile) == ["0", "1"]


def test_the_text_form_gives_the_same_configuration_back() -> None:
    config = engine_config(TWO_PROFILES, "tensorrt")

    assert text_format.Parse(config_text(config), pb.ModelConfig()) == parsed("tensorrt", TWO_PROFILES)


def test_a_written_model_has_a_config_and_a_model_file(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()

    write_onnxruntime_model(tmp_path, tmp_path / "1", MANIFEST)

    config = text_format.Parse((tmp_path / "config.pbtxt").read_text(), pb.ModelConfig())
    assert config.name == MANIFEST.name
    compile((tmp_path / "1" / "model.py").read_text(), "model.py", "exec")
