"""Engines: a graph that runs somewhere, behind one interface (serving.md 8.5).

The loop names inputs and outputs and never asks where an engine runs: in ONNX Runtime in this process (the
CPU), as a model of the same Triton server (TensorRT plans), or as a PyTorch module (tests, goldens).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from streaming.engines.bound import BoundEngine, OrtPlace
from streaming.engines.exchange import from_triton, to_triton
from streaming.engines.manifest import EngineManifest
from streaming.engines.ort import open_graph
from streaming.engines.records import EngineError
from streaming.network.video import FrameGroups
from streaming.triton.sessions import ModelRunner


class Engine(Protocol):
    """One graph: tensors by name in, tensors by name out."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in the graph's order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, in the graph's order."""

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """The requested outputs by name. Raises WanstreamError when inputs are wrong or the engine fails."""


class EngineWrapper:
    """An engine around another one; a subclass does something before or after the call."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """As Engine.run."""
        return self.engine.run(inputs, outputs)


class BatchLimit(EngineWrapper):
    """An engine that takes batches of a limited size: a larger one goes in several calls.

    All its inputs and outputs are [B, ...].
    """

    def __init__(self, engine: Engine, largest: int) -> None:
        """largest: entries of a batch, at least 1."""
        super().__init__(engine)
        self._largest = largest

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        parts = {name: tensor.split(self._largest) for name, tensor in inputs.items()}
        calls = [dict(zip(parts, call, strict=True)) for call in zip(*parts.values(), strict=True)]
        results = [self.engine.run(call, outputs) for call in calls]
        return {name: torch.cat([result[name] for result in results]) for name in outputs}


@dataclass(frozen=True, slots=True)
class TorchEngine:
    """A PyTorch function or module in this process; its arguments are `inputs`, in that order."""

    function: Callable[..., Sequence[Tensor] | Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        with torch.inference_mode():
            results = self.function(*(inputs[name] for name in self.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        named = dict(zip(self.outputs, results, strict=True))
        return {name: named[name] for name in outputs}


_DTYPES: Final = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
}


class OrtEngine:
    """An ONNX file in ONNX Runtime, in this process, on the CPU.

    Inputs are brought to the types of the graph, as those of a served engine are.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        """threads: 0 is one per core.

        Raises WanstreamError when the file is absent or no valid graph.
        """
        self._path = path
        self._graph = open_graph(path, threads)
        self._dtypes = {value.name: _DTYPES[value.type] for value in self._graph.get_inputs()}
        self.inputs = tuple(self._dtypes)
        self.outputs = tuple(value.name for value in self._graph.get_outputs())

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        feeds: dict[str, Any] = {
            name: inputs[name].to(dtype).contiguous().numpy() for name, dtype in self._dtypes.items()
        }
        # ONNX Runtime does so in its own threads and the first that opens a session; this one computes too.
        torch.set_flush_denormal(True)
        try:
            results = self._graph.run(list(outputs), feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"Engine '{self._path}' failed: {error}") from error
        return {name: torch.from_numpy(array) for name, array in zip(outputs, results, strict=True)}


class ManifestEngine:
    """Base of engines that may not be in memory: names and types are those of the manifest."""

    def __init__(self, manifest: EngineManifest) -> None:
        self.name = manifest.name
        self.inputs = tuple(tensor.name for tensor in manifest.inputs)
        self.outputs = tuple(tensor.name for tensor in manifest.outputs)
        self.dtypes = {tensor.name: getattr(torch, tensor.dtype) for tensor in manifest.inputs}


class ReopenableEngine(ManifestEngine):
    """An engine of a model repository in ONNX Runtime, in this process, that may leave the memory."""

    def __init__(
        self,
        manifest: EngineManifest,
        path: Path,
        threads: int,
        weights: Mapping[str, Any] | None = None,
        place: OrtPlace | None = None,
    ) -> None:
        """path: of the graph. threads, weights, place: as of `BoundEngine`. It is not open yet."""
        super().__init__(manifest)
        self._path, self._place, self._threads = path, place or OrtPlace(), threads
        self._manifest, self._weights = manifest, weights
        self._opened: BoundEngine | None = None

    def open(self) -> None:
        """No effect when it is open. Raises WanstreamError when the file is absent or no valid graph."""
        self._opened = self._opened or BoundEngine(
            self._manifest, self._path, self._place, self._threads, self._weights
        )

    def close(self) -> None:
        """Free its memory; no effect when it is not open."""
        self._opened = None

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        assert self._opened is not None, f"engine {self.name} is used while it is closed"
        return self._opened.run(inputs, outputs)


class TritonEngine(ManifestEngine):
    """An engine that is a model of the Triton server that this process belongs to.

    Inputs are brought to the types of its manifest, so engines of different precision work together.
    """

    def __init__(
        self, manifest: EngineManifest, models: ModelRunner, device: torch.device | None = None
    ) -> None:
        """device: where inputs and outputs are; None: the CPU."""
        super().__init__(manifest)
        self._models = models
        self._device = device or torch.device("cpu")

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        feeds = {name: to_triton(inputs[name].to(self._device, dtype)) for name, dtype in self.dtypes.items()}
        results = self._models.run(self.name, feeds, list(outputs))
        return {name: from_triton(results[name]) for name in outputs}


@dataclass(frozen=True, slots=True)
class VaeEngines:
    """The four graphs of an autoencoder; a stream is one call of a `first` graph, then calls of `next`."""

    encoder_first: Engine
    encoder_next: Engine
    decoder_first: Engine
    decoder_next: Engine
    groups: FrameGroups  # how the encoder cuts pixel frames into latent frames


@dataclass(frozen=True, slots=True)
class BranchEngines:
    """The graphs of a VACE branch."""

    transformer: Engine  # with the branch; its cache is that of the plain one
    text_kv: Engine  # prompt embedding -> cross-attention keys and values of every block of the branch


@dataclass(frozen=True, slots=True)
class Engines:
    """Everything that the loop computes with. vace: for chunks with a context; None: none can have one."""

    transformer: Engine
    text_kv: Engine  # prompt embedding -> cross-attention keys and values of every layer
    vae: VaeEngines
    vace: BranchEngines | None = None
