"""A whole chunk through the product's loop: ms per 12 pictures, pictures per second, peak memory.

    python -m benchmarks.gpu.whole_chunk

Random weights of the real 1.3B shapes in bfloat16, 4 denoising steps, clean pass, each decoder.
For comparison, published at 480x832, 1.3B, 4 steps, one H100: LongLive 20.7, Reward-Forcing 23.1 per second
(their authors), MemFlow 20.5 at 848x480 and 34.8 to 36.7 at 512x288 (third party), FlashDreams
344 ms per 12 pictures (self-forcing, window 21, tiny autoencoder).
"""

import sys
import time

import numpy as np
import torch

from benchmarks.gpu.common import Row, finish, parse, peak_mb, reset_peak
from benchmarks.gpu.random_model import Shape, random_model
from streaming.model_pipeline import ModelPipeline
from streaming.specs import LONGLIVE, MEMFLOW, REWARD_FORCING, PipelineSpec

PICTURES = ((320, 576), (480, 832))
WARM_UP, CHUNKS = 5, 10


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    rows: list[Row] = []
    if options.tiny:
        rows.append(measure(LONGLIVE, Shape(32, 48, "tiny", True), device, compiled=False))
    else:
        for height, width in PICTURES:
            for vae in ("wan", "lightvae", "tae"):
                for compiled in (False, True):
                    rows.append(measure(LONGLIVE, Shape(height, width, vae, False), device, compiled))
            for spec in (REWARD_FORCING, MEMFLOW):
                rows.append(measure(spec, Shape(height, width, "wan", False), device, compiled=False))
    finish("whole-chunk", options, rows, precision="bfloat16")


def measure(spec: PipelineSpec, shape: Shape, device: torch.device, compiled: bool) -> Row:
    """Chunks of a steady stream."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    head: Row = {"pipeline": spec.id, "picture": f"{shape.width}x{shape.height}", "vae": shape.vae}
    head["compiled"] = compiled
    try:
        stream = ModelPipeline(spec, random_model(spec, shape, dtype, device, compiled), 42).open_stream()
        times, splits, pictures = [], [], 0
        warm_up, chunks = (1, 1) if shape.tiny else (WARM_UP, CHUNKS)
        for number in range(warm_up + chunks):
            if number == warm_up:
                reset_peak(device)
            began = time.perf_counter()
            parts = list(stream.next_chunk({"prompts": "a boat", "input_mode": "text"}, None, lambda: False))
            times.append(1000 * (time.perf_counter() - began))  # pictures are on the CPU: nothing is pending
            splits.append(parts[-1][1]["timings_ms"])
            images = np.concatenate([images for images, _ in parts])
            pictures = len(images)
            if images.std() < 1:
                sys.exit(f"{head}: the pictures show nothing.")
    except torch.OutOfMemoryError as error:
        return head | {"error": str(error).split("\n", 1)[0]}
    chunk_ms = float(np.median(times[warm_up:]))
    row = head | {"ms_per_chunk": chunk_ms, "pictures": pictures, "fps": 1000 * pictures / chunk_ms}
    row |= {name: float(np.median([s.get(name, 0.0) for s in splits[warm_up:]])) for name in splits[-1]}
    row["peak_mb"] = peak_mb(device)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
