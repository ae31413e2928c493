"""A pipeline on PyTorch modules in this process, from a directory of models: to evaluate without Triton."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.graphs.signature import Signature
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae_graphs import DecoderGraph, EncoderGraph
from export.jobs import TEXT_ENCODER, TOKENIZER, TRANSFORMER_FILES, VAE_FILES, Request, components
from export.load import load_text_encoder, load_vae, read_config
from streaming.demo import read_demo
from streaming.engines import Engine, Engines, TorchEngine, VaeEngines
from streaming.model import ModelSizes, StreamModel
from streaming.model_pipeline import ModelPipeline
from streaming.specs import SPECS
from streaming.text import PromptTokenizer


def in_process(models: Path, pipeline: str) -> ModelPipeline:
    """The pipeline at the demonstration's size, float32, with the directory's weights."""
    size = read_demo(models).size
    request = Request(pipeline, models, (size,))
    config = read_config(models / TRANSFORMER_FILES[pipeline].config)
    _, transformer_files, _ = components(request)
    transformer, text_kv = transformer_files.load()
    assert isinstance(transformer, Transformer)
    assert isinstance(text_kv, TextKV)
    vae = load_vae(models / VAE_FILES["wan"], "wan")
    encoder = load_text_encoder(models / TEXT_ENCODER, config.text_len)
    tokens = PromptTokenizer.from_directory(models / TOKENIZER, config.text_len)

    @torch.inference_mode()
    def encode_prompts(texts: Sequence[str]) -> list[Tensor]:
        batch = tokens(texts)
        return list(encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).split(1))

    def engine(module: torch.nn.Module, signature: Signature) -> Engine:
        names = [tuple(spec.name for spec in specs) for specs in (signature.inputs, signature.outputs)]
        return TorchEngine(module, *names)

    coders = [
        engine(graph, graph.signature(*size))
        for graph in (
            EncoderGraph(vae, True),
            EncoderGraph(vae, False),
            DecoderGraph(vae, True),
            DecoderGraph(vae, False),
        )
    ]
    model = StreamModel(
        spec=request.loop,
        engines=Engines(
            engine(transformer, transformer.signature(0)),
            engine(text_kv, text_kv.signature()),
            VaeEngines(coders[0], coders[1], coders[2], coders[3], vae.groups),
        ),
        encode_prompts=encode_prompts,
        sizes=ModelSizes(config.num_layers, config.num_heads, config.head_dim, config.freq_dim),
        height=size[0],
        width=size[1],
        cache_frames=request.loop.cache_frames,
    )
    spec = SPECS[pipeline]
    return ModelPipeline(spec, model, base_seed=spec.base_seed)
