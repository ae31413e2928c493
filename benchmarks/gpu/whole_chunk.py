"""A whole chunk through the product's loop: ms per 12 pictures, pictures per second, peak memory.

    python -m benchmarks.gpu.whole_chunk

Random weights of the real 1.3B shapes in bfloat16, 4 denoising steps, clean pass, each decoder, on PyTorch.
`ms_per_chunk` is of a stream that runs freely; the times of its parts are from more chunks, in which each
engine call is waited for, and `host_ms` is what is left: noise, tables, pictures to the CPU and to 8 bits.
For comparison, published at 480x832, 1.3B, 4 steps, one H100: LongLive 20.7, Reward-Forcing 23.1 per second
(their authors), MemFlow 20.5 at 848x480 and 34.8 to 36.7 at 512x288 (third party), FlashDreams
344 ms per 12 pictures (self-forcing, window 21, tiny autoencoder).
"""

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu.common import Result, Row, Wrong, parse, peak_mb, reset_peak
from benchmarks.gpu.random_model import Clock, Shape, random_model
from streaming.specs import LONGLIVE, MEMFLOW, REWARD_FORCING, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.sessions import Stream

WARM_UP, CHUNKS, WAITED = 5, 8, 3
LARGE, SMALL = (480, 832), (320, 576)


@dataclass(frozen=True)
class Case:
    """What is measured; compiled: the transformer's blocks, with torch.compile."""

    spec: PipelineSpec
    size: tuple[int, int]
    vae: str
    compiled: bool


CASES = (  # the most wanted first: a run may be cut off
    Case(LONGLIVE, LARGE, "wan", False),
    Case(LONGLIVE, LARGE, "tae", True),
    Case(LONGLIVE, LARGE, "lightvae", True),
    Case(LONGLIVE, SMALL, "tae", True),
    Case(LONGLIVE, SMALL, "wan", True),
    Case(LONGLIVE, SMALL, "lightvae", True),
    Case(REWARD_FORCING, LARGE, "wan", False),
    Case(MEMFLOW, LARGE, "wan", False),
    Case(LONGLIVE, LARGE, "tae", False),
)


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True
    result = Result("whole-chunk", options, precision="bfloat16")
    for case in (Case(LONGLIVE, (32, 48), "tiny", False),) if options.tiny else CASES:
        result.add(measure(case, options.tiny, device))
    result.finish()


def measure(case: Case, tiny: bool, device: torch.device) -> Row:
    """Chunks of a steady stream."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = Shape(*case.size, case.vae, tiny)
    row: Row = {"pipeline": case.spec.id, "picture": f"{shape.width}x{shape.height}", "vae": shape.vae}
    row["compiled"] = case.compiled
    warm_up, chunks, waited = (1, 1, 1) if tiny else (WARM_UP, CHUNKS, WAITED)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        began, clock = time.perf_counter(), Clock()
        model = random_model(
            case.spec, shape, dtype, device, drawn_on=device, compile_blocks=case.compiled, clock=clock
        )
        stream = ModelPipeline(case.spec, model, 42).open_stream()
        for _ in range(warm_up):
            chunk_of(stream)
        row["warm_up_s"] = time.perf_counter() - began
        reset_peak(device)
        free = [chunk_of(stream) for _ in range(chunks)]
        clock.wait = True
        slow = [chunk_of(stream) for _ in range(waited)]
    except (Exception, Wrong) as error:  # that it fails on this device is a result too
        return row | {"error": f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]}
    ms, pictures = float(np.median([part["ms"] for part in free])), free[-1]["pictures"]
    row |= {"ms_per_chunk": ms, "pictures": pictures, "fps": 1000 * pictures / ms, "peak_mb": peak_mb(device)}
    row |= {name: float(np.median([part[name] for part in slow])) for name in slow[-1] if name != "pictures"}
    row["waited_ms"] = row.pop("ms")
    return row


def chunk_of(stream: Stream) -> Row:
    """Make a chunk: its time, its pictures, the times of its parts. Raises Wrong when they show nothing."""
    began = time.perf_counter()
    parts = list(stream.next_chunk({"prompts": "a boat", "input_mode": "text"}, None, lambda: False))
    ms = 1000 * (time.perf_counter() - began)  # pictures are on the CPU: nothing of them is pending
    images = np.concatenate([images for images, _ in parts])
    if images.std() < 1:
        raise Wrong("the pictures show nothing.")
    splits = parts[-1][1]["timings_ms"]
    times = {f"{name}_ms": splits.get(name, 0.0) for name in ("denoise", "decode", "clean")}
    return {"ms": ms, "pictures": len(images), **times, "host_ms": ms - sum(splits.values())}


if __name__ == "__main__":
    main()
