"""What a chunk copies in the self-attention cache: frames that are new or changed, never the cache itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from streaming.session import Session
from streaming.specs import LONGLIVE, MEMFLOW, REWARD_FORCING, STREAMDIFFUSIONV2, PipelineSpec
from tests.glass_model import GlassModel
from tests.slow_stream import Ask
from tests.unit.test_stream_cache import make_chunk

# Latent frames that are written in a chunk once the window is full: the new ones, an averaged sink, and one
# frame of the memory bank.
WRITTEN: list[tuple[PipelineSpec, int]] = [
    (LONGLIVE, 3),
    (STREAMDIFFUSIONV2, 1),
    (REWARD_FORCING, 3 + 3),
    (MEMFLOW, 3 + 1),
]


class Copies(TorchDispatchMode):
    """Counts the bytes that are written to some memory, and the operations that make a copy of all of it."""

    def __init__(self, layers: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._layers = {layer.untyped_storage().data_ptr(): layer.nbytes for layer in layers}
        self.written = 0
        self.whole: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, Tensor)]
        tensors += [t for a in args if isinstance(a, (list, tuple)) for t in a if isinstance(t, Tensor)]
        if func is torch.ops.aten.copy_.default and self._size(args[0]):
            self.written += args[0].nbytes
        elif isinstance(result, Tensor) and not self._size(result):
            read = [t for t in tensors if self._size(t) and t.nbytes == self._size(t)]
            self.whole += [str(func) for t in read if result.nbytes >= t.nbytes]
        return result

    def _size(self, tensor: Tensor) -> int:
        """Bytes of the layer that the tensor lies in; 0: in none."""
        return self._layers.get(tensor.untyped_storage().data_ptr(), 0)


@contextmanager
def watching(session: Session) -> Iterator[Copies]:
    copies = Copies(session.kv.slots.layers)
    with copies:
        yield copies


@pytest.mark.parametrize(("pipeline", "frames"), WRITTEN, ids=lambda value: getattr(value, "id", None))
def test_a_chunk_writes_only_frames_that_are_new_or_changed(pipeline: PipelineSpec, frames: int) -> None:
    assert pipeline.loop is not None
    glass = GlassModel(pipeline.loop, pipeline.loop.cache_frames)
    session = Session.begin(glass.loaded)
    for _ in range(16):
        make_chunk(glass, session, Ask())
    layers = session.kv.slots.layers
    frame_bytes = sum(layer.nbytes for layer in layers) // layers[0].shape[2]  # of one token per frame

    with watching(session) as copies:
        for _ in range(6):
            make_chunk(glass, session, Ask())

    assert copies.written == 6 * frames * frame_bytes
    assert copies.whole == []
    assert session.kv.slots.layers is layers
