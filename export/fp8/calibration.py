"""A real stream for calibration: the loop of a pipeline, its calls of the transformer written to files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from export.graphs.transformer import TextKV, Transformer
from export.onnx.in_process import in_process, prompt_encoder
from export.onnx.jobs import DTYPES, Request
from streaming.engines.demo import DEMO, read_demo
from streaming.engines.engine import Engine, EngineWrapper
from streaming.network.inputs import FLOW

# Two prompts, as different as can be: the second one comes when the window is full.
_PROMPTS: Final = (
    "A panda eats bamboo in a sunny forest, close view, soft light",
    "A city street at night in heavy rain, neon signs, people with umbrellas, wide view",
)
_MOST_CHUNKS: Final = 6  # before the prompt changes


class CallRecorder(EngineWrapper):
    """The transformer's engine. Writes the inputs of its calls while `wanted`, all of them float32."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        super().__init__(engine)
        self.wanted = True
        self.held_out: tuple[Path, Tensor] | None = None  # inputs of a call that is not wanted, and its flow
        self.files: list[Path] = []
        self._directory = directory

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        results = super().run(inputs, outputs)
        if self.wanted:
            self.files.append(self._write(f"call{len(self.files):03d}", inputs))
        elif FLOW in results:  # the latest: the window is as full as it gets
            self.held_out = (self._write("held_out", inputs), results[FLOW])
        return results

    def _write(self, name: str, inputs: Mapping[str, Tensor]) -> Path:
        path = self._directory / f"{name}.npz"
        np.savez(path, **{key: inputs[key].contiguous().numpy() for key in self.inputs})
        return path


def record_stream(
    request: Request, transformer: Transformer, text_kv: TextKV, directory: Path
) -> CallRecorder:
    """Run the pipeline's loop in text mode, and write calls of its first and its last chunk to `directory`.

    Chunks of one prompt fill the window, one of another prompt follows. Each chunk has its denoising steps
    and its clean pass; the last one what the pipeline does on a new prompt, too. Another call of the chunks
    between is held out.

    transformer, text_kv   with their weights, in float32
    """
    dtype = DTYPES[request.precision]
    encode = prompt_encoder(request, transformer.config.text_len, dtype)
    prompts = calibration_prompts(request)
    embeddings = dict(zip(prompts, encode(prompts), strict=True))
    del encode  # the largest network of all; prompts are encoded once
    recorders: list[CallRecorder] = []

    def watch(engine: Engine) -> Engine:
        recorders.append(CallRecorder(engine, directory))
        return recorders[0]

    pipeline = in_process(
        request, transformer, text_kv, lambda texts: [embeddings[text] for text in texts], watch
    )
    (recorder,) = recorders
    loop = request.loop
    filling = min(_MOST_CHUNKS, max(2, loop.local_attn_size // loop.frames_per_chunk))
    stream = pipeline.open_stream()
    for chunk in range(filling + 1):
        recorder.wanted = chunk in (0, filling)
        parameters = {"prompts": prompts[chunk == filling], "input_mode": "text"}
        with torch.inference_mode():
            for _ in stream.next_chunk(parameters, None, lambda: False):
                pass
    return recorder


def calibration_prompts(request: Request) -> tuple[str, str]:
    """Two that the weights understand."""
    about = read_demo(request.models) if (request.models / DEMO).is_file() else None
    examples = about.examples if about else ()
    return (examples[0], examples[-1]) if len(set(examples)) > 1 else _PROMPTS
