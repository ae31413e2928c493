"""The caller's side of `streaming/held.py`: an engine on the server that holds inputs until they change."""

import itertools
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from streaming.engines import ManifestEngine
from streaming.exchange import received, sent
from streaming.held import GROUPS, HELD_INPUT, HeldCommand
from streaming.manifest import EngineManifest
from streaming.sessions import ModelRunner


class HoldingEngine(ManifestEngine):
    """A model of the Triton server, on ONNX Runtime, which is sent its caches only when they have changed.

    A tensor has changed if it is another one, or was written to: PyTorch counts that.
    """

    def __init__(self, manifest: EngineManifest, models: ModelRunner) -> None:
        super().__init__(manifest)
        self._models = models
        self._groups = {prefix: [n for n in self.inputs if n.startswith(prefix)] for prefix in GROUPS}
        self._prefix, self._count = uuid.uuid4().hex, itertools.count()
        self._held: dict[str, _Held] = {}

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        feeds = {name: inputs[name] for name in self.inputs}
        names: dict[str, str] = {}
        for group, members in self._groups.items():
            tensors = [inputs[name] for name in members]
            known = self._held.get(group)
            if known is not None and known.has(tensors):
                for name in members:
                    del feeds[name]
            else:
                known = self._held[group] = _Held(f"{self._prefix}-{next(self._count)}", tensors)
            names[group] = known.name
        arrays: dict[str, Any] = {
            name: sent(tensor.to("cpu", self.dtypes[name])) for name, tensor in feeds.items()
        }
        arrays[HELD_INPUT] = np.array([HeldCommand(names).encode()], dtype=np.object_)
        try:
            results = self._models.run(self.name, arrays, list(outputs))
        except BaseException:
            self._held.clear()  # the engine may not have got them
            raise
        return {name: received(results[name]) for name in outputs}


class _Held:
    """What was sent under a name. It keeps nothing alive: a stream that ended takes its caches along."""

    def __init__(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.name = name
        self._sent = [(weakref.ref(tensor), _writes(tensor)) for tensor in tensors]

    def has(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors with the same content."""
        pairs = zip(tensors, self._sent, strict=True)
        return all(
            ref() is tensor and writes is not None and _writes(tensor) == writes
            for tensor, (ref, writes) in pairs
        )


def _writes(tensor: Tensor) -> int | None:
    """How often a tensor, or a view of it, was written to; None where PyTorch does not count."""
    return None if tensor.is_inference() else tensor._version
