"""Engines as Triton models: one manifest, two configurations (serving.md 3). Torch-free, free of protobuf.

`onnxruntime` runs model.onnx on the CPU, in a Python model; `tensorrt` runs model.plan in Triton's backend.
Which of both is said with each load, for two engine sets may share an engine and choose differently.
"""

from collections.abc import Sequence
from typing import Any, Final

from streaming.engines.engine_set import Variant
from streaming.engines.manifest import PLAN_FILE, DType, EngineManifest, TensorInfo

THREADS: Final = "threads"
_DATA_TYPES: Final[dict[DType, str]] = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
}


def engine_config(
    manifest: EngineManifest, variant: Variant, *, threads: int = 0, gpus: Sequence[int] = (0,)
) -> dict[str, Any]:
    """The complete configuration of an engine's model, as the JSON of Triton's ModelConfig.

    threads   of ONNX Runtime within one operator; 0: one per core (engines of a stream run one at a time)
    gpus      numbers of the GPUs that run the plan, an instance on each
    """
    config: dict[str, Any] = {
        "name": manifest.name,
        "max_batch_size": 0,
        "input": list(map(_tensor, manifest.inputs)),
        "output": list(map(_tensor, manifest.outputs)),
    }
    if variant == "onnxruntime":
        return config | {
            "backend": "python",
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
            "parameters": {THREADS: {"string_value": str(threads)}},
        }
    group: dict[str, Any] = {"kind": "KIND_GPU", "count": 1, "gpus": list(gpus)}
    if len(manifest.profiles) > 1:
        group["profile"] = [str(index) for index in range(len(manifest.profiles))]
    return config | {
        "platform": "tensorrt_plan",
        "default_model_filename": PLAN_FILE,
        "instance_group": [group],
    }


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    dims = [axis if isinstance(axis, int) else -1 for axis in tensor.shape]
    return {"name": tensor.name, "data_type": _DATA_TYPES[tensor.dtype], "dims": dims}
