"""A whole pipeline with random weights of the real shapes: the product's loop on PyTorch modules."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.block_graphs import TINY_DIT
from benchmarks.random_weights import fill_random
from export.graphs.signature import Signature
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.transformer import WAN_1_3B, TextKV, Transformer, TransformerConfig
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from streaming.engines import Engine, Engines, TorchEngine, VaeEngines
from streaming.model import ModelSizes, StreamModel
from streaming.specs import CachedKeys, PipelineSpec

VAES = {
    "wan": lambda: WanVae(VaeConfig()),
    "lightvae": lambda: WanVae(VaeConfig(pruning_rate=0.75)),
    "tae": lambda: TinyVae(TinyVaeConfig()),
    "tiny": lambda: WanVae(VaeConfig(dim=4)),
}


@dataclass(frozen=True)
class Shape:
    """What is built. Sizes in pixels."""

    height: int
    width: int
    vae: str
    tiny: bool

    @property
    def transformer(self) -> TransformerConfig:
        return TINY_DIT if self.tiny else WAN_1_3B


def random_model(
    spec: PipelineSpec, shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> StreamModel:
    """The model; weights are the same in every type and on every device. compiled: with torch.compile."""
    assert spec.loop is not None, f"{spec.id} has no model"
    config = shape.transformer
    with torch.device("meta"):
        unroped = spec.loop.cached_keys is CachedKeys.UNROTATED
        transformer, text_kv, vae = Transformer(config, unroped), TextKV(config), VAES[shape.vae]()
    for seed, part in enumerate((transformer, text_kv, vae)):
        fill_random(part, torch.float32, torch.device("cpu"), seed)
        cast(part, dtype)
        part.to(device)

    def engine(module: nn.Module, signature: Signature) -> Engine:
        inputs, outputs = (tuple(t.name for t in specs) for specs in (signature.inputs, signature.outputs))
        run = torch.compile(module, dynamic=False) if compiled else module
        return TorchEngine(run, inputs, outputs)

    return StreamModel(
        spec=spec.loop,
        engines=Engines(
            engine(transformer, transformer.signature(0)),
            engine(text_kv, text_kv.signature()),
            vae_engines(vae, shape, engine),
        ),
        encode_prompts=lambda texts: [embedding(text, config) for text in texts],
        sizes=ModelSizes(config.num_layers, config.num_heads, config.head_dim, config.freq_dim),
        height=shape.height,
        width=shape.width,
        cache_frames=spec.loop.cache_frames,
        dtype=dtype,
        device=device,
    )


def vae_engines(vae: Autoencoder, shape: Shape, engine: "object") -> VaeEngines:
    coders: Sequence[EncoderGraph | DecoderGraph] = [
        half(vae, first) for half in (EncoderGraph, DecoderGraph) for first in (True, False)
    ]
    made = [engine(coder, coder.signature(shape.height, shape.width)) for coder in coders]  # type: ignore[operator]
    return VaeEngines(*made, vae.groups)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Weights to a type, but for those that have to stay float32."""
    for owner in module.modules():
        if not getattr(owner, "float32_parameters", False):
            for parameter in owner.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def embedding(text: str, config: TransformerConfig) -> Tensor:
    """[1, text_len, text_dim], made from the text's bytes."""
    generator = torch.Generator().manual_seed(int.from_bytes(text.encode(), "big") % 2**63)
    return torch.randn(1, config.text_len, config.text_dim, generator=generator)
