"""A whole pipeline with random weights of the real shapes: the product's loop on PyTorch modules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.block_graphs import TINY_DIT
from benchmarks.blocks import compiled
from benchmarks.random_weights import fill_random
from export.graphs.signature import Signature
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from export.pytorch.engine import ModuleEngine
from streaming.checkpoints.config import WAN_1_3B, TransformerConfig
from streaming.engines.engine import Engine, Engines, VaeEngines
from streaming.network.model import StreamModel
from streaming.network.transformer import ModelSizes
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


@dataclass
class Clock:
    """Whether engine calls wait for the GPU; if not, a clock on the host says nothing about one of them."""

    wait: bool = False

    def around(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            results = run(*values)
            if self.wait and torch.cuda.is_available():
                torch.cuda.synchronize()
            return results

        return call


def random_model(
    spec: PipelineSpec,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    drawn_on: torch.device | None = None,
    compile_blocks: bool = False,
    clock: Clock | None = None,
) -> StreamModel:
    """The model; weights are the same in every type.

    drawn_on         where they are drawn: None, the CPU, for the same ones on every device; billions of them
                     take minutes there
    compile_blocks   the transformer's, with torch.compile
    """
    assert spec.loop is not None, f"{spec.id} has no model"
    config = shape.transformer
    with torch.device("meta"):
        unroped = spec.loop.cached_keys is CachedKeys.UNROTATED
        transformer, text_kv, vae = Transformer(config, unroped), TextKV(config), VAES[shape.vae]()
    for seed, part in enumerate((transformer, text_kv, vae)):
        fill_random(part, torch.float32, drawn_on or torch.device("cpu"), seed)
        cast(part, dtype)
        part.to(device)
    clock = clock or Clock()

    def engine(module: nn.Module, signature: Signature) -> Engine:
        run = compiled(module) if compile_blocks and module is transformer else module
        return ModuleEngine(run, signature, wrapped=clock.around)

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
