"""Where the time of a chunk goes: pure arithmetic on what the server, Triton and a peer have noted.

All times in ms. A chunk, as the gateway sees it, holds the steps of the pipeline's model, and each step holds
the engine's own work and the transfer of its tensors:

    chunk = gateway and gRPC + loop + steps         steps = engines' work + transfer
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streaming.specs import TEMPORAL_FACTOR, LoopSpec

# (height, width, pictures per second) on one H100: LongLive and Reward-Forcing by their authors, MemFlow by a
# third party. A chunk has 12 pictures.
PUBLISHED = {
    "longlive": (480, 832, 20.7),
    "reward-forcing": (480, 832, 23.1),
    "memflow": (480, 848, 20.5),
}
PUBLISHED_PICTURES = 12
STEPS = ("text", "encode", "recache", "context", "denoise", "clean", "decode")  # order of a table


@dataclass(frozen=True, slots=True)
class ChunkSample:
    """One chunk as the gateway reports it. timings_ms: of the pipeline's steps."""

    number: int
    chunk_ms: float
    timings_ms: Mapping[str, float]

    @property
    def steps_ms(self) -> float:
        return sum(self.timings_ms.values())


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What Triton counted for a model: calls, and ms in all of waiting, moving tensors, and work."""

    calls: int = 0
    queue_ms: float = 0.0
    input_ms: float = 0.0
    work_ms: float = 0.0
    output_ms: float = 0.0

    def since(self, before: "EngineTimes") -> "EngineTimes":
        """What was counted after `before`."""
        return EngineTimes(
            self.calls - before.calls,
            self.queue_ms - before.queue_ms,
            self.input_ms - before.input_ms,
            self.work_ms - before.work_ms,
            self.output_ms - before.output_ms,
        )


def split(samples: Sequence[ChunkSample], denoise_steps: int) -> dict[str, float]:
    """Mean ms of each step of a chunk, of one denoising step, and of what is between steps and chunk."""
    if not samples:
        return {}
    names = sorted({name for sample in samples for name in sample.timings_ms}, key=_step_order)
    means = {name: _mean([sample.timings_ms.get(name, 0.0) for sample in samples]) for name in names}
    if "denoise" in means and denoise_steps:
        means["denoise_per_step"] = means["denoise"] / denoise_steps
    means["outside_of_steps"] = _mean([sample.chunk_ms - sample.steps_ms for sample in samples])
    return {name: round(value, 2) for name, value in means.items()}


def overhead(samples: Sequence[ChunkSample], work_ms_per_chunk: float) -> dict[str, float]:
    """What a chunk takes beside the work of its engines; `ratio` is that over the work.

    work_ms_per_chunk: of all engines
    """
    if not samples or work_ms_per_chunk <= 0:
        return {}
    chunk_ms, steps_ms = _mean([s.chunk_ms for s in samples]), _mean([s.steps_ms for s in samples])
    return {
        "chunk_ms": round(chunk_ms, 2),
        "engines_ms": round(work_ms_per_chunk, 2),
        "transfer_ms": round(steps_ms - work_ms_per_chunk, 2),
        "gateway_grpc_loop_ms": round(chunk_ms - steps_ms, 2),
        "ratio": round(chunk_ms / work_ms_per_chunk - 1, 3),
    }


def beside_real_engines(pipeline: str, beside: Mapping[str, float], pixels: int) -> dict[str, float] | None:
    """Gateway, gRPC and loop beside the published time of real engines; None where none is published.

    beside   of `overhead`. pixels   of the measured pictures; the time is scaled with them. The transfer of
    tensors is left out: on a GPU it is copies in the GPU's memory, unlike those measured here.
    """
    published = PUBLISHED.get(pipeline)
    if published is None or not beside:
        return None
    height, width, fps = published
    engines_ms = 1000 * PUBLISHED_PICTURES / fps
    overhead_ms = beside["gateway_grpc_loop_ms"] * height * width / pixels
    return {
        "height": height,
        "width": width,
        "engines_ms": round(engines_ms, 1),
        "overhead_ms": round(overhead_ms, 1),
        "ratio": round(overhead_ms / engines_ms, 3),
    }


def new_samples(known: Sequence[ChunkSample], metrics: Mapping[str, Any]) -> list[ChunkSample]:
    """The newest chunk of a session's metrics, unless it is known."""
    number = int(metrics["chunks"]) - 1
    if number < 0 or metrics["last_chunk_ms"] is None or (known and known[-1].number >= number):
        return []
    return [ChunkSample(number, float(metrics["last_chunk_ms"]), dict(metrics["timings_ms"]))]


def first_frame_of_chunk(loop: LoopSpec, mode: str, number: int, resets: int = 0) -> int:
    """Index in the stream of a chunk's first picture.

    The first latent frame after a reset is one picture, each later one four (Wan VAE).

    resets   of chunks before this one; the first chunk is not counted
    """
    if number == 0:
        return 0
    first = 1 + (loop.chunk_frames(mode, first=True) - 1) * TEMPORAL_FACTOR
    later = loop.frames_per_chunk * TEMPORAL_FACTOR
    return first * (1 + resets) + later * (number - 1 - resets)


def gaps_ms(times_s: Sequence[float]) -> list[float]:
    """ms between pictures that follow each other."""
    return [1000 * (after - before) for before, after in itertools.pairwise(times_s)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _step_order(name: str) -> tuple[int, str]:
    return (STEPS.index(name) if name in STEPS else len(STEPS), name)
