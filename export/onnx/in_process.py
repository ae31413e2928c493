"""A pipeline on PyTorch modules in this process, from a directory of models: no engines, no Triton."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from export.checkpoints.load import load_text_encoder, load_vae
from export.graphs.signature import Signature
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae_graphs import AutoencoderGraph, DecoderGraph, EncoderGraph
from export.onnx.jobs import Request
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TEXT_ENCODER, TOKENIZER, VAE_FILES
from streaming.conditioning.tokenizer import PromptTokenizer
from streaming.engines.engine import Engine, Engines, TorchEngine, VaeEngines
from streaming.network.model import ModelSizes, StreamModel
from streaming.specs import SPECS
from streaming.triton.model_pipeline import ModelPipeline

EncodePrompts = Callable[[Sequence[str]], list[Tensor]]


def stream_sizes(config: TransformerConfig, spatial_factor: int = 8) -> ModelSizes:
    """What a stream has to know of a transformer. spatial_factor: pixels per latent position."""
    return ModelSizes(
        layers=config.num_layers,
        heads=config.num_heads,
        head_dim=config.head_dim,
        freq_dim=config.freq_dim,
        channels=config.in_dim,
        patch=config.patch_size,
        spatial_factor=spatial_factor,
    )


def in_process(
    request: Request,
    transformer: Transformer,
    text_kv: TextKV,
    encode_prompts: EncodePrompts,
    watch: Callable[[Engine], Engine] = lambda engine: engine,
) -> ModelPipeline:
    """The pipeline at the request's first size, in float32.

    transformer, text_kv   with their weights, in float32
    encode_prompts         texts -> an embedding [1, text_len, text_dim] for each
    watch                  from the transformer's engine to the one that the loop calls
    """
    config, size = transformer.config, request.sizes[0]
    vae = load_vae(request.models / VAE_FILES[request.vae_type], request.vae_type)

    def coder(graph: AutoencoderGraph) -> Engine:
        return _engine(graph, graph.signature(*size))

    model = StreamModel(
        spec=request.loop,
        engines=Engines(
            watch(_engine(transformer, transformer.signature(0))),
            _engine(text_kv, text_kv.signature()),
            VaeEngines(
                coder(EncoderGraph(vae, True)),
                coder(EncoderGraph(vae, False)),
                coder(DecoderGraph(vae, True)),
                coder(DecoderGraph(vae, False)),
                vae.groups,
            ),
        ),
        encode_prompts=encode_prompts,
        sizes=stream_sizes(config, vae.spatial_factor),
        height=size[0],
        width=size[1],
        cache_frames=request.loop.cache_frames,
    )
    spec = SPECS[request.pipeline]
    return ModelPipeline(spec, model, base_seed=spec.base_seed)


def prompt_encoder(request: Request, text_len: int, dtype: torch.dtype = torch.float32) -> EncodePrompts:
    """The text encoder's module in `dtype`; embeddings are float32."""
    encoder = load_text_encoder(request.models / TEXT_ENCODER, text_len, dtype)
    tokens = PromptTokenizer.from_directory(request.models / TOKENIZER, text_len)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> list[Tensor]:
        batch = tokens(texts)
        return list(encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).float().split(1))

    return encode


def _engine(module: nn.Module, signature: Signature) -> Engine:
    names = [tuple(spec.name for spec in specs) for specs in (signature.inputs, signature.outputs)]
    return TorchEngine(module, *names)
