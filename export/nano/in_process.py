"""A pipeline on PyTorch modules in this process, from a directory of models: to evaluate without Triton."""

from pathlib import Path

from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceTextKV
from export.onnx.in_process import in_process as pipeline_of
from export.onnx.in_process import prompt_encoder
from export.onnx.jobs import Request, components
from streaming.engines.demo import read_demo
from streaming.triton.model_pipeline import ModelPipeline


def in_process(models: Path, pipeline: str, *, vace: bool = False) -> ModelPipeline:
    """The pipeline at the demonstration's size, float32, with the directory's weights, and with VACE's."""
    request = Request(pipeline, models, (read_demo(models).size,), vace=vace)
    _, transformer_files, *others, _ = components(request)
    transformer, text_kv = transformer_files.load()
    branch_text: VaceTextKV | None = None
    for branch in others:
        transformer, branch_text = branch.load()
    assert isinstance(transformer, Transformer)
    assert isinstance(text_kv, TextKV)
    encoder = prompt_encoder(request, transformer.config.text_len)
    return pipeline_of(request, transformer, text_kv, encoder, branch_text=branch_text)
