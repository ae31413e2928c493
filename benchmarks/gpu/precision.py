"""Does the GPU compute what the CPU does, and what does bfloat16 cost over a stream?

    python -m benchmarks.gpu.precision

The same random weights and noise in every run, 20 chunks: float32 on the CPU, which the golden cases prove,
float32 on the GPU with TF32 off, bfloat16 on the GPU. Pictures are compared chunk by chunk. The networks are
tiny, since a stream of the real one on the CPU takes hours; `dit_step` compares calls of the real one.
"""

import sys

import numpy as np
import torch

from benchmarks.gpu.common import Row, cosine, finish, parse, relative_rms
from benchmarks.gpu.random_model import Shape, random_model
from streaming.model_pipeline import ModelPipeline
from streaming.specs import LONGLIVE, MEMFLOW, REWARD_FORCING, PipelineSpec

PIPELINES = (LONGLIVE, REWARD_FORCING, MEMFLOW)
FLOAT32_ALIKE = 0.9999  # of the first chunk's pictures


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device, chunks = torch.device(options.device), 2 if options.tiny else 20
    shape = Shape(32, 48, "tiny", True)
    rows: list[Row] = []
    for spec in PIPELINES[:1] if options.tiny else PIPELINES:
        reference = pictures_of(spec, shape, torch.float32, torch.device("cpu"), chunks)
        for dtype in (torch.float32, torch.bfloat16):
            found = pictures_of(spec, shape, dtype, device, chunks)
            for number, (a, b) in enumerate(zip(found, reference, strict=True)):
                rows.append(
                    {
                        "pipeline": spec.id,
                        "type": str(dtype).removeprefix("torch."),
                        "chunk": number,
                        "cosine": cosine(a, b),
                        "relative_rms": relative_rms(a, b),
                    }
                )
            if dtype is torch.float32 and rows[-chunks]["cosine"] < FLOAT32_ALIKE:
                sys.exit(f"{spec.id}: float32 on {device} is wrong: {rows[-chunks]}")
    finish("precision", options, rows, precision="float32, bfloat16")


def pictures_of(
    spec: PipelineSpec, shape: Shape, dtype: torch.dtype, device: torch.device, chunks: int
) -> list[torch.Tensor]:
    """Each chunk's pictures as float32 around zero."""
    stream = ModelPipeline(spec, random_model(spec, shape, dtype, device), 42).open_stream()
    found = []
    for _ in range(chunks):
        parts = stream.next_chunk({"prompts": "a boat", "input_mode": "text"}, None, lambda: False)
        images = np.concatenate([images for images, _ in parts])
        found.append(torch.from_numpy(images).float() - 127.5)
    return found


if __name__ == "__main__":
    main()
