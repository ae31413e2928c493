"""The caller's side of `streaming/kept.py`: engines on the server that keep their caches."""

import itertools
import uuid
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from streaming.engines import ManifestEngine
from streaming.exchange import received, sent
from streaming.kept import KEPT_INPUT, NEW_CACHE, KeptCommand
from streaming.manifest import EngineManifest
from streaming.sessions import ModelRunner


class KeepingEngine(ManifestEngine):
    """A model of the Triton server, on ONNX Runtime, whose new caches stay where they were made.

    A tensor on device `meta` stands for each of them: it has their shape and no data, and can be given to
    later calls of this engine. Caches that come as ordinary tensors are sent.
    """

    def __init__(self, manifest: EngineManifest, models: ModelRunner) -> None:
        super().__init__(manifest)
        self._models = models
        self.begins_streams = manifest.begins_streams
        self._shapes = {
            tensor.name: (tuple(map(int, tensor.shape)), getattr(torch, tensor.dtype))
            for tensor in manifest.outputs
            if tensor.name.startswith(NEW_CACHE)
        }
        self._prefix, self._count = uuid.uuid4().hex, itertools.count()
        self._sets = WeakIdKeyDictionary()  # stand-in -> its _Set
        self._unwanted: deque[str] = deque()  # names of sets to drop with the next call

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        return self.call(inputs, outputs, self.dtypes)

    def call(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        dtypes: Mapping[str, torch.dtype],
        first: str | None = None,
    ) -> dict[str, Tensor]:
        """Run the engine's graph, or that of engine `first`, whose inputs have these types."""
        command = self._command(inputs.values(), first)
        feeds: dict[str, Any] = {
            name: sent(inputs[name].to("cpu", dtype))
            for name, dtype in dtypes.items()
            if not inputs[name].is_meta
        }
        feeds[KEPT_INPUT] = np.array([command.encode()], dtype=np.object_)
        wanted = [name for name in outputs if name not in self._shapes]
        try:
            results = self._models.run(self.name, feeds, wanted)
        except BaseException:
            self._unwanted.extend((*command.drop, command.keep))  # the engine may not have heard of it
            raise
        stand_ins = self._stand_ins(command.keep)
        return {n: stand_ins[n] if n in stand_ins else received(results[n]) for n in outputs}

    def _command(self, given: Iterable[Tensor], first: str | None) -> KeptCommand:
        used = {self._sets[tensor].name for tensor in given if tensor.is_meta}
        assert len(used) <= 1, "caches of different calls were mixed"
        drop = [self._unwanted.popleft() for _ in range(len(self._unwanted))]
        return KeptCommand(next(iter(used), None), f"{self._prefix}-{next(self._count)}", tuple(drop), first)

    def _stand_ins(self, name: str) -> dict[str, Tensor]:
        """For the caches of a set; the engine may forget it when none of them is left."""
        kept = _Set(name)
        weakref.finalize(kept, self._unwanted.append, name)
        tensors = {n: torch.empty(s, dtype=d, device="meta") for n, (s, d) in self._shapes.items()}
        for tensor in tensors.values():
            self._sets[tensor] = kept
        return tensors


class BeginningEngine(ManifestEngine):
    """The graph that begins the streams of a `KeepingEngine`, in the same process: its caches stay there."""

    def __init__(self, manifest: EngineManifest, then: KeepingEngine) -> None:
        super().__init__(manifest)
        self._then = then

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        return self._then.call(inputs, outputs, self.dtypes, self.name)


@dataclass(frozen=True, eq=False)
class _Set:
    name: str
