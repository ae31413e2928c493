"""What TensorRT is told to build from an exported engine (serving.md 10): data, no TensorRT needed.

Precision is decided by the graph: networks are strongly typed, so no precision flag is ever given.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from streaming.manifest import ONNX_FILE, PLAN_FILE, EngineManifest, TensorInfo

Shape = tuple[int, ...]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShapeRange(_Record):
    """Shapes of one input that a profile covers."""

    min: Shape
    opt: Shape
    max: Shape


class BuildPlan(_Record):
    """Everything about one build. Paths are those of the engine's directory.

    flags                    of the network and the builder; TensorRT 11 is always STRONGLY_TYPED
    profiles                 of the inputs that have dynamic axes
    estimated_plan_bytes     about the weights
    estimated_memory_bytes   of the host while building: graph, weights and plan
    """

    engine: str
    onnx: str
    plan: str
    flags: tuple[str, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...]
    builder_optimization_level: int
    workspace_bytes: int
    timing_cache: str
    estimated_plan_bytes: int
    estimated_memory_bytes: int


def build_plan(
    directory: Path,
    manifest: EngineManifest,
    timing_cache: Path,
    *,
    level: int = 3,
    workspace_bytes: int = 8 << 30,
    refittable: bool = False,
) -> BuildPlan:
    """How the engine in `directory` is built.

    level        builder optimisation level, 0 to 5
    refittable   weights may be changed in the plan later, for adapters; Triton itself never does
    """
    profiles = tuple(
        {
            tensor.name: ShapeRange(
                min=_shape(tensor, {name: axis.min for name, axis in profile.items()}),
                opt=_shape(tensor, {name: axis.opt for name, axis in profile.items()}),
                max=_shape(tensor, {name: axis.max for name, axis in profile.items()}),
            )
            for tensor in manifest.inputs
            if any(isinstance(axis, str) for axis in tensor.shape)
        }
        for profile in manifest.profiles
    )
    return BuildPlan(
        engine=manifest.name,
        onnx=str(directory / ONNX_FILE),
        plan=str(directory / PLAN_FILE),
        flags=("STRONGLY_TYPED", *(("REFIT",) if refittable else ())),
        profiles=profiles,
        builder_optimization_level=level,
        workspace_bytes=workspace_bytes,
        timing_cache=str(timing_cache),
        estimated_plan_bytes=manifest.bytes,
        estimated_memory_bytes=3 * manifest.bytes,
    )


def trtexec_command(plan: BuildPlan) -> list[str]:
    """The equal command line of NVIDIA's `trtexec`; several profiles follow each other."""
    command = [
        "trtexec",
        f"--onnx={plan.onnx}",
        f"--saveEngine={plan.plan}",
        "--stronglyTyped",
        f"--builderOptimizationLevel={plan.builder_optimization_level}",
        f"--memPoolSize=workspace:{plan.workspace_bytes >> 20}M",
        f"--timingCacheFile={plan.timing_cache}",
    ]
    if "REFIT" in plan.flags:
        command.append("--refit")
    for index, profile in enumerate(plan.profiles):
        if len(plan.profiles) > 1:
            command.append(f"--profile={index}")
        for end in ("min", "opt", "max"):
            shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(r, end)))}" for name, r in profile.items())
            command.append(f"--{end}Shapes={shapes}")
    return command


def _shape(tensor: TensorInfo, sizes: Mapping[str, int]) -> Shape:
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape)
