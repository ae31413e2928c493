"""ONNX to TensorRT plans, through polygraphy (serving.md 10).

Everything here is lazy: the chain of loaders is made without TensorRT, and TensorRT is asked for when it is
called. The builder exists where NVIDIA ships it, which is its TensorRT container.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, Final

import onnxruntime
import torch
from torch import Tensor
from tqdm import tqdm

from export.fp8.float32_reference import write_float32_reference
from export.tensorrt.engine_build import BuildPlan
from streaming.engines.manifest import CPU_PRECISIONS
from streaming.errors import WanstreamError

_OLDEST: Final = (10, 0)
_WHERE: Final = (
    "TensorRT's builder is in NVIDIA's container nvcr.io/nvidia/tensorrt:<yy.mm>-py3; take the release of "
    "the Triton container that serves, mount the engines, and run the same command there"
)
_HARDWARE: Final = {"ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}
# Largest difference to ONNX Runtime, relative to the largest element of an output. That of bf16 and fp8 is to
# the float32 reference of the graph: all operations between have 8 bits; float8 may round either way.
TOLERANCES: Final = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2, "fp8": 1e-1}
Feeds = Sequence[Mapping[str, Tensor]]  # inputs by name, in their own types, for each call


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


def tensorrt_runner(content: bytes) -> Any:
    """Polygraphy's runner of a plan. Raises BuildError without polygraphy."""
    trt = _polygraphy("polygraphy.backend.trt")
    return trt.TrtRunner(trt.EngineFromBytes(content), name="TensorRT")


def compare_with_onnx_runtime(
    runner: Any, plan: BuildPlan, precision: str, feeds: Feeds, work: Path
) -> float:
    """Largest difference between a plan and its graph in ONNX Runtime on the CPU, see `largest_difference`.

    A precision that ONNX Runtime does not have there runs as its float32 reference.

    runner   polygraphy's, of the plan
    work     an empty directory, for the reference

    Raises BuildError.
    """
    source = Path(plan.onnx)
    graph = source if precision in CPU_PRECISIONS else write_float32_reference(source, work)
    return largest_difference(runner, onnx_runner(str(graph), optimised=precision != "fp8"), feeds)


def context_bytes(content: bytes) -> int | None:
    """Device memory that one execution context of a plan takes beside weights and bindings."""
    engine = _polygraphy("polygraphy.backend.trt").EngineFromBytes(content)()
    size = getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", None)
    return None if size is None else int(size)


def onnx_runner(path: str, *, optimised: bool = True) -> Any:
    """Polygraphy's runner of a graph in ONNX Runtime, on the CPU.

    optimised: False for Q/DQ pairs in float8, which become operators that the CPU does not have
    """
    onnxrt = _polygraphy("polygraphy.backend.onnxrt")
    levels = onnxruntime.GraphOptimizationLevel
    level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = onnxrt.SessionFromOnnx(path, providers=["CPUExecutionProvider"], graph_optimization_level=level)
    return onnxrt.OnnxrtRunner(session, name="ONNX Runtime")


def largest_difference(one: Any, other: Any, feeds: Feeds) -> float:
    """Largest difference of two of polygraphy's runners over all outputs and calls.

    Relative to the largest element of the second one's output, but at least to 1; infinite if a result is no
    number. The second one gets bfloat16 inputs as float32. Raises BuildError when an output is missing.
    """
    comparator = _polygraphy("polygraphy.comparator").Comparator
    wide = [{name: _float32(tensor) for name, tensor in feed.items()} for feed in feeds]
    worst = 0.0
    with _quiet():
        ((_, ours),) = comparator.run([one], data_loader=feeds)
        ((_, theirs),) = comparator.run([other], data_loader=wide)
    for mine, wanted in zip(ours, theirs, strict=True):
        for name, expected in wanted.items():
            if name not in mine:
                raise BuildError(f"The plan has no output '{name}'. Build it again.")
            worst = max(worst, _difference(torch.as_tensor(mine[name]), torch.as_tensor(expected)))
    return worst


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    actual, expected = actual.double(), expected.double()
    difference = float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    return difference if isfinite(difference) else float("inf")


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
