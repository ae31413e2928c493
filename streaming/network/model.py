"""A loaded model: its engines, its sizes, and the calls that the loop makes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from streaming.cache.ema_sink import EmaSink
from streaming.cache.kv_cache import KVCache, Ring, Slots
from streaming.cache.memory_bank import MemoryBank
from streaming.checkpoints.config import PATCH, Patch
from streaming.conditioning.prompts import Encode
from streaming.engines.engine import Engine, Engines
from streaming.network.tokens import unpatchify
from streaming.network.transformer import LatentTransformer
from streaming.schedule import FlowSchedule
from streaming.specs import CachedKeys, LoopSpec

FLOW = "flow"
KEY_BIAS = "key_bias"
NEW_KV = "new_kv_"
CROSS_KV = "cross_kv_"


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Dimensions that come with the weights."""

    layers: int
    heads: int
    head_dim: int
    freq_dim: int = 256
    channels: int = 16  # of the latents
    patch: Patch = PATCH
    spatial_factor: int = 8  # pixels per latent position, in height and in width


@dataclass(frozen=True, eq=False)
class StreamModel:
    """All that the streams of one loaded pipeline share. Sizes in pixels.

    encode_prompts   texts -> embeddings, each [1, text_len, text_dim]
    cache_frames     slots of the ring of the self-attention cache, in latent frames: what the transformer's
                     engine was built for, at least `spec.cache_frames`; those of a memory bank come on top
    spare_bias       the transformer's engine runs without `key_bias` where no key is hidden
    """

    spec: LoopSpec
    engines: Engines
    encode_prompts: Encode
    sizes: ModelSizes
    height: int
    width: int
    cache_frames: int
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    spare_bias: bool = False

    def __post_init__(self) -> None:
        assert self.cache_frames >= self.spec.cache_frames, "the engine's cache is smaller than the window"

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return self.height // self.sizes.spatial_factor, self.width // self.sizes.spatial_factor

    @property
    def tokens_per_frame(self) -> int:
        h, w = self.latent_size
        return (h // self.sizes.patch[1]) * (w // self.sizes.patch[2])

    @cached_property
    def schedule(self) -> FlowSchedule:
        """Noise levels by timestep."""
        return FlowSchedule.shifted(self.spec.timestep_shift)

    def latents_shape(self, frames: int) -> tuple[int, ...]:
        return (1, frames, self.sizes.channels, *self.latent_size)

    def no_latents(self) -> Tensor:
        """Latents of zero frames, [1, 0, C, h, w]."""
        return torch.zeros(self.latents_shape(0), dtype=self.dtype, device=self.device)

    def no_pictures(self) -> Tensor:
        """Decoded pictures of zero frames, [1, 3, 0, H, W]."""
        return torch.zeros((1, 3, 0, self.height, self.width), dtype=self.dtype, device=self.device)

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor in the working type, on the device."""
        return tensor.to(device=self.device, dtype=self.dtype)

    def empty_cache(self) -> KVCache:
        """The self-attention cache of a new stream."""
        sizes, spec = self.sizes, self.spec
        tokens = spec.cache_tokens(self.tokens_per_frame, self.cache_frames)
        shape = (2, 1, tokens, sizes.heads, sizes.head_dim)
        layers = tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(sizes.layers))
        decay = spec.sink_ema_decay
        return KVCache(
            Slots.of(layers, self.tokens_per_frame),
            Ring(self.cache_frames, spec.sink_size, keep=spec.cache_frames),
            None if decay is None else EmaSink(decay, spec.sink_ema_float32),
            padding=spec.padding_keys,
        )

    def empty_bank(self) -> MemoryBank:
        """The memory bank of a new stream; without one, a bank of size 0."""
        return MemoryBank(self.spec.bank_size, self.spec.record_interval)

    def cross_kv(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Cross-attention keys and values of every layer for a prompt embedding [1, text_len, text_dim]."""
        names = [f"{CROSS_KV}{i:02d}" for i in range(self.sizes.layers)]
        results = self.engines.text_kv.run({"prompt_embeds": self.place(embedding)}, names)
        return tuple(results[name] for name in names)

    def flow(
        self,
        x: Tensor,
        timestep: float,
        start: int,
        cross_kv: Sequence[Tensor],
        cache: KVCache,
        past_weight: float = 1.0,
    ) -> Tensor:
        """One denoising pass: x [1, F, C, h, w] of the frames from `start` -> flow of the same shape.

        past_weight   of cached frames in the attention, see `KVCache.key_bias`
        """
        inputs = self._inputs(x, timestep, start, cross_kv, cache, past_weight)
        tokens = self.engines.transformer.run(inputs, [FLOW])[FLOW]
        return unpatchify(tokens, *self.latent_size, self.sizes.patch)

    def clean_kv(
        self, x: Tensor, start: int, cross_kv: Sequence[Tensor], cache: KVCache, engine: Engine | None = None
    ) -> list[Tensor]:
        """Keys and values of clean latents x [1, F, C, h, w] of the frames from `start`, at timestep 0.

        Every frame sees every frame of x and what the cache holds. Returns per layer [2, 1, tokens, N, D].
        """
        names = [f"{NEW_KV}{i:02d}" for i in range(self.sizes.layers)]
        inputs = self._inputs(x, 0, start, cross_kv, cache)
        results = (engine or self.engines.transformer).run(inputs, names)
        return [results[name] for name in names]

    def _inputs(
        self,
        x: Tensor,
        timestep: float,
        start: int,
        cross_kv: Sequence[Tensor],
        cache: KVCache,
        past_weight: float = 1.0,
    ) -> dict[str, Tensor]:
        """`start` is the stream's count of frames; where keys are not cached at the positions that it gives,
        the new frames come after the cached ones."""
        absolute = self.spec.cached_keys is CachedKeys.ROTATED
        first = start if absolute else len(cache.ring.held)
        unrotated = self.spec.cached_keys is CachedKeys.UNROTATED
        bias = cache.key_bias(x.shape[1] * self.tokens_per_frame, past_weight)
        inputs = self._form.inputs(
            x,
            timesteps(timestep, x),
            range(first, first + x.shape[1]),
            cross_kv,
            cache.ready(),
            bias.to(self.dtype),
            cache.positions() if unrotated else None,
        )
        if self.spare_bias and not bias.any():
            del inputs[KEY_BIAS]
        return inputs

    @cached_property
    def _form(self) -> LatentTransformer:
        engine, sizes = self.engines.transformer, self.sizes

        def run(inputs: dict[str, Tensor]) -> Sequence[Tensor]:
            return tuple(engine.run(inputs, engine.outputs).values())

        return LatentTransformer(run, sizes.head_dim, sizes.freq_dim, sizes.patch)


def timesteps(timestep: float, x: Tensor) -> Tensor:
    """The same timestep for every frame of x [B, F, C, h, w]: float32 [B, F], on the CPU."""
    return torch.full(x.shape[:2], float(timestep))
