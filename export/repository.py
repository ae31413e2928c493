"""Engines as Triton models: one manifest, two configurations (serving.md 3).

`onnxruntime` runs model.onnx on the CPU, in a Python model; `tensorrt` runs model.plan in Triton's backend.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from streaming.held import GROUPS, HELD_INPUT
from streaming.kept import CACHE, KEPT_INPUT
from streaming.manifest import CONFIG, PLAN_FILE, DType, EngineManifest, TensorInfo

Variant = Literal["onnxruntime", "tensorrt"]

THREADS: Final = "threads"
MODEL_SOURCE: Final = '''"""ONNX Runtime on model.onnx beside this file."""

from streaming.ort_model import OrtModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

_DATA_TYPES: Final[dict[DType, int]] = {
    "float32": pb.TYPE_FP32,
    "float16": pb.TYPE_FP16,
    "bfloat16": pb.TYPE_BF16,
    "int64": pb.TYPE_INT64,
}


def engine_config(
    manifest: EngineManifest, variant: Variant, *, threads: int = 0, gpus: Sequence[int] = (0,)
) -> pb.ModelConfig:
    """The complete configuration of an engine's model.

    threads   of ONNX Runtime within one operator; 0: one per core (engines of a stream run one at a time)
    gpus      numbers of the GPUs that run the plan, an instance on each
    """
    config = pb.ModelConfig(name=manifest.name, max_batch_size=0)
    config.input.extend(
        pb.ModelInput(name=t.name, data_type=_DATA_TYPES[t.dtype], dims=_dims(t)) for t in manifest.inputs
    )
    config.output.extend(
        pb.ModelOutput(name=t.name, data_type=_DATA_TYPES[t.dtype], dims=_dims(t)) for t in manifest.outputs
    )
    if variant == "onnxruntime":
        config.backend = "python"
        if manifest.keeps_caches:
            for tensor in config.input:
                tensor.optional = tensor.name.startswith(CACHE)
            for tensor in (*config.input, *config.output):
                if CACHE not in tensor.name:  # a stream may begin with another number of frames
                    tensor.dims[:] = [-1] * len(tensor.dims)
            config.input.add(name=KEPT_INPUT, data_type=pb.TYPE_STRING, dims=[1], optional=True)
        if manifest.holds_inputs:
            for tensor in config.input:
                tensor.optional = tensor.name.startswith(GROUPS)
            config.input.add(name=HELD_INPUT, data_type=pb.TYPE_STRING, dims=[1], optional=True)
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        config.parameters[THREADS].string_value = str(threads)
    else:
        config.platform = "tensorrt_plan"
        config.default_model_filename = PLAN_FILE
        group = config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=1, gpus=gpus)
        if len(manifest.profiles) > 1:
            group.profile.extend(str(index) for index in range(len(manifest.profiles)))
    return config


def config_text(config: pb.ModelConfig) -> str:
    """As `config.pbtxt` has it."""
    return str(text_format.MessageToString(config))


def write_onnxruntime_model(directory: Path, version: Path, manifest: EngineManifest) -> None:
    """Write what Triton needs beside an engine's files to run it on the CPU.

    directory: of the Triton model. version: its version directory, which holds the engine.
    """
    text = config_text(engine_config(manifest, "onnxruntime"))
    (directory / CONFIG).write_text(text, encoding="utf-8")
    (version / "model.py").write_text(MODEL_SOURCE, encoding="utf-8")


def _dims(tensor: TensorInfo) -> list[int]:
    return [axis if isinstance(axis, int) else -1 for axis in tensor.shape]
