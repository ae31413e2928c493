"""A model that can be seen through: its latents are frame numbers, its keys say which frame they belong to.

It stands in for weights where a test asks which frames a stream attends to, at which positions and under
which prompt. Latent frame f is f everywhere; a key of frame f under prompt text "p" is f + 1000 * p.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streaming.engines import Engines, TorchEngine, VaeEngines
from streaming.model import ModelSizes, StreamModel
from streaming.noise import Draw
from streaming.specs import LoopSpec
from streaming.tokens import rope_tables
from streaming.video import WAN_GROUPS

SIZE = 16  # pixels; one token per latent frame
HEAD_DIM = 12
PROMPT = 1000


@dataclass(frozen=True)
class Call:
    """One call of the transformer."""

    frames: tuple[int, ...]  # new ones
    keys: tuple[int, ...]  # cached ones that it attends to, sorted
    rotated_right: bool  # the new frames stand at the positions of their numbers
    writes: bool  # asked for keys and values, not for flow


@dataclass
class FrameNumbers:
    """Noise whose frames are their own numbers, if the base seed is 0; remembers the seeds."""

    seeds: list[int] = field(default_factory=list)

    def chunk(self, seed: int) -> Draw:
        self.seeds.append(seed)
        return lambda shape: (
            torch.arange(seed, seed + shape[1]).reshape(1, -1, 1, 1, 1).expand(*shape).float()
        )


@dataclass
class GlassModel:
    """The model and what it was asked. `before_call` is called before every engine call."""

    spec: LoopSpec
    cache_frames: int
    calls: list[Call] = field(default_factory=list)
    before_call: Callable[[], None] = field(default=lambda: None)

    def model(self) -> StreamModel:
        caches = ("new_cache_00",)
        vae = VaeEngines(
            encoder_first=self._engine(self._encode, ("frames",), ("z", "mu", *caches)),
            encoder_next=self._engine(self._encode, ("frames", "cache_00"), ("z", "mu", *caches)),
            decoder_first=self._engine(self._decode, ("z",), ("frames", *caches)),
            decoder_next=self._engine(self._decode, ("z", "cache_00"), ("frames", *caches)),
            groups=WAN_GROUPS,
        )
        names = ("tokens", "time_sin", "key_bias", "rope_cos", "rope_sin", "cross_kv_00", "kv_00")
        transformer = GlassTransformer(self, names, ("flow", "new_kv_00"))
        text_kv = self._engine(
            lambda embedding: embedding.reshape(1, 1, 1, 1, 1), ("prompt_embeds",), ("cross_kv_00",)
        )
        sizes = ModelSizes(layers=1, heads=1, head_dim=HEAD_DIM, freq_dim=2)
        engines = Engines(transformer, text_kv, vae)
        return StreamModel(self.spec, engines, self._encode_prompts, sizes, SIZE, SIZE, self.cache_frames)

    def _engine(
        self,
        function: Callable[..., Tensor | Sequence[Tensor]],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> TorchEngine:
        def run(*arguments: Tensor) -> Tensor | Sequence[Tensor]:
            self.before_call()
            return function(*arguments)

        return TorchEngine(run, inputs, outputs)

    def _encode_prompts(self, texts: Sequence[str]) -> list[Tensor]:
        self.before_call()
        return [torch.full((1, 1, 1), float(text)) for text in texts]

    def _encode(self, frames: Tensor, *caches: Tensor) -> Sequence[Tensor]:
        count = frames.shape[2] // WAN_GROUPS.later if caches else 1
        latents = torch.zeros(1, 16, count, 2, 2)
        return latents, latents, torch.zeros(1)

    def _decode(self, z: Tensor, *caches: Tensor) -> Sequence[Tensor]:
        count = z.shape[2] * WAN_GROUPS.later if caches else 1
        return torch.zeros(1, 3, count, SIZE, SIZE), torch.zeros(1)


@dataclass(frozen=True)
class GlassTransformer:
    """The transformer's engine of a glass model."""

    glass: GlassModel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: dict[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        self.glass.before_call()
        frames = inputs["tokens"][0, :, 0].round()
        cached = inputs["kv_00"][0, 0, :, 0, 0]
        seen = cached[inputs["key_bias"][0, 0, 0, : len(cached)] == 0]
        positions = [int(frame) for frame in frames]
        cos, sin = rope_tables(positions, 1, 1, HEAD_DIM)
        rotated = torch.equal(cos, inputs["rope_cos"]) and torch.equal(sin, inputs["rope_sin"])
        writes = "new_kv_00" in outputs
        self.glass.calls.append(Call(tuple(positions), tuple(sorted(map(int, seen))), rotated, writes))
        keys = (
            (frames + PROMPT * inputs["cross_kv_00"].flatten()[0])
            .reshape(1, 1, -1, 1, 1)
            .expand(2, -1, -1, -1, HEAD_DIM)
        )
        named = {"flow": torch.zeros_like(inputs["tokens"]), "new_kv_00": keys}
        return {name: named[name] for name in outputs}
