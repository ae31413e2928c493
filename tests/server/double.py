"""A serving side without engines: plain pictures, slow or failing on demand, with a record of every chunk.

It stands in for pipelines whose engines a test machine cannot have. It decides about resets, prompts and
transitions as the specification says (api.md 9.3 and 9.5), on names and numbers instead of tensors.
"""

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.frame_numbers import draw_number
from gateway.files.media import IMAGE_SUFFIXES
from gateway.serving.interface import (
    Availability,
    Chunk,
    ChunkFailed,
    Images,
    ServedEngine,
    ServedMemory,
    ServedPlan,
    ServingError,
    StageCallback,
)
from gateway.stream.parameters.checks import VACE_IMAGE_KEYS as IMAGE_KEYS
from streaming.specs import PipelineSpec
from streaming.triton.protocol import Meta
from streaming.triton.sessions import NO_PICTURES

FRAMES_PER_CHUNK = 4
COLOURS = {  # of the lower half of pictures whose first prompt is such a word
    "red": (220, 30, 30),
    "green": (20, 160, 40),
    "blue": (30, 40, 220),
    "grey": (128, 128, 128),
    "white": (250, 250, 250),
}
SERVED = ServedPlan(
    engine_set="plain_pictures",
    engines=[ServedEngine("plain_pictures", "triton", "tensorrt", "cuda:0", 1_000_000_000)],
    make_room=[],
    sessions=8,
    memory=ServedMemory("GPU memory", 2_340_000_000, 40_000_000, {"weights": 1_000_000_000}),
)

Prompts = list[dict[str, Any]]


@dataclass
class Faults:
    """What goes wrong next; a test changes these."""

    load_delay_s: float = 0.0
    load_error: str | None = None
    chunk_delay_s: float = 0.2
    chunk_errors: int = 0  # this many further chunks fail
    chunk_error: str = "the double was told to fail"
    fatal: bool = False  # those failures cannot be retried
    echoes: bool = False  # no fault: a chunk shows its input pictures, or the plain ones without numbers


@dataclass
class ChunkRecord:
    """What one chunk was asked to do, and what followed from it.

    parameters: as the gateway sent them. changes: those that the last good chunk was not given like that.
    video_frames: number of input pictures, None without video.
    blend_t: place between the old prompt (0) and the new one (1), None when no prompt changed in this chunk.
    """

    parameters: dict[str, Any]
    changes: dict[str, Any]
    video_frames: int | None
    init_cache: bool
    vace_ref_images: list[Images] | None
    blend_t: float | None
    blend: dict[str, Any]
    active_prompts: Prompts


@dataclass
class StreamPolicy:
    """Which prompts a stream shows and when its caches start afresh, after the last good chunk."""

    state: dict[str, Any] = field(default_factory=dict)
    active: Prompts = field(default_factory=list)
    target: Prompts | None = None  # of the running transition
    points: list[float] = field(default_factory=list)  # of the running transition, still to come

    @property
    def transition_active(self) -> bool:
        return self.target is not None

    def next_chunk(self, parameters: Mapping[str, Any], video: Images | None) -> ChunkRecord:
        """Take in what is in force and decide about the next chunk."""
        changes = {k: v for k, v in parameters.items() if k not in self.state or v != self.state[k]}
        init_cache = changes["init_cache"] or self._steps_need_reset(changes)
        self.state = {k: v for k, v in parameters.items() if k not in _ONE_SHOT}
        blend_t = self._advance_prompts(changes, jump=init_cache)
        return ChunkRecord(
            parameters=dict(parameters),
            changes=changes,
            video_frames=None if video is None else len(video),
            init_cache=init_cache,
            vace_ref_images=changes.get("vace_ref_images"),
            blend_t=blend_t,
            blend=blend(self.active, self.state["prompt_interpolation_method"]),
            active_prompts=self.active,
        )

    def _steps_need_reset(self, changes: Mapping[str, Any]) -> bool:
        return "denoising_step_list" in changes and (self.state | dict(changes))["manage_cache"]

    def _advance_prompts(self, changes: Mapping[str, Any], *, jump: bool) -> float | None:
        transition = changes.get("transition")
        prompts = self.state.get("prompts") if {"prompts", "transition"} & changes.keys() else None
        if transition:
            self._begin(transition["target_prompts"], 0 if jump else transition["num_steps"])
        elif prompts and (prompts != self.active or self.transition_active):
            self._begin(prompts, 0)
        if self.target is None:
            return None
        point = self.points.pop(0)
        if not self.points:
            self.active, self.target = self.target, None
        return point

    def _begin(self, target: Prompts, steps: int) -> None:
        self.target = target
        self.points = [i / (steps - 1) for i in range(steps)] if steps > 1 and self.active else [1.0]


_ONE_SHOT = {"init_cache", "lora_scales", *IMAGE_KEYS}


def blend(prompts: Prompts, method: str) -> dict[str, Any]:
    """Blend method and weights; slerp needs exactly two prompts (api.md 9.3)."""
    weights = [prompt["weight"] for prompt in prompts]
    return {"method": method if len(prompts) == 2 else "linear", "weights": weights}


class DoubleSession:
    """One stream of the double."""

    def __init__(self, faults: Faults, height: int, width: int) -> None:
        self.chunks: list[ChunkRecord] = []
        self.forgotten = 0  # chunks before those
        self.video: Images | None = None  # the input of the newest one
        self.closed = False
        self._faults = faults
        self._policy = StreamPolicy()
        self._size = height, width
        self.given_up = 0  # chunks
        self._given_up = asyncio.Event()

    async def generate(
        self, parameters: Mapping[str, Any], video: Images | None
    ) -> AsyncGenerator[Chunk, None]:
        self._given_up.clear()
        policy = copy.deepcopy(self._policy)
        record = policy.next_chunk(parameters, video)
        if await self._is_given_up():
            self.given_up += 1
            yield Chunk(NO_PICTURES, Meta(last=True, given_up=True))
            return
        number = self.forgotten + len(self.chunks)
        self.video = video
        self.chunks.append(record)  # one that was given up before is no chunk
        if self._faults.chunk_errors > 0:
            self._faults.chunk_errors -= 1
            raise ChunkFailed(self._faults.chunk_error, fatal=self._faults.fatal)
        self._policy = policy
        meta = Meta(chunk=number, last=True, transition_active=policy.transition_active)
        pictures = self._pictures(number, policy.active)
        if self._faults.echoes:
            pictures = np.full_like(pictures, 90) if video is None else video
        yield Chunk(pictures, meta)

    async def preprocess(self, name: str, video: Images) -> Images:
        """Negatives stand for what a network would show. The faults of chunks count."""
        if self._faults.chunk_errors > 0:
            self._faults.chunk_errors -= 1
            raise ChunkFailed(self._faults.chunk_error, fatal=self._faults.fatal)
        return 255 - video

    def forget(self) -> None:
        """Keep no record of the chunks so far."""
        self.forgotten += len(self.chunks)
        self.chunks.clear()

    def give_up(self) -> None:
        self._given_up.set()

    async def _is_given_up(self) -> bool:
        """Whether it is, in the time that a chunk takes; a test may shorten that while it lasts."""
        began = time.monotonic()
        while (rest := began + self._faults.chunk_delay_s - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._given_up.wait(), min(rest, 0.05))
                break
        return self._given_up.is_set()

    async def close(self) -> None:
        self.closed = True

    def _pictures(self, chunk: int, prompts: Prompts) -> Images:
        luma = np.full((FRAMES_PER_CHUNK, *self._size), 90, np.uint8)
        for i, picture in enumerate(luma):
            draw_number(picture, chunk * FRAMES_PER_CHUNK + i)
        pictures = luma[..., None].repeat(3, axis=3)
        colour = COLOURS.get(prompts[0]["text"]) if prompts else None
        if colour is not None:
            pictures[:, self._size[0] // 2 :] = colour
        return pictures


class DoubleServing:
    """A serving side (`gateway.serving.interface.Serving`) for every pipeline."""

    url = "double"
    problem: str | None = None

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.sessions: list[DoubleSession] = []
        self.load_plan: ServedPlan | None = None
        self._size: tuple[int, int] | None = None
        self._on_lost: Callable[[str], None] = lambda text: None

    async def start(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost

    async def is_ready(self) -> bool:
        return True

    async def verify(self) -> None: ...

    def hurry(self) -> None: ...

    def availability(self, spec: PipelineSpec, backend: str = "auto") -> Availability:
        few_words = spec.id == "reward-forcing"  # as if its weights were a demonstration
        return Availability(
            available=True,
            vace=spec.names_vace,
            note="It knows two prompts." if few_words else "",
            examples=("a red ball", "a blue box") if few_words else (),
        )

    on_gpu = True

    async def check(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None: ...

    async def room(self, spec: PipelineSpec) -> None: ...

    async def check_room(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None: ...

    async def prepare(
        self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback
    ) -> None: ...

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        on_stage("Loading plain pictures...")
        began = time.monotonic()
        # A test may shorten a load while it lasts.
        while (rest := began + self.faults.load_delay_s - time.monotonic()) > 0:  # noqa: ASYNC110 (a number changes, no event)
            await asyncio.sleep(min(rest, 0.05))
        if self.faults.load_error is not None:
            raise ServingError(self.faults.load_error)
        self._size = int(load_params["height"]), int(load_params["width"])
        self.load_plan = None if spec.loop is None else SERVED

    async def adapt(self, loras: Sequence[Mapping[str, Any]]) -> None:
        if self.faults.load_error is not None:
            raise ServingError(self.faults.load_error)

    async def unload(self) -> None:
        self._size = self.load_plan = None

    def open_session(self) -> DoubleSession:
        assert self._size is not None, "a session was opened without a loaded pipeline"
        session = DoubleSession(self.faults, *self._size)
        self.sessions.append(session)
        return session

    async def gpu_memory_bytes(self) -> tuple[int, int] | None:
        return None

    async def close(self) -> None:
        await self.unload()

    def lose(self, text: str) -> None:
        """Die under the users."""
        self._size = self.load_plan = None
        self._on_lost(text)


def named_images(record: ChunkRecord, assets: Path) -> dict[str, Any]:
    """A record as JSON: images, which come as pixels, by the names of the assets that have these pixels."""
    plain = asdict(record)
    for values in (plain, plain["parameters"], plain["changes"]):
        for key in IMAGE_KEYS & values.keys():
            value = values[key]
            if isinstance(value, list):
                values[key] = [_name_of(image, assets) for image in value]
            elif value is not None:
                values[key] = _name_of(value, assets)
    return plain


def _name_of(image: Images, assets: Path) -> str:
    for path in sorted(path for path in assets.rglob("*") if path.suffix in IMAGE_SUFFIXES):
        with contextlib.suppress(OSError), Image.open(path) as stored:  # some are no images
            if np.array_equal(np.asarray(stored.convert("RGB")), image):
                return path.relative_to(assets).as_posix()
    return f"an image of {image.shape[1]}x{image.shape[0]}"
