"""ONNX to TensorRT plans, through polygraphy (serving.md 10).

Everything here is lazy: the chain of loaders is made without TensorRT, and TensorRT is asked for when it is
called. The builder exists where NVIDIA ships it, which is its TensorRT container.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from export.engine_build import BuildPlan
from streaming.errors import WanstreamError

_OLDEST: Final = (10, 0)
_WHERE: Final = (
    "TensorRT's builder is in NVIDIA's container nvcr.io/nvidia/tensorrt:<yy.mm>-py3; take the release of "
    "the Triton container that serves, mount the engines, and run the same command there"
)
_HARDWARE: Final = {"ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}
# Largest difference to ONNX Runtime, relative to the largest element of an output.
TOLERANCES: Final = {"fp32": 1e-3, "fp16": 2e-2}


class BuildError(WanstreamError):
    """A plan cannot be built, or does not compute what its graph does."""


def plan_loader(plan: BuildPlan) -> Callable[[], bytes]:
    """Builds the plan when it is called, and keeps its timings. Raises BuildError without polygraphy.

    Plans are taken as bytes: a deserialised engine beside them would need the memory twice.
    """
    trt = _polygraphy("polygraphy.backend.trt")

    def config(builder: Any, network: Any) -> Any:
        """Names of TensorRT's enumerations exist only where it is installed."""
        tensorrt = check_tensorrt()
        options = plan.options
        level = _HARDWARE.get(options.hardware_compatibility)
        return trt.CreateConfig(
            profiles=[_profile(trt, profile) for profile in plan.profiles] or None,
            load_timing_cache=plan.timing_cache,
            memory_pool_limits={tensorrt.MemoryPoolType.WORKSPACE: options.workspace_bytes},
            builder_optimization_level=options.level,
            refittable=options.refittable,
            version_compatible=options.version_compatible,
            hardware_compatibility_level=level and getattr(tensorrt.HardwareCompatibilityLevel, level),
            progress_monitor=_progress_monitor(tensorrt, plan.engine),
        )(builder, network)

    # TensorRT 11 is always strongly typed and ignores the flag; TensorRT 10 needs it.
    network = trt.NetworkFromOnnxPath(plan.onnx, strongly_typed=True)
    return trt.EngineBytesFromNetwork(network, config, save_timing_cache=plan.timing_cache)  # type: ignore[no-any-return]


def build_with_tensorrt(plan: BuildPlan) -> bytes:
    """The plan. Raises BuildError that says what is missing, or what TensorRT did not like."""
    load = plan_loader(plan)
    check_tensorrt()
    try:
        return bytes(load())
    except Exception as error:  # polygraphy's and TensorRT's exceptions share no base class
        reason = str(error).strip().partition("\n")[0]
        raise BuildError(
            f"TensorRT could not build engine '{plan.engine}' ({reason}). Its own messages are above; "
            "another --level or a larger --workspace may help."
        ) from error


def compare_with_onnx_runtime(plan: BuildPlan, content: bytes, feeds: Sequence[Mapping[str, Any]]) -> float:
    """Largest difference between a plan and its graph in ONNX Runtime on the CPU, see `largest_difference`.

    feeds: inputs by name for each call, numpy. Raises BuildError.
    """
    trt = _polygraphy("polygraphy.backend.trt")
    runner = trt.TrtRunner(trt.EngineFromBytes(content), name="TensorRT")
    return largest_difference(runner, onnx_runner(plan.onnx), feeds)


def context_bytes(content: bytes) -> int | None:
    """Device memory that one execution context of a plan takes beside weights and bindings."""
    engine = _polygraphy("polygraphy.backend.trt").EngineFromBytes(content)()
    size = getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", None)
    return None if size is None else int(size)


def onnx_runner(path: str) -> Any:
    """Polygraphy's runner of a graph in ONNX Runtime, on the CPU."""
    onnxrt = _polygraphy("polygraphy.backend.onnxrt")
    return onnxrt.OnnxrtRunner(
        onnxrt.SessionFromOnnx(path, providers=["CPUExecutionProvider"]), name="ONNX Runtime"
    )


def largest_difference(one: Any, other: Any, feeds: Sequence[Mapping[str, Any]]) -> float:
    """Largest difference of two of polygraphy's runners over all outputs and calls.

    Relative to the largest element of the second one's output, but at least to 1; infinite if a result is no
    number. Raises BuildError when an output is missing.
    """
    comparator = _polygraphy("polygraphy.comparator").Comparator
    worst = 0.0
    with _quiet():
        (_, ours), (_, theirs) = comparator.run([one, other], data_loader=feeds)
    for mine, wanted in zip(ours, theirs, strict=True):
        for name, expected in wanted.items():
            if name not in mine:
                raise BuildError(f"The plan has no output '{name}'. Build it again.")
            worst = max(worst, _difference(np.asarray(mine[name]), np.asarray(expected)))
    return worst


def _difference(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(actual - expected).max(initial=0.0) / max(1.0, np.abs(expected).max(initial=0.0))
    return float(difference) if np.isfinite(difference) else float("inf")


def _profile(trt: Any, shapes: Mapping[str, Any]) -> Any:
    profile = trt.Profile()
    for name, shape in shapes.items():
        profile.add(name, min=shape.min, opt=shape.opt, max=shape.max)
    return profile


def _progress_monitor(tensorrt: Any, engine: str) -> Any:
    """A bar for each phase of the builder; ends the build when it is interrupted."""

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.bars: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None or num_steps > 1:
                label = f"{engine}: {phase_name}"
                self.bars[phase_name] = tqdm(total=num_steps, desc=label, leave=False, disable=None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.bars:
                self.bars[phase_name].update()
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.bars:
                self.bars.pop(phase_name).close()

    return Monitor()


def _polygraphy(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BuildError("polygraphy is not installed. Run: pip install 'wanstream[tensorrt]'.") from error


def check_tensorrt() -> Any:
    """The module. Raises BuildError where TensorRT cannot build."""
    _polygraphy("polygraphy.backend.trt")
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise BuildError(f"TensorRT is not installed here ({error}). {_WHERE}.") from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < _OLDEST:
        raise BuildError(f"TensorRT {tensorrt.__version__} is too old; 10.0 or later is needed. {_WHERE}.")
    return tensorrt


@contextmanager
def _quiet() -> Iterator[None]:
    """Without polygraphy's report of every tensor."""
    logger = _polygraphy("polygraphy.logger").G_LOGGER
    with logger.verbosity(logger.WARNING):
        yield
