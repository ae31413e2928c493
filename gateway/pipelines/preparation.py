"""From nothing to the fastest backend that this machine has for a pipeline: download, export, build.

A preparation runs in the background while the server serves. Whatever of it is complete is kept: one that was
cancelled, or failed, goes on where it stopped when it is begun again.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

from gateway.errors import ApiError
from gateway.files.models.models import DownloadError, Models, Progress
from gateway.serving.commands import BUILD, EXPORT, run_command
from gateway.waiting import end
from streaming.checkpoints.files import DOWNLOADED_VAE, VAE_FILES
from streaming.errors import WanstreamError
from streaming.specs import PipelineSpec, VaeType

logger = logging.getLogger(__name__)

Prepared = Literal["pytorch", "onnxruntime", "triton"]
PreparedChoice = Literal["auto", "pytorch", "onnxruntime", "triton"]
CHOICES: Final[tuple[PreparedChoice, ...]] = get_args(PreparedChoice)
_COUNTED: Final = re.compile(r"\[(\d+)/(\d+)\]")
_SET: Final = re.compile(r"Engine set '([^']+)' is complete")
_LAST_LINES: Final = 5


class PreparationError(WanstreamError):
    """A preparation that failed, and why."""


class State(str, Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be prepared. Sizes in pixels."""

    spec: PipelineSpec
    backend: Prepared
    height: int
    width: int
    vae_type: VaeType
    reason: str = ""  # why this backend

    def load_params(self) -> dict[str, Any]:
        """Of the load that it is for."""
        return {"height": self.height, "width": self.width, "vae_type": self.vae_type, "base_seed": 0}

    @property
    def steps(self) -> tuple[str, ...]:
        return ("download", "export", "build")[: get_args(Prepared).index(self.backend) + 1]


@dataclass(slots=True)
class Preparation:
    """How far one is. step: the current one, or the last.

    share      of the current step, 0 to 1; a download tells its own
    detail     what is done in it now, for people
    download   how far that is
    """

    wish: Wish
    state: State = State.RUNNING
    step: str = "download"
    share: float = 0.0
    detail: str = ""
    error: str | None = None
    download: Callable[[], Progress | None] = lambda: None

    def describe(self) -> dict[str, Any]:
        """For clients."""
        steps = self.wish.steps
        share, detail = self.share, self.detail
        progress = self.download() if self.step == "download" else None
        if progress is not None and progress.total_bytes:
            now = progress.describe()
            share = now["total_percentage"] / 100
            detail = f"{now['downloaded_mb']:.0f} of {now['total_mb']:.0f} MB"
        number = steps.index(self.step)
        return {
            "state": self.state.value,
            "backend": self.wish.backend,
            "reason": self.wish.reason,
            "load_params": {name: v for name, v in self.wish.load_params().items() if name != "base_seed"},
            "step": self.step,
            "step_number": number + 1,
            "steps": len(steps),
            "percentage": round(100 * (number + share) / len(steps), 1),
            "detail": detail,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Tools:
    """What exports and builds, and where.

    export, build   commands, without their arguments
    models, engines   directories
    on_gpu          the machine's own GPU computes
    embedded        Triton is one of our own, which has no TensorRT
    has_tensorrt    its builder is in this Python environment
    """

    models: Path
    engines: Path
    on_gpu: bool
    embedded: bool
    has_tensorrt: bool
    export: Sequence[str] = EXPORT
    build: Sequence[str] = BUILD

    def best(self) -> tuple[Prepared, str]:
        """The fastest backend that can be prepared on this machine, and why it is that one."""
        if self.embedded and not self.on_gpu:
            return "onnxruntime", "without a GPU, engines in ONNX Runtime"
        if self.embedded:
            return "pytorch", "an embedded Triton has no TensorRT: on its GPU the weights run in PyTorch"
        if self.has_tensorrt:
            return "triton", "TensorRT is here to build plans for Triton"
        return "pytorch", (
            "TensorRT's builder is not in this Python environment; wanstream-build in NVIDIA's container "
            "makes plans (docs/engines.md)"
        )

    def chosen(self, asked: PreparedChoice) -> tuple[Prepared, str]:
        """Raises PreparationError for a backend that this machine cannot prepare."""
        if asked == "auto":
            return self.best()
        if asked == "triton" and not self.has_tensorrt:
            raise PreparationError(
                "Plans need TensorRT's builder, which is not in this Python environment. Run wanstream "
                "prepare in NVIDIA's TensorRT container (docs/engines.md), or choose another backend."
            )
        return asked, "it was asked for"


async def prepare(preparation: Preparation, models: Models, tools: Tools) -> None:
    """All steps, one after the other; may be cancelled. Raises PreparationError and DownloadError."""
    wish = preparation.wish
    preparation.download = partial(models.progress_of, wish.spec.id)
    await models.fetch(wish.spec.id)
    preparation.share = 1.0
    if "export" not in wish.steps:
        return
    on_cpu = wish.backend == "onnxruntime"
    form = ["--precision", "fp32", "--form", "cpu"] if on_cpu else ["--precision", "bf16"]
    size, vae = ["--size", f"{wish.height}x{wish.width}"], ["--vae-type", wish.vae_type]
    places = ["--models", str(tools.models), "--out", str(tools.engines)]
    said = await _run(
        preparation, "export", [*tools.export, wish.spec.id, *size, *vae, *form, "--wait", *places], tools
    )
    if "build" not in wish.steps:
        return
    found = [name[1] for line in said if (name := _SET.search(line))]
    if not found:
        raise PreparationError("The export has not said which engine set it made.")
    await _run(preparation, "build", [*tools.build, found[-1], "--out", str(tools.engines)], tools)


async def _run(preparation: Preparation, step: str, command: Sequence[str], tools: Tools) -> list[str]:
    """A step that is a process; returns what it said. Raises PreparationError with its last words."""
    preparation.step, preparation.share, preparation.detail = step, 0.0, ""
    said: list[str] = []

    def follow(line: str) -> None:
        logger.info("%s of %s: %s", step, preparation.wish.spec.id, line)
        said.append(line)
        if counted := _COUNTED.match(line):
            preparation.share = min(1.0, int(counted[1]) / max(1, int(counted[2])))
            preparation.detail = f"engine {counted[1]} of {counted[2]}"

    code = await run_command(command, tools.engines, follow)
    if code != 0:
        last = " ".join(said[-_LAST_LINES:]).removeprefix("Error: ")
        raise PreparationError(f"The {step} has failed: {last or f'exit code {code}'}")
    preparation.share = 1.0
    return said


@dataclass(slots=True)
class Preparations:
    """Of all pipelines of a server; one runs at a time, for each takes the whole machine."""

    models: Models
    tools: Tools
    _newest: dict[str, Preparation] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None

    def find(self, pipeline_id: str) -> Preparation | None:
        """The newest one of a pipeline."""
        return self._newest.get(pipeline_id)

    def start(self, wish: Wish) -> Preparation:
        """Begin in the background. Raises ApiError 409 while another one runs."""
        if self._task is not None and not self._task.done():
            running = next(p for p in self._newest.values() if p.state is State.RUNNING)
            raise ApiError(409, f"{running.wish.spec.id} is being prepared already. Wait, or cancel it.")
        preparation = self._newest[wish.spec.id] = Preparation(wish)
        self._task = asyncio.create_task(self._run(preparation), name=f"prepare-{wish.spec.id}")
        return preparation

    async def cancel(self, pipeline_id: str) -> bool:
        """End one that runs; what is complete of it is kept. False: none ran."""
        found = self.find(pipeline_id)
        if found is None or found.state is not State.RUNNING or self._task is None:
            return False
        await end(self._task)
        return True

    async def close(self) -> None:
        """Cancel what runs. Idempotent."""
        if self._task is not None:
            await end(self._task)

    async def _run(self, preparation: Preparation) -> None:
        name = preparation.wish.spec.id
        logger.info("Preparing %s for backend %s", name, preparation.wish.backend)
        try:
            await prepare(preparation, self.models, self.tools)
        except asyncio.CancelledError:
            preparation.state = State.CANCELLED
            raise
        except (PreparationError, DownloadError) as error:
            preparation.state, preparation.error = State.FAILED, str(error)
            logger.error("Preparing %s failed: %s", name, error)
        except Exception:  # task boundary: clients see that it failed, the trace is in the log
            preparation.state, preparation.error = State.FAILED, "Internal error, see the server's log."
            logger.exception("Preparing %s failed", name)
        else:
            preparation.state, preparation.detail = State.DONE, ""
            logger.info("%s is ready for backend %s", name, preparation.wish.backend)


def wish_of(
    spec: PipelineSpec,
    tools: Tools,
    asked: PreparedChoice,
    size: tuple[int | None, int | None] = (None, None),
    vae_type: str | None = None,
) -> Wish:
    """From what somebody asked for. size: height and width; None: the pipeline's own.

    Raises PreparationError for what the pipeline does not have.
    """
    if spec.loop is None:
        raise PreparationError(f"{spec.id} has no weights: there is nothing to prepare.")
    height, width = size[0] or spec.height, size[1] or spec.width
    for side in (height, width):
        if side % spec.size.step or not spec.size.minimum <= side <= spec.size.maximum:
            raise PreparationError(
                f"{height}x{width} is no size of {spec.id}: height and width are multiples of "
                f"{spec.size.step} from {spec.size.minimum} to {spec.size.maximum}."
            )
    chosen: VaeType | None = next((k for k in spec.loop.vae_types if k == (vae_type or DOWNLOADED_VAE)), None)
    if chosen is None:
        known = ", ".join(spec.loop.vae_types)
        raise PreparationError(f"{spec.id} has no vae_type '{vae_type}'. Choose: {known}.")
    if chosen != DOWNLOADED_VAE and not (tools.models / VAE_FILES[chosen]).is_file():
        raise PreparationError(
            f"{VAE_FILES[chosen]} is not in {tools.models}, and no download brings it. Put it there, or "
            f"choose vae_type {DOWNLOADED_VAE}."
        )
    backend, reason = tools.chosen(asked)
    return Wish(spec, backend, height, width, chosen, reason)


def faster_note(preparation: Preparation, running: str | None) -> str:
    """A sentence when a pipeline streams in another backend than the one that is ready; else nothing."""
    wish = preparation.wish
    if preparation.state is not State.DONE or running in (None, wish.backend) or wish.backend == "pytorch":
        return ""
    return f"{wish.spec.name} streams in {running}; {wish.backend} is ready now. Load it again to use it."
