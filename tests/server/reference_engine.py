"""Engines of a precision that ONNX Runtime does not have on the CPU, in ONNX's own reference implementation.

It runs the exported file, slowly, wherever it is: in this process, or in a Triton model of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from streaming.engines.engine import Engine
from streaming.engines.manifest import ONNX_FILE, engine_directory, read_manifest

MODEL_SOURCE = "from tests.server.reference_engine import ReferenceModel as TritonPythonModel\n"


class ReferenceEngine:
    """`model.onnx` of an engine's directory. Inputs are brought to the types of its manifest."""

    def __init__(self, directory: Path) -> None:
        manifest = read_manifest(directory)
        self.inputs = tuple(tensor.name for tensor in manifest.inputs)
        self.outputs = tuple(tensor.name for tensor in manifest.outputs)
        self._dtypes = {tensor.name: getattr(torch, tensor.dtype) for tensor in manifest.inputs}
        self._evaluator = ReferenceEvaluator(str(directory / ONNX_FILE))

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        feeds = {name: _array(inputs[name].to(dtype)) for name, dtype in self._dtypes.items()}
        return dict(zip(outputs, map(_tensor, self._evaluator.run(list(outputs), feeds)), strict=True))


def in_reference(models: Path, otherwise: Callable[..., Engine]) -> Callable[..., Engine]:
    """Places bfloat16 engines of the repository `models` in this process, and others somewhere else."""

    def place(name: str, **facts: object) -> Engine:
        directory = engine_directory(models, name)
        if read_manifest(directory).precision == "bf16":
            return ReferenceEngine(directory)
        return otherwise(name, **facts)

    return place


class ReferenceModel:
    """As a Triton model."""

    def initialize(self, args: dict[str, str]) -> None:
        self._engine = ReferenceEngine(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        import triton_python_backend_utils as pb_utils  # exists in Triton's model processes only

        given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._engine.inputs}
        inputs = {name: torch.utils.dlpack.from_dlpack(tensor) for name, tensor in given.items()}
        results = self._engine.run(inputs, list(request.requested_output_names()))
        tensors = [pb_utils.Tensor.from_dlpack(name, tensor) for name, tensor in results.items()]
        return pb_utils.InferenceResponse(tensors)


def _array(tensor: Tensor) -> Any:
    """numpy's bfloat16 comes from a package of its own; both have the same bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _tensor(array: Any) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
