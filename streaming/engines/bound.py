"""Engines in ONNX Runtime on PyTorch's own memory: inputs and outputs are bound where they are."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from streaming.engines.manifest import EngineManifest, TensorInfo
from streaming.engines.ort import GpuOptions, Provider, open_graph, ort_values, run_options
from streaming.engines.records import EngineError
from streaming.specs import TEMPORAL_FACTOR

CPU: Final = torch.device("cpu")
_BFLOAT16: Final = 16  # ONNX's number; numpy has no such type
_ELEMENTS: Final[dict[torch.dtype, Any]] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: _BFLOAT16,
    torch.int64: np.int64,
}


@dataclass(frozen=True, slots=True)
class OrtPlace:
    """Where engines run in ONNX Runtime.

    device          of inputs and outputs, too
    stream          of PyTorch, that everything is queued on; None on the CPU
    runtime_cache   see `GpuOptions`
    """

    provider: Provider = "cpu"
    device: torch.device = CPU
    stream: Any = None
    runtime_cache: Path = Path()

    @staticmethod
    def on_gpu(provider: Provider, runtime_cache: Path) -> "OrtPlace":
        """The first GPU, with a stream of its own: PyTorch's default stream has no address."""
        device = torch.device("cuda", 0)
        return OrtPlace(provider, device, torch.cuda.Stream(device), runtime_cache)

    def options(self, manifest: EngineManifest) -> GpuOptions | None:
        """Of a session."""
        if self.provider == "cpu":
            return None
        address, profiles = self.stream.cuda_stream, max(1, len(manifest.profiles))
        return GpuOptions(self.device.index, address, self.runtime_cache, profiles)

    @contextlib.contextmanager
    def after_and_before_others(self) -> Iterator[None]:
        """What is queued inside runs after all that PyTorch has queued, and before what it queues later.

        So the memory of a call's tensors may be used again by whoever PyTorch gives it to.
        """
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            yield
        finally:
            current.wait_stream(self.stream)


class BoundEngine:
    """A graph in ONNX Runtime, in this process. Inputs are brought to its types and its device."""

    def __init__(
        self,
        manifest: EngineManifest,
        path: Path,
        place: OrtPlace,
        threads: int = 0,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """path: of the graph. threads: 0 is one per core. weights: arrays in place of the file's, by name.

        Raises WanstreamError when the file is absent or no valid graph, or does not run at this place.
        """
        self._manifest, self._path, self._place = manifest, path, place
        self._weights = weights, ort_values(weights or {})  # the graph only points at them
        options = place.options(manifest)
        self._graph = open_graph(path, threads, self._weights[1], place.provider, options)
        self._outputs = {tensor.name: tensor for tensor in manifest.outputs}
        self.inputs = tuple(tensor.name for tensor in manifest.inputs)
        self.outputs = tuple(self._outputs)

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """As Engine.run."""
        device, specs = self._place.device, self._manifest.inputs
        feeds = {t.name: inputs[t.name].to(device, _dtype(t)).contiguous() for t in specs}
        sizes = self._sizes(feeds)
        every = _with_frames(sizes)
        results = {name: _empty(self._outputs[name], every, device) for name in outputs}
        binding = self._graph.io_binding()
        for name, tensor in feeds.items():
            binding.bind_input(name, *_memory(tensor))
        for name, tensor in results.items():
            binding.bind_output(name, *_memory(tensor))
        # ONNX Runtime does so in its own threads and the first that opens a session; this one computes too.
        torch.set_flush_denormal(True)
        chosen = run_options(self._place.provider, self._profile(sizes))
        try:
            with self._place.after_and_before_others():
                self._graph.run_with_iobinding(binding, chosen)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(f"Engine '{self._path}' failed: {error}") from error
        return results

    def _sizes(self, feeds: Mapping[str, Tensor]) -> dict[str, int]:
        """Of the dynamic axes in this call. Raises EngineError for inputs of other shapes."""
        sizes: dict[str, int] = {}
        for tensor in self._manifest.inputs:
            shape = tuple(feeds[tensor.name].shape)
            wanted = tuple(
                axis if isinstance(axis, int) else sizes.setdefault(axis, size)
                for axis, size in zip(tensor.shape, shape, strict=False)
            )
            if shape != wanted or len(shape) != len(tensor.shape):
                raise EngineError(
                    f"Engine '{self._manifest.name}' was called with {tensor.name} of shape {list(shape)}; "
                    f"it takes {list(tensor.shape)}, with {sizes}."
                )
        return sizes

    def _profile(self, sizes: Mapping[str, int]) -> int:
        """Number of the first profile that has these sizes; the engine refuses what none has."""
        for number, profile in enumerate(self._manifest.profiles):
            if all(found.min <= sizes.get(axis, found.min) <= found.max for axis, found in profile.items()):
                return number
        return 0


def _with_frames(sizes: Mapping[str, int]) -> dict[str, int]:
    """With the axis that an autoencoder's output has in place of its input's: latent or pixel frames."""
    if "F" in sizes:
        return {"T": TEMPORAL_FACTOR * sizes["F"], **sizes}
    return {"F": sizes["T"] // TEMPORAL_FACTOR, **sizes} if "T" in sizes else dict(sizes)


def _dtype(tensor: TensorInfo) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, tensor.dtype)
    return dtype


def _empty(tensor: TensorInfo, sizes: Mapping[str, int], device: torch.device) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape]
    return torch.empty(shape, dtype=_dtype(tensor), device=device)


def _memory(tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
    """What ONNX Runtime binds: device, its number, type, shape and address."""
    shape = list(tensor.shape)
    return tensor.device.type, tensor.device.index or 0, _ELEMENTS[tensor.dtype], shape, tensor.data_ptr()
