"""A model that can be seen through: its latents are frame numbers, its keys say which frame they belong to.

It stands in for weights where a test asks which frames a stream attends to, at which positions, under which
prompt and with which weight. Latent frame f is f everywhere, the i-th picture decoded from it is f + i / 8,
and encoding one alone gives that number back. A key of frame f under prompt text "p" is f + 64 * p.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import exp

import torch
from torch import Tensor

from streaming.cache.attention_bias import HIDDEN
from streaming.engines.engine import Engines, TorchEngine, VaeEngines
from streaming.network.model import StreamModel
from streaming.network.tokens import rope_tables
from streaming.network.transformer import ModelSizes
from streaming.noise import Draw
from streaming.specs import ROPE_POSITIONS, CachedKeys, LoopSpec
from tests.frame_groups import WAN_GROUPS

SIZE = 16  # pixels; one token per latent frame
HEAD_DIM = 12
PROMPT = 64
PICTURES = 8  # pictures of a latent frame are this part of a frame number apart

Key = tuple[float, int | None, float]  # content, position where it is rotated when read, weight


@dataclass(frozen=True)
class Call:
    """One call of the transformer."""

    frames: tuple[float, ...]  # new ones
    positions: tuple[int, ...]  # where they stand
    keys: tuple[Key, ...]  # cached ones that it attends to, sorted
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

    @cached_property
    def loaded(self) -> StreamModel:
        caches = ("new_cache_00",)
        vae = VaeEngines(
            encoder_first=self._engine(self._encode, ("frames",), ("z", "mu", *caches)),
            encoder_next=self._engine(self._encode, ("frames", "cache_00"), ("z", "mu", *caches)),
            decoder_first=self._engine(self._decode, ("z",), ("frames", *caches)),
            decoder_next=self._engine(self._decode, ("z", "cache_00"), ("frames", *caches)),
            groups=WAN_GROUPS,
        )
        rope_k = ("rope_k_cos", "rope_k_sin") if self.spec.cached_keys is CachedKeys.UNROTATED else ()
        names = ("tokens", "time_sin", "key_bias", "rope_cos", "rope_sin", *rope_k, "cross_kv_00", "kv_00")
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
        latents = frames[:, :1, :count, :2, :2].expand(1, 16, -1, -1, -1)
        return latents, latents, torch.zeros(1)

    def _decode(self, z: Tensor, *caches: Tensor) -> Sequence[Tensor]:
        parts = torch.arange(WAN_GROUPS.later if caches else 1) / PICTURES
        pictures = (z[0, 0, 0, 0, 0].round() + parts).reshape(1, 1, -1, 1, 1)
        return pictures.expand(1, 3, -1, SIZE, SIZE), torch.zeros(1)


@dataclass(frozen=True)
class GlassTransformer:
    """The transformer's engine of a glass model."""

    glass: GlassModel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: dict[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        self.glass.before_call()
        frames = (inputs["tokens"][0, :, 0] * PICTURES).round() / PICTURES
        positions = _positions(inputs["rope_cos"])
        writes = "new_kv_00" in outputs
        call = Call(tuple(frames.tolist()), tuple(positions), tuple(sorted(_seen(inputs))), writes)
        self.glass.calls.append(call)
        keys = (
            (frames + PROMPT * inputs["cross_kv_00"].flatten()[0])
            .reshape(1, 1, -1, 1, 1)
            .expand(2, -1, -1, -1, HEAD_DIM)
        )
        named = {"flow": torch.zeros_like(inputs["tokens"]), "new_kv_00": keys}
        return {name: named[name] for name in outputs}


def _seen(inputs: dict[str, Tensor]) -> list[Key]:
    """The cached keys that are not hidden."""
    cached, bias = inputs["kv_00"][0, 0, :, 0, 0].tolist(), inputs["key_bias"][0, 0, 0].tolist()
    read = _positions(inputs["rope_k_cos"]) if "rope_k_cos" in inputs else [None] * len(cached)
    return [
        (content, position, round(exp(score), 4))
        for content, position, score in zip(cached, read, bias, strict=False)
        if score > HIDDEN
    ]


def _positions(cos: Tensor) -> list[int]:
    """Of the rows of a rotary table; frames of a glass model have one token."""
    return [_table()[row.numpy().tobytes()] for row in cos]


@cache
def _table() -> dict[bytes, int]:
    cos, _ = rope_tables(range(ROPE_POSITIONS), 1, 1, HEAD_DIM)
    return {row.numpy().tobytes(): position for position, row in enumerate(cos)}
