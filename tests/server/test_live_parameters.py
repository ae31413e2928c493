"""Every parameter of a stream, changed while real engines run it: what the next chunk makes of it.

Source: api.md 9.3. The gateway's own state merges messages and hands chunks their parameters, as in a stream.
Triton and the loop of this process make each chunk, and the latter makes it without the change, too. The
pipeline is krea, which has all parameters.
"""

import copy
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from export.onnx.store import EngineStore
from gateway.stream.parameters.checks import FIELDS, TIMING, WISHES
from gateway.stream.parameters.state import ParameterContext, ParameterState
from gateway.stream.seat import COMMANDS
from streaming.engines.engine_set import EngineSet, read_engine_set
from streaming.engines.served import InProcess, open_model
from streaming.specs import KREA_REALTIME_VIDEO, TEXT, VIDEO
from streaming.triton.model_pipeline import ModelPipeline, ModelStream
from streaming.triton.sessions import Images, Stream
from tests.engines import SIZE, load_plan
from tests.server.triton_fixtures import ModelClient, running_triton

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

SPEC = KREA_REALTIME_VIDEO
ONE_LEVEL = 1  # two processes may round a picture differently by this much


class Effect(Enum):
    """What a change does to the next chunk."""

    NONE = "the chunk is what it would have been"
    CHANGED = "another chunk of the same stream"
    AFRESH = "the first chunk of a stream with the parameters now in force"


@dataclass(frozen=True)
class Case:
    """before: from the stream's start on. message: what is sent when it runs."""

    message: dict[str, Any]
    effect: Effect
    before: dict[str, Any] = field(default_factory=dict)
    remark: str = ""  # part of what the client is told


TWO = [{"text": "a boat"}, {"text": "a bird"}]
CAMERA = {"input_mode": VIDEO}
BIRD_IN = {"target_prompts": "a bird"}
SCALE = {"path": "style.safetensors", "scale": 0.5}
NO_VACE = "VACE is not loaded"
IMAGE = "picture.png"
CASES = {
    "input_mode": Case({"input_mode": VIDEO}, Effect.AFRESH),
    "input_mode back": Case({"input_mode": TEXT}, Effect.AFRESH, CAMERA),
    "prompts": Case({"prompts": "a bird"}, Effect.CHANGED),
    "prompts, their weights": Case(
        {"prompts": [TWO[0], {**TWO[1], "weight": 9}]}, Effect.CHANGED, {"prompts": TWO}
    ),
    "prompts, the same": Case({"prompts": ["a boat"]}, Effect.NONE),
    "prompts, video": Case({"prompts": "a bird"}, Effect.AFRESH, CAMERA),
    "prompts, video, unmanaged": Case(
        {"prompts": "a bird"}, Effect.CHANGED, {**CAMERA, "manage_cache": False}
    ),
    "prompt_interpolation_method": Case(
        {"prompt_interpolation_method": "slerp"}, Effect.CHANGED, {"prompts": TWO}
    ),
    "prompt_interpolation_method, its other name": Case(
        {"spatial_interpolation_method": "slerp"}, Effect.CHANGED, {"prompts": TWO}
    ),
    "prompt_interpolation_method, one prompt": Case({"prompt_interpolation_method": "slerp"}, Effect.NONE),
    "transition, its first chunk": Case({"transition": {**BIRD_IN, "num_steps": 3}}, Effect.NONE),
    "transition of one chunk": Case({"transition": {**BIRD_IN, "num_steps": 1}}, Effect.CHANGED),
    "transition, none": Case({"transition": {**BIRD_IN, "num_steps": 0}}, Effect.CHANGED),
    "denoising_step_list": Case({"denoising_step_list": [300]}, Effect.AFRESH),
    "denoising_step_list, unmanaged": Case(
        {"denoising_step_list": [300]}, Effect.CHANGED, {"manage_cache": False}
    ),
    "noise_scale": Case({"noise_scale": 0.2}, Effect.CHANGED, {**CAMERA, "noise_controller": False}),
    "noise_scale, controlled": Case({"noise_scale": 0.0}, Effect.CHANGED, CAMERA),
    "noise_scale, text": Case({"noise_scale": 0.2}, Effect.NONE),
    "noise_controller": Case({"noise_controller": False}, Effect.CHANGED, CAMERA),
    "noise_controller, text": Case({"noise_controller": False}, Effect.NONE),
    "manage_cache": Case({"manage_cache": False}, Effect.NONE),
    "reset_cache": Case({"reset_cache": True}, Effect.AFRESH),
    "reset_cache, false": Case({"reset_cache": False}, Effect.NONE),
    "kv_cache_attention_bias": Case({"kv_cache_attention_bias": 1.0}, Effect.CHANGED),
    "base_seed": Case({"base_seed": 8}, Effect.NONE),
    "base_seed, with a reset": Case({"base_seed": 8, "reset_cache": True}, Effect.AFRESH),
    "base_seed, its other name": Case({"seed": 8, "reset_cache": True}, Effect.AFRESH),
    "lora_scales": Case({"lora_scales": [SCALE]}, Effect.NONE, remark="is not loaded"),
    "images": Case({"images": [IMAGE]}, Effect.NONE),
    "vace_ref_images": Case({"vace_ref_images": [IMAGE]}, Effect.NONE, remark=NO_VACE),
    "first_frame_image": Case({"first_frame_image": IMAGE}, Effect.NONE, remark=NO_VACE),
    "last_frame_image": Case({"last_frame_image": IMAGE}, Effect.NONE, remark=NO_VACE),
    "vace_context_scale": Case({"vace_context_scale": 5}, Effect.NONE, remark="outside 0 to 2"),
    "vace_enabled": Case({"vace_enabled": True}, Effect.NONE, remark=NO_VACE),
    "vace_use_input_video": Case({"vace_use_input_video": False}, Effect.NONE, CAMERA),
    "vace_preprocessor": Case({"vace_preprocessor": "gray"}, Effect.NONE, CAMERA, remark=NO_VACE),
}
# No chunk is made; only in an offer; around the stream.
ELSEWHERE = {"paused", "pipeline_ids", "recording", *WISHES, *TIMING, *COMMANDS}


@pytest.fixture(scope="module")
def store(all_engines: Path) -> EngineStore:
    return EngineStore(all_engines / "engines")


@pytest.fixture(scope="module")
def engine_set(store: EngineStore) -> EngineSet:
    return next(s for s in map(read_engine_set, store.sets.iterdir()) if s.pipeline == SPEC.id)


@pytest.fixture(scope="module")
def pipeline(store: EngineStore, engine_set: EngineSet) -> ModelPipeline:
    """In this process."""
    model = open_model(store.sets / engine_set.name, SPEC, InProcess(store.models))
    return ModelPipeline(SPEC, model, SPEC.base_seed)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(store: EngineStore, engine_set: EngineSet) -> AsyncIterator[ModelClient]:
    """The pipeline on a Triton server."""
    async with running_triton() as triton, ModelClient(triton, SPEC.id) as client:
        await client.load(load_plan(store, engine_set).as_parameters())
        yield client
        await client.unload()


@dataclass(frozen=True)
class Made:
    """A chunk from Triton, from this process, and from this process as if the message had not been sent."""

    served: Images
    local: Images
    unchanged: Images


class Viewer:
    """One stream in both places."""

    def __init__(self, client: ModelClient, pipeline: ModelPipeline, number: int, assets: Path) -> None:
        self.client, self.number = client, number
        self.state = ParameterState.open(ParameterContext(SPEC, {"loras": None}, assets), {})
        self.local = pipeline.open_stream()
        self.parameters: Mapping[str, Any] = {}  # of the last chunk
        self.told: list[str] = []  # about the last message
        self._pictures = np.random.default_rng(number)
        self.video = self.next_pictures()

    async def next(self, message: Mapping[str, Any]) -> tuple[Images, Images]:
        """Send a message and make a chunk, on the server and here."""
        self.told = [problem["msg"] for problem in self.state.merge(message)]
        if not self.parameters:
            await self.client.start(self.number)
        self.parameters = self.state.take_chunk().parameters
        self.video = self.next_pictures()
        video = self.input_of(self.state.input_mode)
        responses = await self.client.generate(self.number, video, **self.parameters)
        self.state.chunk_succeeded(responses[-1].meta)
        served = np.concatenate([response.frames for response in responses if response.frames.size])
        return served, made_by(self.local, self.parameters, video)

    async def change(self, message: Mapping[str, Any]) -> Made:
        """As `next`, in the middle of a stream, and compare."""
        twin, parameters = self.twin(), {**self.parameters, "init_cache": False}
        served, local = await self.next(message)
        unchanged = made_by(twin, parameters, self.input_of(parameters["input_mode"]))
        return Made(served, local, unchanged)

    def next_pictures(self) -> Images:
        return self._pictures.integers(0, 255, (12, *SIZE, 3), np.uint8)

    def input_of(self, mode: str) -> Images | None:
        return self.video if mode == VIDEO else None

    def twin(self) -> Stream:
        """The stream as it is now, to go on without us."""
        stream = copy.copy(self.local)
        assert isinstance(stream, ModelStream)
        stream.session = copy.deepcopy(stream.session)
        return stream

    def first_chunk(self, pipeline: ModelPipeline) -> Images:
        """What a new stream makes of this chunk's parameters and input."""
        return made_by(pipeline.open_stream(), self.parameters, self.input_of(self.state.input_mode))


def made_by(stream: Stream, parameters: Mapping[str, Any], video: Images | None) -> Images:
    groups = stream.next_chunk(parameters, video, lambda: False)
    return np.concatenate([images for images, _ in groups if images.size])


def alike(one: Images, other: Images) -> bool:
    return one.shape == other.shape and np.abs(one.astype(int) - other.astype(int)).max() <= ONE_LEVEL


@pytest.mark.parametrize("name", CASES)
async def test_a_change_does_what_it_says_at_the_next_chunk(
    name: str, client: ModelClient, pipeline: ModelPipeline, tmp_path: Path
) -> None:
    case = CASES[name]
    Image.new("RGB", (1, 1)).save(tmp_path / IMAGE)
    viewer = Viewer(client, pipeline, 100 + list(CASES).index(name), tmp_path)
    for message in ({"prompts": "a boat", "denoising_step_list": [800], **case.before}, {}):
        await viewer.next(message)

    made = await viewer.change(case.message)

    assert made.served.std() > 5
    assert alike(made.served, made.local)
    assert alike(made.served, made.unchanged) == (case.effect is Effect.NONE)
    afresh = viewer.first_chunk(pipeline)
    assert alike(made.served, afresh) == (case.effect is Effect.AFRESH)
    assert case.remark in " ".join(viewer.told)
    assert len(viewer.told) == bool(case.remark)


async def test_a_transition_arrives_and_its_target_stays(
    client: ModelClient, pipeline: ModelPipeline, tmp_path: Path
) -> None:
    viewer = Viewer(client, pipeline, 1, tmp_path)
    await viewer.next({"prompts": "a boat", "denoising_step_list": [800]})

    chunks = [await viewer.next({"transition": {**BIRD_IN, "num_steps": 3}})]
    still_running = viewer.state.effective["transition"] is not None
    chunks += [await viewer.next({}) for _ in range(3)]

    assert all(alike(served, local) for served, local in chunks)
    assert still_running
    assert viewer.state.effective["transition"] is None
    assert [prompt["text"] for prompt in viewer.state.effective["prompts"]] == ["a bird"]


async def test_no_parameter_is_left_out() -> None:
    assert {name.split(",")[0].split(" ")[0] for name in CASES} | ELSEWHERE == set(FIELDS)
