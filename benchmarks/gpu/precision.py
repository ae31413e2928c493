"""Does the GPU compute what the CPU does, and what does bfloat16 cost over a stream?

    python -m benchmarks.gpu.precision

The same random weights and noise in every run, 20 chunks. Of tiny networks: float32 on the CPU, which the
golden cases prove, float32 on the GPU with TF32 off, bfloat16 on the GPU. Of the real 1.3B, whose stream
takes a CPU hours: float32 on the GPU and bfloat16 on the GPU, fewer chunks. Pictures are compared
chunk by chunk.
"""

from itertools import count

import numpy as np
import torch

from benchmarks.gpu.common import Result, Row, Wrong, cosine, parse, relative_rms
from benchmarks.gpu.random_model import Shape, random_model
from streaming.specs import LONGLIVE, MEMFLOW, REWARD_FORCING, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline

PIPELINES = (LONGLIVE, REWARD_FORCING, MEMFLOW)
FLOAT32_ALIKE = 0.9999  # of the first chunk's pictures
CHUNKS, REAL_CHUNKS, TINY_CHUNKS = 20, 10, 2
CPU = torch.device("cpu")
REAL = Shape(320, 576, "tae", False)


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device, chunks = torch.device(options.device), TINY_CHUNKS if options.tiny else CHUNKS
    shape = Shape(32, 48, "tiny", True)
    result = Result("precision", options, precision="float32, bfloat16")
    for spec in PIPELINES[:1] if options.tiny else PIPELINES:
        reference = pictures_of(spec, shape, torch.float32, CPU, CPU, chunks)
        rows = compare(spec, shape, torch.float32, device, CPU, reference)
        result.add(*rows, *compare(spec, shape, torch.bfloat16, device, CPU, reference))
        if not rows[0]["cosine"] >= FLOAT32_ALIKE:
            result.finish()
            raise Wrong(f"{spec.id}: float32 on {device} is wrong: {rows[0]}")
    if device.type == "cuda":
        reference = pictures_of(LONGLIVE, REAL, torch.float32, device, device, REAL_CHUNKS)
        result.add(*compare(LONGLIVE, REAL, torch.bfloat16, device, device, reference))
    result.finish()


def compare(
    spec: PipelineSpec,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    drawn_on: torch.device,
    reference: list[torch.Tensor],
) -> list[Row]:
    """A row for each chunk of the reference."""
    found = pictures_of(spec, shape, dtype, device, drawn_on, len(reference))
    head: Row = {"pipeline": spec.id, "network": "tiny" if shape.tiny else "1.3B"}
    head["type"] = str(dtype).removeprefix("torch.")
    return [
        head | {"chunk": number, "cosine": cosine(a, b), "relative_rms": relative_rms(a, b)}
        for number, a, b in zip(count(), found, reference, strict=False)
    ]


def pictures_of(
    spec: PipelineSpec,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    drawn_on: torch.device,
    chunks: int,
) -> list[torch.Tensor]:
    """Each chunk's pictures as float32 around zero."""
    model = random_model(spec, shape, dtype, device, drawn_on=drawn_on)
    stream = ModelPipeline(spec, model, 42).open_stream()
    found = []
    for _ in range(chunks):
        parts = stream.next_chunk({"prompts": "a boat", "input_mode": "text"}, None, lambda: False)
        images = np.concatenate([images for images, _ in parts])
        found.append(torch.from_numpy(images).float() - 127.5)
    return found


if __name__ == "__main__":
    main()
