"""The six pipelines as data: what differs between them, and nothing else.

Sources: `pipeline-*.md` and `api.md` 4.2, 4.7 of the specification. Torch-free: the gateway reads it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Literal, get_args

TEXT: Final = "text"
VIDEO: Final = "video"

TEMPORAL_FACTOR: Final = 4  # pixel frames per latent frame of the Wan VAE
ROPE_POSITIONS: Final = 1024  # latent frames before the positions run out and the stream starts afresh

Quantization = Literal["fp8_e4m3fn"]
VaeType = Literal["wan", "lightvae", "tae", "lighttae"]
LoraMergeMode = Literal["permanent_merge", "runtime_peft"]
Interpolation = Literal["linear", "slerp"]
# What becomes of a control video before VACE is shown it.
Preprocessor = Literal["none", "gray", "scribble", "optical-flow", "video-depth-anything"]


class OnPromptChange(str, Enum):
    """What happens to cached self-attention keys when the prompt changes in text mode."""

    KEEP = "keep"
    RECACHE = "recache"  # recompute them from the last clean latents under the new prompt


class CachedKeys(str, Enum):
    """The form in which self-attention keys are cached, and so what their positions are and who writes them.

    The first two are written by a last forward at timestep 0, the clean pass.
    """

    ROTATED = "rotated"  # absolute positions, given once
    UNROTATED = "unrotated"  # rotated when read, by their place in the window
    RECOMPUTED = "recomputed"  # rebuilt from clean latents before every chunk, at positions 0, 1, ...


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """Numbers of the denoise / cache loop. Lengths in latent frames.

    The first chunk after a reset has `first_text_frames` or `first_video_frames`, later ones
    `frames_per_chunk`.
    """

    frames_per_chunk: int
    local_attn_size: int  # attention window: sink, recent frames and the new chunk
    first_text_frames: int
    first_video_frames: int
    sink_size: int = 0  # first frames of the stream, never evicted
    global_sink: bool = True  # RECACHE leaves the sink's keys as they are once the window has moved on
    rope_positions: int = ROPE_POSITIONS
    first_video_advance: int | None = None  # frame counter after that chunk; None: its length
    timestep_shift: float = 5.0
    on_prompt_change: OnPromptChange = OnPromptChange.KEEP
    cached_keys: CachedKeys = CachedKeys.ROTATED
    sink_ema_decay: float | None = None  # evicted frames are averaged into the sink
    sink_ema_float32: bool = False  # the average in float32 instead of the cache's type (not the reference)
    context_frames: int = 0  # clean frames of which a RECOMPUTED cache is made; at most `frames_per_chunk`
    padding_keys: int = 0  # cache slots that stay zero, for the keys with which the reference fills up
    bank_size: int = 0  # memory bank: frames that are seen beside the window
    record_interval: int | None = None  # chunks between two records in the bank; None: never
    normalise_encoded_video: bool = True  # (z - mean) / std after the VAE encoder
    vae_types: tuple[VaeType, ...] = get_args(VaeType)  # autoencoders that this pipeline can run with

    def __post_init__(self) -> None:
        rotated = self.cached_keys is CachedKeys.ROTATED
        assert rotated or not self.bank_size, "a frame in the memory bank carries its position in its keys"

    @property
    def cache_frames(self) -> int:
        """Latent frames that a later chunk can read: what the cache has to hold between chunks."""
        return self.local_attn_size - self.frames_per_chunk

    def cache_tokens(self, tokens_per_frame: int, ring_frames: int | None = None) -> int:
        """Tokens of the transformer's cache input: the ring (None: of `cache_frames`), the bank, padding."""
        ring = self.cache_frames if ring_frames is None else ring_frames
        return (ring + self.bank_size) * tokens_per_frame + self.padding_keys

    @property
    def longest_chunk(self) -> int:
        """Most latent frames of one chunk."""
        return max(self.first_text_frames, self.first_video_frames, self.frames_per_chunk)

    def with_window(self, frames: int) -> "LoopSpec":
        """With this attention window; a cache that is recomputed takes as many clean frames as it leaves."""
        context = min(self.context_frames, frames - self.frames_per_chunk)
        return replace(self, local_attn_size=frames, context_frames=context)

    @property
    def context_pictures(self) -> int:
        """Pixel frames that end with the last one and begin with the first that the context shows."""
        return 1 + (self.context_frames - 1) * TEMPORAL_FACTOR if self.context_frames else 0

    @property
    def averaged_frames(self) -> int:
        """Latent frames of an averaged sink, which a stream keeps beside its cache."""
        return self.sink_size if self.sink_ema_decay is not None else 0

    @property
    def remembered_frames(self) -> int:
        """Latent frames that a stream keeps for its memory bank: the blocks, and the last recorded one."""
        return self.bank_size + 1 if self.record_interval is not None else 0

    def chosen(self, load_params: Mapping[str, Any]) -> "LoopSpec":
        """With what a load chose of it; other parameters are ignored."""
        return replace(self, **{name: load_params[name] for name in LOAD_CHOICES if name in load_params})

    def chunk_frames(self, mode: str, first: bool) -> int:
        """Latent frames of a chunk; `first` is true for the first one after a reset."""
        if not first:
            return self.frames_per_chunk
        return self.first_video_frames if mode == VIDEO else self.first_text_frames

    def input_frames(self, first: bool) -> int:
        """Pixel frames that the VAE encodes for a chunk in video mode."""
        frames = self.chunk_frames(VIDEO, first)
        return 1 + (frames - 1) * TEMPORAL_FACTOR if first else frames * TEMPORAL_FACTOR


# Fields of a LoopSpec that a load may choose, for pipelines that have what they are about.
LOAD_CHOICES: Final = ("record_interval", "sink_ema_float32")


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Valid heights and widths in pixels: multiples of `step` from `minimum` to `maximum`."""

    minimum: int
    maximum: int
    step: int

    def nearest(self, size: int) -> int:
        """The valid size that is closest to `size`; the smaller one of two."""
        lowest = -(-self.minimum // self.step) * self.step
        highest = self.maximum // self.step * self.step
        below = size // self.step * self.step
        above = below + self.step
        return min(max(below if size - below <= above - size else above, lowest), highest)


@dataclass(frozen=True, slots=True)
class ModeDefaults:
    """What an input mode advertises instead of the pipeline's base values; None: the base value.

    Clients send these values back; the loop itself starts from the base values in every mode (parity).
    """

    height: int | None = None
    width: int | None = None
    denoising_steps: tuple[int, ...] | None = None
    noise_scale: float | None = None
    noise_controller: bool | None = None
    transition_steps: int | None = None


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """All that makes one pipeline differ from another. Sizes in pixels."""

    id: str
    name: str
    config_title: str
    description: str
    docs_url: str | None
    height: int
    width: int
    size: SizeRange
    modes: tuple[str, ...] = (TEXT, VIDEO)
    default_mode: str = TEXT
    mode_defaults: Mapping[str, ModeDefaults] = field(default_factory=dict, hash=False)
    estimated_vram_gb: float | None = None
    requires_models: bool = True
    supports_prompts: bool = True
    supports_lora: bool = True
    supports_vace: bool = True
    names_vace: bool = True  # where there is no VACE engine, too; Scope's first version has none for krea
    supports_cache_management: bool = True
    supports_kv_cache_bias: bool = False
    supports_quantization: bool = True
    quantization_vram_threshold_gib: float | None = None  # without a choice: fp8 at or below, none above
    base_seed: int = 42
    denoising_steps: tuple[int, ...] | None = (1000, 750, 500, 250)  # timesteps, used as they are
    noise_scale: float | None = 0.7
    noise_controller: bool | None = True
    noise_scale_live: bool = False  # shown to clients as a value that may be modulated
    kv_cache_attention_bias: float = 1.0  # 1.0: off
    transition_method: Interpolation = "slerp"
    transition_steps: int = 0  # chunks; what clients propose, not what a transition without num_steps takes
    input_frames_per_chunk: int = 12
    video_frames_per_request: int = 12  # input frames that the gateway collects for one request
    max_sessions: int | None = None  # default limit of concurrent sessions; None: what GPU memory allows
    loop: LoopSpec | None = None  # None: no model, frames go through


_WAN_SIZE: Final = SizeRange(16, 2048, 16)
_WAN_SIZE_FROM_64: Final = SizeRange(64, 2048, 16)
_WAN_VIDEO: Final = ModeDefaults(
    height=512, width=512, denoising_steps=(1000, 750), noise_scale=0.7, noise_controller=True
)

STREAMDIFFUSIONV2: Final = PipelineSpec(
    id="streamdiffusionv2",
    name="StreamDiffusionV2",
    config_title="StreamDiffusionV2Config",
    description="Restyles live video as it comes in: one latent frame per chunk, the lowest delay of all. "
    "Wan2.1 1.3B.",
    docs_url="https://github.com/chenfengxu714/StreamDiffusionV2",
    height=512,
    width=512,
    size=_WAN_SIZE_FROM_64,
    default_mode=VIDEO,
    mode_defaults={TEXT: ModeDefaults(height=512, width=512, denoising_steps=(1000, 750))},
    estimated_vram_gb=20.0,
    denoising_steps=(750, 250),
    input_frames_per_chunk=4,
    video_frames_per_request=4,
    loop=LoopSpec(
        frames_per_chunk=1,
        local_attn_size=6,
        first_text_frames=2,
        first_video_frames=2,
        sink_size=3,
        timestep_shift=8.0,
        normalise_encoded_video=False,
        vae_types=("wan",),
    ),
)

LONGLIVE: Final = PipelineSpec(
    id="longlive",
    name="LongLive",
    config_title="LongLiveConfig",
    description="Long text-to-video streams whose prompt may change at any time: the memory is rebuilt under "
    "the new prompt, so that the scene goes on smoothly. Wan2.1 1.3B.",
    docs_url="https://github.com/NVlabs/LongLive",
    height=320,
    width=576,
    size=_WAN_SIZE,
    mode_defaults={VIDEO: _WAN_VIDEO},
    estimated_vram_gb=20.0,
    noise_scale_live=True,
    loop=LoopSpec(
        frames_per_chunk=3,
        local_attn_size=12,
        first_text_frames=3,
        first_video_frames=4,
        sink_size=3,
        on_prompt_change=OnPromptChange.RECACHE,
    ),
)

KREA_REALTIME_VIDEO: Final = PipelineSpec(
    id="krea-realtime-video",
    name="Krea Realtime Video",
    config_title="KreaRealtimeVideoConfig",
    description="The largest model: best picture and motion, for data-centre GPUs. Wan2.1 14B.",
    docs_url="https://github.com/krea-ai/realtime-video",
    height=512,
    width=512,
    size=_WAN_SIZE_FROM_64,
    mode_defaults={
        VIDEO: ModeDefaults(
            height=256,
            width=256,
            denoising_steps=(1000, 750),
            noise_scale=0.7,
            noise_controller=True,
            transition_steps=0,
        )
    },
    estimated_vram_gb=32.0,
    names_vace=False,
    supports_kv_cache_bias=True,
    quantization_vram_threshold_gib=40.0,
    kv_cache_attention_bias=0.3,
    transition_method="linear",
    transition_steps=4,
    loop=LoopSpec(
        frames_per_chunk=3,
        local_attn_size=6,
        first_text_frames=3,
        first_video_frames=4,
        cached_keys=CachedKeys.RECOMPUTED,
        context_frames=3,
        padding_keys=16,
    ),
)

REWARD_FORCING: Final = PipelineSpec(
    id="reward-forcing",
    name="RewardForcing",
    config_title="RewardForcingConfig",
    description="Text-to-video trained for lively motion; its memory of the first frames drifts slowly with "
    "the stream. Wan2.1 1.3B.",
    docs_url="https://github.com/JaydenLyh/Reward-Forcing",
    height=320,
    width=576,
    size=_WAN_SIZE,
    mode_defaults={VIDEO: _WAN_VIDEO},
    estimated_vram_gb=20.0,
    loop=LoopSpec(
        frames_per_chunk=3,
        local_attn_size=9,
        first_text_frames=3,
        first_video_frames=4,
        sink_size=3,
        first_video_advance=3,
        cached_keys=CachedKeys.UNROTATED,
        sink_ema_decay=0.999,
    ),
)

MEMFLOW: Final = PipelineSpec(
    id="memflow",
    name="MemFlow",
    config_title="MemFlowConfig",
    description="LongLive with a memory bank: frames that fit the prompt are kept and seen again much later. "
    "Wan2.1 1.3B.",
    docs_url="https://github.com/KlingTeam/MemFlow",
    height=320,
    width=576,
    size=_WAN_SIZE,
    mode_defaults={VIDEO: _WAN_VIDEO},
    estimated_vram_gb=20.0,
    loop=LoopSpec(
        frames_per_chunk=3,
        local_attn_size=12,
        first_text_frames=3,
        first_video_frames=4,
        sink_size=3,
        on_prompt_change=OnPromptChange.RECACHE,
        bank_size=3,
        record_interval=3,
    ),
)

PASSTHROUGH: Final = PipelineSpec(
    id="passthrough",
    name="Passthrough",
    config_title="PassthroughConfig",
    description="Returns the incoming video unchanged. Needs no model and no GPU; checks the connection.",
    docs_url=None,
    height=512,
    width=512,
    size=SizeRange(1, 4096, 1),
    modes=(VIDEO,),
    default_mode=VIDEO,
    requires_models=False,
    supports_prompts=False,
    supports_lora=False,
    supports_vace=False,
    supports_cache_management=False,
    supports_quantization=False,
    denoising_steps=None,
    noise_scale=None,
    noise_controller=None,
    input_frames_per_chunk=4,
    video_frames_per_request=1,  # nothing gains from waiting for more
    max_sessions=8,
)

SPECS: Final[dict[str, PipelineSpec]] = {
    spec.id: spec
    for spec in (STREAMDIFFUSIONV2, LONGLIVE, KREA_REALTIME_VIDEO, REWARD_FORCING, MEMFLOW, PASSTHROUGH)
}
