"""Engines: a graph that runs somewhere, behind one interface (serving.md 8.5).

The loop names inputs and outputs and never asks where an engine runs. Placements here are in process: PyTorch
modules (tests, goldens) and ONNX Runtime (tests, benchmarks).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from streaming.errors import WanstreamError
from streaming.video import FrameGroups


class Engine(Protocol):
    """One graph: tensors by name in, tensors by name out."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in the graph's order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all outputs, in the graph's order."""

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """The requested outputs by name. Raises WanstreamError when the engine fails."""


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


class OrtEngine:
    """An ONNX file in ONNX Runtime, in this process, on the CPU."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """threads: 0 is one per core. Raises WanstreamError when the file is absent or no valid graph."""
        import onnxruntime  # an extra: the gateway's installation has none

        if not path.is_file():
            raise WanstreamError(f"engine '{path}' does not exist. Export it: python -m export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise WanstreamError(
                f"engine '{path}' cannot be loaded ({error}). Export it again: python -m export"
            ) from error
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        feeds: dict[str, Any] = {name: inputs[name].contiguous().numpy() for name in self.inputs}
        results = self._session.run(list(outputs), feeds)
        return {name: torch.from_numpy(array) for name, array in zip(outputs, results, strict=True)}


@dataclass(frozen=True, slots=True)
class VaeEngines:
    """The four graphs of an autoencoder; a stream is one call of a `first` graph, then calls of `next`."""

    encoder_first: Engine
    encoder_next: Engine
    decoder_first: Engine
    decoder_next: Engine
    groups: FrameGroups  # how the encoder cuts pixel frames into latent frames


@dataclass(frozen=True, slots=True)
class Engines:
    """Everything that the loop computes with."""

    transformer: Engine
    text_kv: Engine  # prompt embedding -> cross-attention keys and values of every layer
    vae: VaeEngines
    recache: Engine | None = None  # the transformer's graph for up to a whole window; None: `transformer` can
