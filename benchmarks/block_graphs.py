"""The graphs that `benchmarks.blocks` measures: how to build each, its inputs, its work."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from export.graphs.signature import Signature
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from streaming.checkpoints.config import WAN_1_3B, WAN_14B, TransformerConfig
from streaming.network.inputs import TensorSpec

TINY_DIT = TransformerConfig(dim=128, ffn_dim=256, num_heads=4, num_layers=2, text_dim=64, text_len=32)
TINY_TEXT = TextEncoderConfig(
    vocab=1000, dim=64, dim_attn=64, dim_ffn=128, num_heads=4, num_layers=2, seq_len=32
)
TEXT_ENCODER = TextEncoderConfig()


@dataclass(frozen=True)
class Workload:
    """What is generated. Sizes in pixels, lengths in latent frames."""

    height: int
    width: int
    chunk: int = 3
    cached: int = 9

    @property
    def frame_tokens(self) -> int:
        return (self.height // 16) * (self.width // 16)


@dataclass(frozen=True)
class Graph:
    """One graph of one size. `build` takes the number of layers and is called on the meta device."""

    name: str
    size: str
    layers: int  # of the whole model; 0 if it is not built of equal layers
    build: Callable[[int], nn.Module]
    signature: Callable[[nn.Module, Workload], Signature]
    axes: Callable[[Workload], dict[str, int]]  # sizes of the dynamic axes
    flops: Callable[[Workload], float] | None = None  # of the whole model, one call


def graphs() -> list[Graph]:
    """Everything that is measured, tiny models first."""
    return [
        *_transformer("tiny", TINY_DIT),
        *_transformer("1.3B", WAN_1_3B),
        *_transformer("14B", WAN_14B),
        _text_encoder("tiny", TINY_TEXT),
        _text_encoder("xxl", TEXT_ENCODER),
        *_autoencoder("tiny", lambda: WanVae(VaeConfig(dim=16))),
        *_autoencoder("wan", lambda: WanVae(VaeConfig())),
        *_autoencoder("lightvae", lambda: WanVae(VaeConfig(pruning_rate=0.75))),
        *_autoencoder("tae", lambda: TinyVae(TinyVaeConfig())),
    ]


def _transformer(size: str, config: TransformerConfig) -> list[Graph]:
    def axes(work: Workload) -> dict[str, int]:
        new = work.chunk * work.frame_tokens
        return {"F": work.chunk, "T": new, "S+T": work.cached * work.frame_tokens + new}

    def flops(work: Workload) -> float:
        new, keys = axes(work)["T"], axes(work)["S+T"]
        linear = 6 * config.dim**2 + 2 * config.dim * config.ffn_dim  # q, k, v, o; cross q, o; feed forward
        attention = 2 * config.dim * (keys + config.text_len)
        return 2.0 * new * config.num_layers * (linear + attention)

    return [
        Graph(
            "transformer",
            size,
            config.num_layers,
            lambda layers: Transformer(replace(config, num_layers=layers)),
            lambda module, work: module.signature(work.cached * work.frame_tokens),
            axes,
            flops,
        ),
        Graph(
            "text_kv",
            size,
            config.num_layers,
            lambda layers: TextKV(replace(config, num_layers=layers)),
            lambda module, work: module.signature(),
            axes,
        ),
    ]


def _text_encoder(size: str, config: TextEncoderConfig) -> Graph:
    return Graph(
        "text_encoder",
        size,
        config.num_layers,
        lambda layers: TextEncoder(replace(config, num_layers=layers)),
        lambda module, work: module.signature(),
        lambda work: {"B": 1},
    )


def _autoencoder(size: str, build: Callable[[], Autoencoder]) -> list[Graph]:
    def graph(name: str, half: type[EncoderGraph] | type[DecoderGraph], first: bool) -> Graph:
        return Graph(
            name,
            size,
            0,
            lambda layers: half(build(), first),
            lambda module, work: module.signature(work.height, work.width),
            lambda work: {"F": work.chunk, "T": 4 * work.chunk},
        )

    return [
        graph("vae_encoder_first", EncoderGraph, True),
        graph("vae_encoder", EncoderGraph, False),
        graph("vae_decoder_first", DecoderGraph, True),
        graph("vae_decoder", DecoderGraph, False),
    ]


def random_inputs(
    signature: Signature, axes: dict[str, int], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Random values for every input; token ids below 1000, masks of ones, a key bias that hides nothing."""
    generator = torch.Generator(device).manual_seed(1)

    def value(spec: TensorSpec) -> Tensor:
        shape = [axis if isinstance(axis, int) else axes[axis] for axis in spec.shape]
        if spec.integer:
            low = 1 if spec.name == "mask" else 0
            high = 2 if spec.name == "mask" else 1000
            return torch.randint(low, high, shape, generator=generator, device=device)
        own = torch.float32 if spec.float32 else dtype
        values = torch.randn(shape, generator=generator, dtype=own, device=device)
        return values.mul_(0.01) if spec.name == "key_bias" else values

    return [value(spec) for spec in signature.inputs]


def bytes_of(specs: tuple[TensorSpec, ...], axes: dict[str, int], item_bytes: int) -> int:
    """Size of these tensors."""
    total = 0
    for spec in specs:
        shape = [axis if isinstance(axis, int) else axes[axis] for axis in spec.shape]
        total += torch.Size(shape).numel() * (8 if spec.integer else 4 if spec.float32 else item_bytes)
    return total
