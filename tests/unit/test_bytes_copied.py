"""What the loop copies of its caches in one chunk: the new frames, never the whole cache."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from streaming.conditioning.prompts import PromptRequest
from streaming.loop import ChunkRequest, StepTimer, generate_chunk
from streaming.session import Session
from streaming.specs import (
    KREA_REALTIME_VIDEO,
    LONGLIVE,
    MEMFLOW,
    REWARD_FORCING,
    STREAMDIFFUSIONV2,
    TEXT,
    PipelineSpec,
)
from tests.glass_model import FrameNumbers, GlassModel

STEADY, CHUNKS = 8, 6  # chunks until the window is full and moves; chunks that are counted
COPIES = ("aten.copy_", "aten.clone", "aten.cat", "aten._to_copy", "aten.index", "aten.roll")


class CountedCopies(TorchDispatchMode):
    """Counts the tokens of keys and values, [2, B, tokens, N, D], that are written to memory by copying."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Sequence[Any] = (), keywords: Any = None
    ) -> Any:
        result = operator(*arguments, **(keywords or {}))
        is_copy = str(operator).startswith(COPIES)
        if is_copy and isinstance(result, Tensor) and result.ndim == 5 and result.shape[0] == 2:
            self.tokens += result.shape[2]
        return result


def copied_frames(pipeline: PipelineSpec) -> list[float]:
    """Latent frames of keys and values that each chunk of a steady stream copies; of one layer."""
    assert pipeline.loop is not None
    glass = GlassModel(pipeline.loop, pipeline.loop.cache_frames)
    model, noise = glass.loaded, FrameNumbers()
    session = Session.begin(model)
    request = ChunkRequest(PromptRequest((("1", 1.0),)), steps=(1000, 500, 250), seed=0, mode=TEXT)
    counted = []
    for _ in range(STEADY + CHUNKS):
        with CountedCopies() as copies:
            for _ in generate_chunk(model, session, request, noise, StepTimer()):
                pass
        counted.append(copies.tokens / model.tokens_per_frame)
    return counted[STEADY:]


@pytest.mark.parametrize(
    ("pipeline", "most", "mean"),
    [
        (LONGLIVE, 3, 3.0),  # the new frames
        (STREAMDIFFUSIONV2, 1, 1.0),
        (KREA_REALTIME_VIDEO, 3, 3.0),  # the context frames, of which the cache is made anew
        (REWARD_FORCING, 6, 6.0),  # the new frames, and the three of the sink, which changes with every chunk
        (MEMFLOW, 7, 5.0),  # the new frames, one for a record, and the bank's blocks where they changed
    ],
    ids=lambda value: value.id if isinstance(value, PipelineSpec) else "",
)
def test_a_chunk_copies_its_new_frames_and_not_the_cache(
    pipeline: PipelineSpec, most: int, mean: float
) -> None:
    counted = copied_frames(pipeline)

    assert max(counted) <= most, counted
    assert sum(counted) / len(counted) <= mean, counted
    assert pipeline.loop is not None
    if pipeline.loop.cached_keys.value == "rotated":
        assert max(counted) < pipeline.loop.cache_frames


def test_the_counter_sees_a_copy_of_a_whole_cache() -> None:
    cache = torch.zeros(2, 1, 9, 1, 12)

    with CountedCopies() as copies:
        torch.cat([cache[:, :, 3:], cache[:, :, :3]], dim=2)
        cache[:, :, :6] = cache[:, :, 3:].clone()

    assert copies.tokens == 9 + 6 + 6
