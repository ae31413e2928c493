"""Where the graphs of a replay run: as PyTorch modules, or exported, in ONNX Runtime or anywhere else."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock
from torch import Tensor, nn

from export.graphs.signature import Signature
from export.onnx.onnx_export import export_onnx
from streaming.engines.engine import Engine, OrtEngine
from streaming.engines.manifest import ONNX_FILE, Form

Call = Callable[..., Sequence[Tensor]]


class Place(Protocol):
    """Prepares a graph to run: the result takes its inputs and returns all its outputs, in order."""

    def __call__(self, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
        """sizes: of the dynamic axes, for tracing, none of them 1."""


def in_torch(module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
    """Nothing to prepare."""

    def call(*tensors: Tensor) -> Sequence[Tensor]:
        results: Tensor | Sequence[Tensor] = module(**signature.arguments(tensors))
        return (results,) if isinstance(results, Tensor) else results

    return call


def in_onnx_runtime(path: Path, signature: Signature) -> Engine:
    return OrtEngine(path, threads=1)


class Exported:
    """Exports each graph to a directory of its own, and runs the file.

    traced        of graphs that others may have traced already; they are copied
    open_engine   from the exported file to something that runs it; it may move the file's directory
    form          of the graphs
    """

    def __init__(
        self,
        directory: Path,
        traced: Path,
        open_engine: Callable[[Path, Signature], Engine] = in_onnx_runtime,
        form: Form = "portable",
    ) -> None:
        self._directory, self._traced, self._open = directory, traced, open_engine
        self._form: Form = form
        self._engines: dict[str, Engine] = {}

    def __call__(self, module: nn.Module, signature: Signature, sizes: Mapping[str, int]) -> Call:
        # Graphs that are made anew for every call, or by another case, are the same if all that they hold is.
        key = f"{fingerprint(module, signature)}_{self._form}"
        if key not in self._engines:
            path = self._directory / str(len(self._engines)) / ONNX_FILE
            source = written_once(
                self._traced / key,
                lambda new: export_onnx(module, signature, sizes, new / ONNX_FILE, form=self._form),
            )
            shutil.copytree(source, path.parent)
            self._engines[key] = self._open(path, signature)
        engine = self._engines[key]

        def call(*tensors: Tensor) -> tuple[Tensor, ...]:
            inputs = dict(zip(engine.inputs, tensors, strict=True))
            return tuple(engine.run(inputs, engine.outputs).values())

        return call


def fingerprint(module: nn.Module, signature: Signature) -> str:
    """Hash of what decides about an exported file: layers, their settings, and the values of all tensors."""
    layers = [
        (name, type(layer).__qualname__, {k: v for k, v in vars(layer).items() if not k.startswith("_")})
        for name, layer in module.named_modules()
    ]
    digest = hashlib.sha256(f"{signature} {layers}".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def written_once(directory: Path, write: Callable[[Path], None]) -> Path:
    """The directory, filled by whoever comes first, in whatever process."""
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            partial = directory.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write(partial)
            partial.rename(directory)
    return directory
