"""What the gateway needs from the serving side, whoever provides it.

`TritonServing` (`gateway/triton/serving.py`) is the real one. The interface exists so that the gateway's own
behaviour (states, errors, limits) can be tested with a serving side that is slow or fails on demand.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gateway.serving.room import Room
from streaming.engines.load_plan import Backend, BackendChoice
from streaming.engines.ort import Provider
from streaming.errors import WanstreamError
from streaming.specs import PipelineSpec
from streaming.triton.protocol import Meta

Images = npt.NDArray[np.uint8]
StageCallback = Callable[[str], None]


class ServingError(WanstreamError):
    """The serving side refused or failed; the text is for the user."""


class ServingLost(ServingError):
    """The serving side died (server or model process); the pipeline has to be loaded again."""


class ChunkFailed(ServingError):
    """One chunk failed; the session's state is what it was after the last good chunk.

    fatal: another try cannot succeed (out of memory), the stream must end.
    """

    def __init__(self, text: str, *, fatal: bool = False) -> None:
        super().__init__(text)
        self.fatal = fatal


def fp8_remedy(pipeline: str) -> str:
    """A sentence without its full stop: how the engines of a quantised pipeline are made."""
    return (
        f"Make them: wanstream-export {pipeline} --precision fp8, then wanstream-build; docs/engines.md says "
        "what both need"
    )


@dataclass(frozen=True, slots=True)
class Combination:
    """Load parameters that go together, because there are engines for them. Sizes in pixels.

    vace: with the VACE branch, if a load wants it
    """

    height: int
    width: int
    vae_type: str
    quantization: str | None
    vace: bool = True

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a pipeline can be loaded here, and if not, what to do about it."""

    available: bool
    reason: str | None = None
    supported_resolutions: list[tuple[int, int]] | None = None  # (height, width); None: any
    vae_types: tuple[str, ...] = ("wan",)  # autoencoders whose engines exist
    needs_models: bool = True  # whether the checkpoints are needed; not once engines are exported
    loras: bool = True  # whether LoRA files can be loaded, for pipelines that support them
    runtime_loras: bool = True  # and so that their scales can be changed while streaming
    quantizations: tuple[str, ...] = ("fp8_e4m3fn",)  # for which engines exist
    combinations: tuple[Combination, ...] | None = None  # which of these go together; None: all do
    vace: bool = True  # whether the VACE branch exists, for pipelines that support it
    vace_default: bool = True  # and a load has it that says nothing; else its engines may yet have to be made
    max_sessions: int | None = None  # what this machine can serve at once; None: nothing is known
    note: str = ""  # a line for users about the weights
    examples: tuple[str, ...] = ()  # prompts that the weights understand


def offers_vace(spec: PipelineSpec, availability: Availability) -> bool:
    """Whether a load of `spec` may have the VACE branch, as clients are told."""
    return spec.supports_vace and availability.vace and (spec.names_vace or availability.vace_default)


@dataclass(frozen=True, slots=True)
class ServedEngine:
    """An engine, and where it runs.

    backend         in the pipeline's own process, or as a model of the same Triton server
    runtime         what runs it: ONNX Runtime its graph, TensorRT its plan, or PyTorch its module
    provider        of ONNX Runtime: cpu, cuda, or rtx, which is TensorRT for RTX; null: another runtime
    device          cpu, or cuda:0, or cuda:0,1 when it is there on each of these
    """

    name: str
    backend: Backend
    runtime: Literal["onnxruntime", "tensorrt", "pytorch"]
    device: str
    weights_bytes: int
    provider: Provider | None = None


@dataclass(frozen=True, slots=True)
class ServedMemory:
    """Memory that was computed before the load, in bytes.

    kind            memory, or GPU memory
    total_bytes     with one stream; each further one takes `session_bytes`
    parts           by purpose, with one stream
    """

    kind: str
    total_bytes: int
    session_bytes: int
    parts: dict[str, int]


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """How the engines of a loaded pipeline are served, for people.

    engine_set      its name; null: a checkpoint runs without engines
    make_room       engines that leave the memory while the text encoder is in it
    sessions        how many streams may run at once; null: nobody can tell
    checkpoint      name of the transformer's file; null: engines run
    precision       of the transformer
    reason          why this backend runs it
    """

    engine_set: str | None
    engines: list[ServedEngine]
    make_room: list[str]
    sessions: int | None
    memory: ServedMemory
    checkpoint: str | None = None
    precision: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a chunk of video, or all of it.

    frames: uint8 [T, H, W, 3] RGB, T >= 0.
    """

    frames: Images
    meta: Meta = field(default_factory=Meta)


class ServingSession(Protocol):
    """One stream on the loaded pipeline, whose state is kept until `close`. Chunks must not overlap."""

    def generate(self, parameters: Mapping[str, Any], video: Images | None) -> AsyncGenerator[Chunk, None]:
        """Make one chunk.

        parameters: all that is in force, and the one-shot values of this chunk; images as uint8 [H, W, 3]
        RGB. video: uint8 [T, H, W, 3] RGB input pictures, or None.

        A chunk that was given up has one part, which says `given_up`; the stream is what it was before.
        Closing the iterator early is for those who call `close` next. Raises ChunkFailed (the session goes
        on) or ServingLost.
        """

    async def preprocess(self, name: str, video: Images) -> Images:
        """What VACE is to be shown in place of the input pictures, uint8 [T, H, W, 3] RGB as these.

        name: of a preprocessor that is a network. As `generate`, not while a chunk is made, and raises the
        same.
        """

    def give_up(self) -> None:
        """Newer parameters wait: end the chunk in the making, unless its first pictures are on their way."""

    async def close(self) -> None:
        """End the chunk in the making and free the session's state.

        Idempotent, never raises, takes seconds at most.
        """


class Serving(Protocol):
    """A serving side with at most one loaded pipeline."""

    @property
    def url(self) -> str:
        """Where it is, for people."""

    async def start(self, on_lost: Callable[[str], None]) -> None:
        """Begin to connect (and to launch, when embedded) in the background; returns at once.

        on_lost(text): called on the event loop whenever a loaded pipeline died under its users.
        """

    @property
    def problem(self) -> str | None:
        """Why the serving side cannot be used, as long as it is known; for people."""

    async def is_ready(self) -> bool:
        """Whether the serving side answers now; quick, never raises."""

    async def verify(self) -> None:
        """Look whether what is loaded is still there; if not, `on_lost` has been called. Never raises."""

    def availability(self, spec: PipelineSpec, backend: BackendChoice = "auto") -> Availability:
        """Whether `spec` can be loaded here; cheap, no I/O over the network.

        backend: what a load asks for
        """

    @property
    def on_gpu(self) -> bool:
        """Whether pipelines compute on a GPU."""

    async def check(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        """Find what `load` would refuse whatever Triton says: engines that are damaged, too little memory.

        Memory is judged as it will be when what is loaded now is gone. Raises ServingError.
        """

    async def room(self, spec: PipelineSpec) -> Room | None:
        """What of its weights would fit here, whether they are here or not; None: it has none.

        Memory is judged as for `check`. Raises ServingError for a damaged config.json.
        """

    async def check_room(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        """Raises ServingError, with what fits instead, unless its weights would, be they here or not."""

    async def prepare(
        self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback
    ) -> None:
        """What of `load` takes long and can be done while something else is loaded and runs.

        on_stage: as of `load`. Raises ServingError; nothing has changed then. May be cancelled.
        """

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        """Load a pipeline and warm it up; nothing else is loaded at that time.

        on_stage: called with a short English text when a new stage begins ("Loading text encoder...").
        Raises ServingError; nothing stays loaded then. May be cancelled, with the same result.
        """

    async def adapt(self, loras: Sequence[Mapping[str, Any]]) -> None:
        """Let what is loaded go on with these LoRA files beside its weights; streams meet them in their next
        chunks.

        loras: entries as load parameter `loras` has them; one that is loaded stays as it is, whatever has
        become of its file. Raises ServingError; those of before stay then.
        """

    async def unload(self) -> None:
        """Unload what is loaded and wait until it is gone. Idempotent."""

    @property
    def load_plan(self) -> ServedPlan | None:
        """How what is loaded is served; None: nothing is loaded, or a pipeline without engines."""

    def open_session(self) -> ServingSession:
        """A new, independent stream on the loaded pipeline."""

    def hurry(self) -> None:
        """The gateway is being stopped: from now on no unload may take long."""

    async def gpu_memory_bytes(self) -> tuple[int, int] | None:
        """(used, total) memory of GPU 0, or None without a GPU or when nobody can tell."""

    async def close(self) -> None:
        """Unload, disconnect, stop an embedded server. Idempotent."""
