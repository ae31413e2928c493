"""Adapters in exported graphs: the weights that ONNX Runtime takes in place of those in the files.

A graph keeps each linear layer's weight under the layer's name (`export.graphs.layers.Linear`), whatever the
pipeline fuses. So nothing has to be exported again, and no second copy of the weights lies on the disk.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint, Entry
from export.checkpoints.lora_merge import Changes, ScaledAdapter, merge, user_adapters
from streaming.engines.records import EngineError

TRANSPOSED: Final = ".weight_t"  # a weight that is kept as [in, out]


def merged_weights(graphs: Sequence[Path], adapters: Sequence[ScaledAdapter]) -> list[dict[str, Any]]:
    """Arrays for `open_graph` of each graph: the weights that adapters change, by the name in the graph.

    graphs: files that hold a transformer's weights together. Raises AdapterError, EngineError.
    """
    parts = [graph_weights(path) for path in graphs]
    together = {key: entry for part in parts for key, entry in part.entries.items()}
    changes, _ = user_adapters(Checkpoint(graphs[0], together, _unreadable), adapters)
    return [_merged(part, {key: changes[key] for key in changes if key in part.entries}) for part in parts]


def _merged(part: Checkpoint, changes: Changes) -> dict[str, Any]:
    arrays = {}
    for key, tensor in merge(part, changes).tensors(list(changes)):
        name = part.entries[key].name_in_file
        arrays[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous().numpy()
    return arrays


def graph_weights(path: Path) -> Checkpoint:
    """The weights of an exported graph, by the keys of checkpoints. Raises EngineError."""
    try:
        import onnx  # with `export`, not with `pipelines`
    except ImportError as error:
        raise EngineError(
            f"Merging LoRA files into engines needs the package onnx where Triton's models run ({error}). "
            "Run there: pip install 'wanstream[export]'."
        ) from error
    graph = onnx.load(path, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    entries = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.dims)
        turned = name.endswith(TRANSPOSED)
        key = name.removesuffix("_t") if turned else name
        entries[key] = Entry(name, shape[::-1] if turned else shape, 0)

    def read(names: Sequence[str]) -> Iterator[Tensor]:
        for name in names:
            tensor = torch.from_numpy(_array(tensors[name], path.parent))
            yield tensor.t() if name.endswith(TRANSPOSED) else tensor

    return Checkpoint(path, entries, read)


def _array(tensor: Any, directory: Path) -> Any:
    """The values of an initializer. onnx itself refuses files with hard links, as copies of a set may be."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor).copy()
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape, offset = tuple(tensor.dims), int(where.get("offset", 0))
    return np.fromfile(directory / where["location"], dtype, math.prod(shape), offset=offset).reshape(shape)


def _unreadable(names: Sequence[str]) -> Iterator[Tensor]:
    raise AssertionError("only the shapes are asked for")
