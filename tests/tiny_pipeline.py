"""A pipeline with random weights, small enough for a unit test: real graphs, the product's loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.graphs.signature import Signature
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceConfig, VaceTextKV, VaceTransformer
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from export.pytorch.engine import ModuleEngine
from export.pytorch.pipeline import stream_sizes
from streaming.checkpoints.config import TransformerConfig
from streaming.engines.engine import BranchEngines, Engine, Engines, EngineWrapper, VaeEngines
from streaming.network.model import StreamModel
from streaming.specs import LONGLIVE, CachedKeys, PipelineSpec
from streaming.triton.model_pipeline import ModelPipeline
from streaming.triton.protocol import Meta
from streaming.triton.sessions import Images, Stream
from tests.random_weights import randomized

HEIGHT, WIDTH = 16, 32
CONFIG = TransformerConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16, text_dim=6, text_len=4)


VAES: dict[str, Callable[[], Autoencoder]] = {
    "wan": lambda: WanVae(VaeConfig(dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1)),
    "tae": lambda: TinyVae(TinyVaeConfig(encoder_width=4, decoder_widths=(4, 4, 4, 4))),
}


@cache
def modules(
    vae_type: str, dtype: torch.dtype, unroped_cache: bool = False
) -> tuple[Transformer, TextKV, Autoencoder]:
    """Weights that all pipelines of a test run share."""
    transformer = randomized(Transformer(CONFIG, unroped_cache), 1)
    parts = transformer, randomized(TextKV(CONFIG), 2), randomized(VAES[vae_type](), 3)
    for part in parts:
        for owner in part.modules():
            if not getattr(owner, "float32_parameters", False):
                for parameter in owner.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
    return parts


def branch_of(transformer: Transformer) -> tuple[VaceTransformer, VaceTextKV]:
    """The transformer with a branch of random weights, and what that wants of prompts."""
    vace = VaceConfig(layers=(0, 1))
    module = randomized(VaceTransformer(CONFIG, vace, transformer.unroped_cache), 4)
    module.load_state_dict(transformer.state_dict(), strict=False)
    return module, randomized(VaceTextKV(CONFIG, vace), 5)


def encode_prompts(texts: Sequence[str]) -> list[Tensor]:
    """An embedding for each text, made from its bytes."""
    seeds = [int.from_bytes(text.encode(), "big") % 2**63 for text in texts]
    shape = (1, CONFIG.text_len, CONFIG.text_dim)
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


@dataclass
class Hook:
    """Called before every engine call, with its number since the hook was set."""

    action: Callable[[int], None] = field(default=lambda number: None)
    calls: int = 0

    def __call__(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        self.action(number)


class HookedEngine(EngineWrapper):
    """An engine that tells a hook first."""

    def __init__(self, engine: Engine, hook: Hook) -> None:
        super().__init__(engine)
        self._hook = hook

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        self._hook()
        return super().run(inputs, outputs)


def tiny_pipeline(
    hook: Hook | None = None,
    rope_positions: int = 1024,
    vae_type: str = "wan",
    dtype: torch.dtype = torch.float32,
    spec: PipelineSpec = LONGLIVE,
    branch_hook: Hook | None = None,
) -> ModelPipeline:
    """A pipeline whose engines tell `hook` before they run.

    branch_hook: what the transformer with the VACE branch tells; None: there is no branch
    """
    assert spec.loop is not None
    loop = replace(spec.loop, rope_positions=rope_positions)
    transformer, text_kv, vae = modules(vae_type, dtype, loop.cached_keys is CachedKeys.UNROTATED)
    hook = hook or Hook()

    def engine(module: nn.Module, signature: Signature) -> Engine:
        return HookedEngine(ModuleEngine(module, signature), hook)

    def branch() -> BranchEngines:
        module, text = branch_of(transformer)
        with_branch = HookedEngine(ModuleEngine(module, module.signature(0)), branch_hook or Hook())
        return BranchEngines(with_branch, engine(text, text.signature()))

    coders = [g(vae, first) for g in (EncoderGraph, DecoderGraph) for first in (True, False)]
    model = StreamModel(
        spec=loop,
        engines=Engines(
            engine(transformer, transformer.signature(0)),
            engine(text_kv, text_kv.signature()),
            VaeEngines(*(engine(coder, coder.signature(HEIGHT, WIDTH)) for coder in coders), vae.groups),
            None if branch_hook is None else branch(),
        ),
        encode_prompts=encode_prompts,
        sizes=stream_sizes(CONFIG),
        height=HEIGHT,
        width=WIDTH,
        cache_frames=loop.cache_frames,
        dtype=dtype,
    )
    return ModelPipeline(spec, model, base_seed=42)


def parameters(**changes: Any) -> dict[str, Any]:
    """Parameters of a text chunk with two denoising steps."""
    prompts = [{"text": "a boat", "weight": 1.0}]
    return {"prompts": prompts, "denoising_step_list": [1000, 500], "init_cache": False, **changes}


def camera(seed: int = 0, frames: int = 12) -> Images:
    """Pictures of noise, of another size than the pipeline's."""
    return np.random.default_rng(seed).integers(0, 256, (frames, 20, 30, 3), dtype=np.uint8)


def chunk(stream: Stream, video: Images | None = None, **changes: Any) -> tuple[Images, Meta]:
    """All pictures of the next chunk, and what the pipeline says at its end."""
    mode = "text" if video is None else "video"
    groups = list(stream.next_chunk(parameters(input_mode=mode, **changes), video, lambda: False))
    return np.concatenate([pictures for pictures, _ in groups]), groups[-1][1]
