"""Where the graphs of a replay run: as PyTorch modules, or exported, in ONNX Runtime or anywhere else."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from export.graphs.signature import Signature
from export.onnx_export import export_onnx
from streaming.engines import Engine, OrtEngine
from streaming.manifest import ONNX_FILE

Call = Callable[..., Sequence[Tensor]]


class Place(Protocol):
    """Prepares a graph to run: the result takes its inputs and returns all its outputs, in order."""

    def __call__(self, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
        """sizes: of the dynamic axes, for tracing, none of them 1."""


def in_torch(module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
    """Nothing to prepare."""
    return module


def in_onnx_runtime(path: Path, signature: Signature) -> Engine:
    return OrtEngine(path, threads=1)


class Exported:
    """Exports each graph once, to a directory of its own, and runs the file.

    open_engine: from the exported file to something that runs it
    """

    def __init__(
        self, directory: Path, open_engine: Callable[[Path, Signature], Engine] = in_onnx_runtime
    ) -> None:
        self._directory, self._open = directory, open_engine
        self._engines: dict[tuple[object, ...], Engine] = {}
        self._modules: list[nn.Module] = []  # kept alive: their ids are keys

    def __call__(self, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
        # Graphs that are made anew for every call are the same if they share weights and signature.
        weights = id(next(module.parameters()))
        key = (type(module), weights, signature, getattr(module, "clamp", None))
        if key not in self._engines:
            self._modules.append(module)
            path = self._directory / str(len(self._engines)) / ONNX_FILE
            path.parent.mkdir(parents=True)
            export_onnx(module, signature, sizes, path)
            self._engines[key] = self._open(path, signature)
        engine = self._engines[key]

        def call(*tensors: Tensor) -> tuple[Tensor, ...]:
            inputs = dict(zip(engine.inputs, tensors, strict=True))
            return tuple(engine.run(inputs, engine.outputs).values())

        return call
