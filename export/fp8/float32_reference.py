"""A graph of a reduced precision as the same graph in float32, which ONNX Runtime runs on the CPU.

The reference has the weights of the original, as they were rounded, and its Q/DQ pairs; only what is computed
between them is more exact. So it tells what a plan of the original has to give.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from streaming.engines.manifest import ONNX_FILE

_NARROW: Final = (TensorProto.BFLOAT16, TensorProto.FLOAT16)


def write_float32_reference(source: Path, directory: Path) -> Path:
    """Write the reference of the graph in `source` into an existing, empty directory; returns the file.

    Both are in memory while this runs: about three times the size of the source.
    """
    model = onnx.load(str(source))
    graph = model.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = TensorProto.FLOAT
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
    return save(model, directory)


def save(model: onnx.ModelProto, directory: Path) -> Path:
    """Write the graph, its large tensors beside it, as an export does."""
    path = directory / ONNX_FILE
    data = path.with_name(f"{ONNX_FILE}.data")
    data.unlink(missing_ok=True)  # onnx would append
    onnx.save(model, str(path), save_as_external_data=True, location=data.name)
    return path


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
