"""The denoise / cache loop: one chunk of a stream (pipelines-common.md 10). There is no other.

What differs between pipelines is data of `LoopSpec`, or a function that its data picks.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from streaming.adapters.stack import ScaledStack
from streaming.conditioning.conditions import Conditions
from streaming.conditioning.prompts import PromptRequest, PromptState
from streaming.errors import NotFiniteError, WanstreamError
from streaming.network.autoencoder import decode, encode, encode_alone
from streaming.network.model import StreamModel
from streaming.network.pictures import to_pictures
from streaming.network.transformer import timesteps
from streaming.network.video import input_clip
from streaming.noise import Draw, NoiseSource, motion_noise_scale
from streaming.schedule import first_video_step
from streaming.session import Session
from streaming.specs import TEXT, VIDEO, CachedKeys, OnPromptChange
from streaming.triton.sessions import ChunkCancelled, Images
from streaming.vace.conditions import vace_context


@dataclass(frozen=True, eq=False, slots=True)
class ChunkRequest:
    """What a chunk is asked to be: everything in force, not only what changed.

    A live parameter with the name of a field is its value.
    """

    prompt: PromptRequest
    steps: tuple[int, ...]  # denoising timesteps, at least one
    seed: int  # base seed, taken at the next reset
    mode: str
    init_cache: bool = False  # begin with fresh caches and forget the prompts
    manage_cache: bool = True  # resets that no one asked for are allowed
    noise_scale: float = 0.7  # video mode: 0 keeps the input, 1 ignores it
    noise_controller: bool = True  # video mode: let motion decide about the noise scale
    lora_scales: Mapping[str, float] = field(default_factory=dict)  # new ones, by the adapter's name
    past_weight: float = 1.0  # of cached frames in the attention, for pipelines that have it; 1: plain
    video: Images | None = None  # uint8 [T, H, W, 3] RGB, any size; video mode only
    vace_input_frames: Images | None = None  # the same, of a control video; text mode only
    vace_input_masks: Images | None = None  # uint8 [T, H, W, 1], of its frames; 255: to be made
    vace_ref_images: Sequence[Images] = ()  # uint8 [H, W, 3] RGB each, any size, of this chunk
    first_frame_image: Images | None = None
    last_frame_image: Images | None = None
    vace_context_scale: float = 1.0  # of the hints; 0: as if there were no context


@dataclass(slots=True)
class StepTimer:
    """Surrounds every engine call: stops a chunk that nobody wants and adds up the times."""

    cancelled: Callable[[], bool] = field(default=lambda: False)
    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a step called `name`. Raises ChunkCancelled before it begins."""
        if self.cancelled():
            raise ChunkCancelled
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = (time.perf_counter() - began) * 1e3
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + elapsed


def generate_chunk(
    model: StreamModel, session: Session, request: ChunkRequest, noise: NoiseSource, step: StepTimer
) -> Iterator[Images]:
    """Make the next chunk of a stream.

    Yields pictures, uint8 [T, H, W, 3] RGB, of one latent frame as soon as it is decoded. `session` changes
    after the last of them and only when everything went well: the iterator has to be used up. Raises
    ChunkCancelled, NotFiniteError, and WanstreamError for a request that cannot be met.
    """
    chunk = replace(session)
    begin(model, chunk, request, step)
    draw = noise.chunk(chunk.seed + chunk.start)
    latents, steps = INPUT_STEPS[request.mode](model, chunk, request, draw, step)
    frames = latents.shape[1]
    CACHE_STEPS[model.spec.cached_keys].prepare(model, chunk, frames, step)
    chunk.conditions = replace(chunk.conditions, vace=vace_context(model, chunk, request, step))
    x_0 = denoise(model, chunk, latents, steps, draw, step)
    require_finite(x_0)  # before it is shown or remembered: one such value would stay in all later chunks
    for i in range(frames):  # before the clean pass: the pictures need not wait for it
        latent, caches = x_0[:, i : i + 1], chunk.decoder_caches
        pixels, chunk.decoder_caches = decode(model.engines.vae, latent, caches, step)
        keep_pictures(chunk, model.to_device(pixels), model.spec.context_pictures)
        yield to_pictures(pixels)
    finish(model, chunk, x_0, step)
    session.adopt(chunk)


def begin(model: StreamModel, chunk: Session, request: ChunkRequest, step: StepTimer) -> None:
    """Prompts, resets and conditions of the chunk (pipelines-common.md 3 to 6)."""
    init = request.init_cache or request.mode != chunk.mode  # a mode change is a reset (defect D1)
    with step("text"):
        known = PromptState() if init else chunk.prompt
        chunk.prompt = known.next(request.prompt, model.encode_prompts)
    chunk.lora_scales = {**chunk.lora_scales, **request.lora_scales}
    adapters, before = adapters_of(model, chunk), chunk.conditions.adapters
    turned = adapters is not None and before is not None and adapters.turned_from(before)
    init |= (turned or request.steps != chunk.steps) and request.manage_cache
    chunk.mode, chunk.steps = request.mode, request.steps
    if init:
        chunk.last_input = None
    if init or reset_due(model, chunk, request):
        chunk.reset(model, request.seed)
    cross_kv = chunk.conditions.cross_kv
    changed = adapters is not None and not adapters.same_as(before)
    if chunk.prompt.updated or changed or not cross_kv:
        embedding = chunk.prompt.embedding
        assert embedding is not None, "a stream's first prompt has an embedding"
        with step("text"):
            cross_kv = model.cross_kv(embedding, adapters)
        chunk.vace_cross_kv = ()
    chunk.conditions = Conditions(cross_kv, request.past_weight, adapters=adapters)


def adapters_of(model: StreamModel, chunk: Session) -> ScaledStack | None:
    """The adapters with the stream's scales: the object of the chunk before where it is the same.

    A change too small to count is none, and many small ones add up: the one before stays.
    """
    if model.adapters is None:
        return None
    scaled, before = model.adapters.at(chunk.lora_scales), chunk.conditions.adapters
    return before if before is not None and scaled.same_as(before) else scaled


def reset_due(model: StreamModel, chunk: Session, request: ChunkRequest) -> bool:
    """Whether the stream has to start again although nobody asked for it (pipelines-common.md 6)."""
    prompt = chunk.prompt
    positions_end = chunk.start >= model.spec.rope_positions - model.spec.frames_per_chunk
    jumped = prompt.updated and not (prompt.in_transition or prompt.was_in_transition)
    has_video = request.mode == VIDEO or request.vace_input_frames is not None
    return positions_end or (jumped and request.manage_cache and has_video)


def from_noise(
    model: StreamModel, chunk: Session, request: ChunkRequest, draw: Draw, step: StepTimer
) -> tuple[Tensor, tuple[int, ...]]:
    """Pure noise, and all steps."""
    frames = model.spec.chunk_frames(request.mode, first=chunk.start == 0)
    return model.to_device(draw(model.latents_shape(frames))), request.steps


def from_video(
    model: StreamModel, chunk: Session, request: ChunkRequest, draw: Draw, step: StepTimer
) -> tuple[Tensor, tuple[int, ...]]:
    """Encoded input pictures with noise added; the first step follows from how much."""
    spec = model.spec
    if request.video is None or len(request.video) == 0:
        raise WanstreamError("Video mode needs pictures: start a camera or a video, or switch to text mode.")
    frames = spec.input_frames(first=chunk.start == 0)
    clip = input_clip(request.video, model.height, model.width, frames)
    scale = request.noise_scale
    if request.noise_controller:
        scale = motion_noise_scale(clip, chunk.last_input, spec.frames_per_chunk, scale)
        chunk.last_input = clip[:, :, -1:]
    z, chunk.encoder_caches = encode(
        model.engines.vae,
        model.to_device(torch.from_numpy(clip)),
        chunk.encoder_caches,
        step,
        normalise=spec.normalise_encoded_video,
    )
    latents = model.to_device(draw(z.shape)) * scale + z * (1 - scale)
    return latents, (first_video_step(scale), *request.steps[1:])


# What denoising starts from, latents [1, F, C, h, w], and its timesteps (pipelines-common.md 5, 7, 8).
InputStep = Callable[[StreamModel, Session, ChunkRequest, Draw, StepTimer], tuple[Tensor, tuple[int, ...]]]
INPUT_STEPS: dict[str, InputStep] = {TEXT: from_noise, VIDEO: from_video}  # by mode


def denoise(
    model: StreamModel,
    chunk: Session,
    latents: Tensor,
    steps: tuple[int, ...],
    draw: Draw,
    step: StepTimer,
) -> Tensor:
    """Clean latents [1, F, C, h, w] from noisy ones; each step but the first adds noise to the last x_0."""
    schedule = model.schedule
    x_t, x_0 = latents, latents
    for i, timestep in enumerate(steps):
        if i > 0:
            fresh = model.to_device(draw(x_0.shape))
            x_t = schedule.add_noise(x_0, fresh, timesteps(timestep, x_0))
        with step("denoise"):
            flow = model.flow(x_t, timestep, chunk.start, chunk.conditions, chunk.kv)
        x_0 = schedule.to_x0(flow, x_t, timesteps(timestep, x_t))
    return x_0


def require_finite(values: Tensor) -> None:
    """Raise NotFiniteError where a value is no number: reduced precision can overflow."""
    extremes = torch.stack(torch.aminmax(values))  # one pass and no copy; a NaN is both
    if not torch.isfinite(extremes).all():
        raise NotFiniteError(
            "This chunk came to values that are no numbers (an overflow) and was thrown away. If that "
            "happens again, reset the cache, or load the pipeline with engines of a higher precision."
        )


def finish(model: StreamModel, chunk: Session, x_0: Tensor, step: StepTimer) -> None:
    """Remember the chunk. Nothing may fail after the cache is written."""
    spec, frames = model.spec, x_0.shape[1]
    chunk.clean = torch.cat([chunk.clean, x_0], dim=1)[:, -spec.local_attn_size :]
    CACHE_STEPS[spec.cached_keys].commit(model, chunk, x_0, step)
    first_video = chunk.start == 0 and chunk.mode == VIDEO
    chunk.start += spec.first_video_advance if first_video and spec.first_video_advance else frames
    chunk.index += 1


def keep_cache(model: StreamModel, chunk: Session, step: StepTimer) -> None:
    """Cached keys stay as they are; only the cross attention follows the new prompt."""


def recache(model: StreamModel, chunk: Session, step: StepTimer) -> None:
    """Compute the cached keys anew from the last clean latents (pipeline-longlive.md 4).

    Once the window has moved on, a global sink keeps its keys, and the frames after it are computed. The old
    cache is not touched: the chunk may still fail.
    """
    spec = model.spec
    frames = min(chunk.start, spec.local_attn_size)
    oldest = chunk.start - frames
    sink = spec.sink_size if oldest > 0 and spec.global_sink else 0
    past, first = chunk.kv.oldest(sink), oldest + sink
    latents = chunk.clean[:, first - chunk.start :]
    with step("recache"):
        new_kv = model.clean_kv(latents, first, chunk.conditions, past)
    chunk.kv = past.rebuilt(new_kv, range(first, chunk.start))


ON_PROMPT_CHANGE: dict[OnPromptChange, Callable[[StreamModel, Session, StepTimer], None]] = {
    OnPromptChange.KEEP: keep_cache,
    OnPromptChange.RECACHE: recache,
}


def roll(model: StreamModel, chunk: Session, frames: int, step: StepTimer) -> None:
    """Make the cache what `frames` new ones attend to: follow the prompt, then evict what leaves the window.

    The memory bank takes in what was recorded before each of the two forwards.
    """
    chunk.kv = chunk.kv.before(chunk.start)
    if chunk.prompt.updated and chunk.start > 0:
        flush(chunk)
        ON_PROMPT_CHANGE[model.spec.on_prompt_change](model, chunk, step)
    flush(chunk)
    chunk.kv = chunk.kv.with_room_for(frames, model.spec.local_attn_size)


def flush(chunk: Session) -> None:
    """Bring the frame that was recorded last into the memory bank (pipeline-memflow.md 4).

    In a chunk with a new prompt the reference has no text keys at this point.
    """
    text_keys = None if chunk.prompt.updated else [layer[0, 0] for layer in chunk.conditions.cross_kv]
    chunk.bank = chunk.bank.flushed(text_keys)
    chunk.kv = chunk.kv.with_bank(chunk.bank.keys_and_values())


def clean_pass(model: StreamModel, chunk: Session, x_0: Tensor, step: StepTimer) -> None:
    """Later chunks attend to clean frames, so their keys come from a pass at timestep 0."""
    with step("clean"):
        new_kv = model.clean_kv(x_0, chunk.start, chunk.conditions, chunk.kv)
        require_finite(new_kv[-1])  # of the last layer: what overflows in an earlier one arrives there
    chunk.bank = chunk.bank.after_chunk(chunk.index, new_kv, model.tokens_per_frame)
    chunk.kv = chunk.kv.append(new_kv, range(chunk.start, chunk.start + x_0.shape[1]))


def recompute(model: StreamModel, chunk: Session, frames: int, step: StepTimer) -> None:
    """Make the cache anew from the last clean frames, under the current prompt (pipeline-krea-... 5).

    The session's own cache is written to: nobody reads it before it is made anew again.
    """
    chunk.kv = chunk.kv.oldest(0)
    if chunk.start == 0:
        return
    context = context_latents(model, chunk, step)
    with step("context"):
        new_kv = model.clean_kv(context, 0, chunk.conditions, chunk.kv)
    chunk.kv = chunk.kv.append(new_kv, range(context.shape[1]))


def context_latents(model: StreamModel, chunk: Session, step: StepTimer) -> Tensor:
    """Clean latents of which the cache is made, [1, context_frames, C, h, w]; not of a stream's first chunk.

    The last ones, and before them the first of the stream, or, once that is too long ago, the picture before
    them, encoded without what led to it: so errors do not add up.
    """
    spec = model.spec
    if chunk.start - spec.frames_per_chunk < spec.context_frames:
        first = chunk.clean[:, :1]
    else:
        first = encode_alone(model.engines.vae, chunk.pictures[:, :, :1], step)
    return torch.cat([first, chunk.clean[:, chunk.clean.shape[1] - spec.context_frames + 1 :]], dim=1)


def keep_nothing(model: StreamModel, chunk: Session, x_0: Tensor, step: StepTimer) -> None:
    """What the next chunk needs are the latents and pictures, not their keys."""


def keep_pictures(chunk: Session, pixels: Tensor, count: int) -> None:
    """Remember the last `count` decoded frames; pixels [1, 3, T, H, W] are the newest, in the same type."""
    if count:
        chunk.pictures = torch.cat([chunk.pictures, pixels], dim=2)[:, :, -count:]


@dataclass(frozen=True, slots=True)
class CacheSteps:
    """What happens to the self-attention cache in a chunk.

    prepare   before the denoising of `frames` latent frames: the cache becomes what they attend to. Must not
              write where the session's own cache lies: the chunk may still fail
    commit    after it, with the clean latents x_0 [1, F, C, h, w]
    """

    prepare: Callable[[StreamModel, Session, int, StepTimer], None]
    commit: Callable[[StreamModel, Session, Tensor, StepTimer], None]


CACHE_STEPS: dict[CachedKeys, CacheSteps] = {
    CachedKeys.ROTATED: CacheSteps(roll, clean_pass),
    CachedKeys.UNROTATED: CacheSteps(roll, clean_pass),
    CachedKeys.RECOMPUTED: CacheSteps(recompute, keep_nothing),
}
