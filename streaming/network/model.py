"""A loaded model: its engines, its sizes, and the calls that the loop makes."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from streaming.adapters.stack import AdapterStack, ScaledStack
from streaming.cache.ema_sink import EmaSink
from streaming.cache.kv_cache import KVCache, Ring, Slots
from streaming.cache.memory_bank import MemoryBank
from streaming.conditioning.conditions import Conditions
from streaming.conditioning.prompts import Encode
from streaming.engines.engine import BranchEngines, Engines
from streaming.network.inputs import ADAPTERS, FLOW, GROUPS, NEW_KV, numbered
from streaming.network.transformer import ModelSizes, TransformerCall, timesteps
from streaming.schedule import FlowSchedule
from streaming.specs import CachedKeys, LoopSpec


@dataclass(frozen=True, eq=False)
class StreamModel:
    """All that the streams of one loaded pipeline share. Sizes in pixels.

    encode_prompts   texts -> embeddings, each [1, text_len, text_dim]
    cache_frames     slots of the ring of the self-attention cache, in latent frames: what the transformer's
                     engine was built for, at least `spec.cache_frames`; those of a memory bank come on top
    spare_bias       the transformer's engine runs without `key_bias` where no key is hidden
    shared_encoder_cache   of both clips of a VACE context, see `EncoderCaches`
    vace_padding     the zero keys of the reference's attention take part in the VACE branch
    adapters         whose scales a stream may turn; None: the engines take none
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
    shared_encoder_cache: bool = True
    vace_padding: bool = True
    adapters: AdapterStack | None = None

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

    def to_device(self, tensor: Tensor) -> Tensor:
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

    def cross_kv(self, embedding: Tensor, adapters: ScaledStack | None = None) -> tuple[Tensor, ...]:
        """Cross-attention keys and values of every layer for a prompt embedding [1, text_len, text_dim]."""
        names = GROUPS["cross"].names(self.sizes.layers)
        inputs = {"prompt_embeds": self.to_device(embedding)}
        if adapters is not None:
            members = GROUPS[ADAPTERS].names(self.sizes.layers)
            inputs |= dict(zip(members, adapters.inputs("text_kv"), strict=True))
        results = self.engines.text_kv.run(inputs, names)
        return tuple(results[name] for name in names)

    @property
    def branch(self) -> BranchEngines:
        """Of VACE, where there is one."""
        assert self.engines.vace is not None, "only a pipeline with the branch makes a context"
        return self.engines.vace

    def vace_cross_kv(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """As `cross_kv`, of every block of the VACE branch."""
        engine = self.branch.text_kv
        results = engine.run({"prompt_embeds": self.to_device(embedding)}, engine.outputs)
        return tuple(results[name] for name in engine.outputs)

    def flow(self, x: Tensor, timestep: float, start: int, conditions: Conditions, cache: KVCache) -> Tensor:
        """One denoising pass: x [1, F, C, h, w] of the frames from `start` -> flow of the same shape."""
        call, engine = self._call(x, timestep, start, conditions, cache), self.engines.transformer
        if conditions.vace is not None:
            engine = self.branch.transformer
        return call.flow(engine.run(call.inputs(engine.inputs), [FLOW])[FLOW])

    def clean_kv(self, x: Tensor, start: int, conditions: Conditions, cache: KVCache) -> list[Tensor]:
        """Keys and values of clean latents x [1, F, C, h, w] of the frames from `start`, at timestep 0.

        Every frame sees every frame of x and what the cache holds. Returns per layer [2, 1, tokens, N, D].
        """
        names = numbered(NEW_KV, self.sizes.layers)
        call, engine = self._call(x, 0, start, conditions.of_clean_frames(), cache), self.engines.transformer
        results = engine.run(call.inputs(engine.inputs), names)
        return [results[name] for name in names]

    def _call(
        self, x: Tensor, timestep: float, start: int, conditions: Conditions, cache: KVCache
    ) -> TransformerCall:
        """`start` is the stream's count of frames; where keys are not cached at the positions that it gives,
        the new frames come after the cached ones."""
        absolute = self.spec.cached_keys is CachedKeys.ROTATED
        first, frames = start if absolute else len(cache.ring.frames), x.shape[1]
        bias = cache.key_bias(frames * self.tokens_per_frame, conditions.past_weight)
        return TransformerCall(
            sizes=self.sizes,
            latents=x,
            timestep=timesteps(timestep, x),
            positions=range(first, first + frames),
            conditions=conditions,
            kv=cache.ready(),
            key_bias=None if self.spare_bias and not bias.any() else bias.to(self.dtype),
            cached_positions=cache.positions(),
        )
