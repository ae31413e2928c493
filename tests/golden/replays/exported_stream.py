"""Streams on graphs exported for the CPU: traced once per shape of network, with each case's weights."""

import hashlib
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import onnx
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from export.graphs.signature import Signature
from export.onnx.onnx_export import export_onnx
from streaming.engines.engine import Engine
from streaming.engines.manifest import ONNX_FILE
from tests.golden.place import in_onnx_runtime, written_once
from tests.golden.replays.stream import torch_modules
from tests.golden.replays.stream_cases import StreamCase

PARAMETERS = "parameters.safetensors"  # of the module that was traced


class ExportedStreams:
    """Places the two graphs of a case; a graph takes any number of chunk frames and of cached frames.

    directory     for the files of this object
    traced        of graphs that others may have traced already, with other weights
    open_engine   from an exported file to something that runs it; it may move the file's directory
    """

    def __init__(
        self,
        directory: Path,
        traced: Path,
        open_engine: Callable[[Path, Signature], Engine] = in_onnx_runtime,
    ) -> None:
        self._directory, self._traced, self._open = directory, traced, open_engine
        self._numbers = count()
        self._engines: dict[Path, tuple[Engine, Engine]] = {}

    def __call__(self, stream: StreamCase) -> tuple[Engine, Engine]:
        weights = stream.case.weights_path
        if weights not in self._engines:
            transformer, text_kv = torch_modules(stream)
            tokens = stream.case.config["tokens_per_frame"]
            sizes = {"F": 3, "T": 3 * tokens, "S": 6 * tokens, "S+T": 9 * tokens}
            self._engines[weights] = (
                self._engine(transformer, transformer.signature("S"), sizes),
                self._engine(text_kv, text_kv.signature(), {}),
            )
        return self._engines[weights]

    def _engine(self, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Engine:
        path = self._directory / str(next(self._numbers)) / ONNX_FILE
        path.parent.mkdir()
        shapes = f"{signature} {[(name, p.shape) for name, p in module.named_parameters()]}"
        key = hashlib.sha256(shapes.encode()).hexdigest()[:16]

        def trace(new: Path) -> None:
            export_onnx(module, signature, sizes, new / ONNX_FILE, form="cpu")
            save_file(dict(module.named_parameters()), new / PARAMETERS)

        source = written_once(self._traced / key, trace)
        put_weights(module, source, path)
        return self._open(path, signature)


def put_weights(module: nn.Module, source: Path, path: Path) -> None:
    """Write the graph in `source` with the parameters of `module` in place of those of the traced one.

    They are found by their values, since the exporter renames and reshapes some. Raises ValueError where one
    is not found exactly once.
    """
    graph = onnx.load(str(source / ONNX_FILE))
    places: dict[bytes, list[onnx.TensorProto]] = {}
    for tensor in graph.graph.initializer:
        places.setdefault(numpy_helper.to_array(tensor).tobytes(), []).append(tensor)
    parameters = dict(module.named_parameters())
    for name, before in load_file(source / PARAMETERS).items():
        (tensor,) = places[before.numpy().tobytes()]
        values = parameters[name].detach().numpy().reshape(tuple(tensor.dims))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, str(path))
