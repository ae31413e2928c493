"""What TensorRT is told to build from an exported engine (serving.md 10): data, no TensorRT needed.

Precision is decided by the graph: networks are strongly typed, so no precision flag is ever given.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from streaming.engines.manifest import ONNX_FILE, PLAN_FILE, BuildOptions, EngineManifest, TensorInfo
from streaming.engines.records import Record
from streaming.memory.machine import Machine

Shape = tuple[int, ...]
_HARDWARE: Final = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}

_LEAST_CAPABILITY: Final = {"bf16": "8.0", "fp8": "8.9"}


class ShapeRange(Record):
    """Shapes of one input that a profile covers."""

    min: Shape
    opt: Shape
    max: Shape


class BuildPlan(Record):
    """Everything about one build. Paths are those of the engine's directory.

    flags                      of the network and the builder; TensorRT 11 is always STRONGLY_TYPED
    profiles                   of the inputs that have dynamic axes
    timing_cache               measured kernels, one file for each GPU and version of TensorRT
    least_compute_capability   of a GPU that has this precision; None: any does
    estimated_plan_bytes       about the weights
    estimated_memory_bytes     of the host while building: graph, weights and plan
    """

    engine: str
    onnx: str
    plan: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    flags: tuple[str, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...]
    options: BuildOptions
    timing_cache: str
    least_compute_capability: str | None
    estimated_plan_bytes: int
    estimated_memory_bytes: int


def build_plan(
    directory: Path, manifest: EngineManifest, timing_cache: Path, options: BuildOptions | None = None
) -> BuildPlan:
    """How the engine in `directory` is built."""
    options = options or BuildOptions()
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
    flags = {"REFIT": options.refittable, "VERSION_COMPATIBLE": options.version_compatible}
    return BuildPlan(
        engine=manifest.name,
        onnx=str(directory / ONNX_FILE),
        plan=str(directory / PLAN_FILE),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        flags=("STRONGLY_TYPED", *(flag for flag, wanted in flags.items() if wanted)),
        profiles=profiles,
        options=options,
        timing_cache=str(timing_cache),
        least_compute_capability=_LEAST_CAPABILITY.get(manifest.precision),
        estimated_plan_bytes=manifest.bytes,
        estimated_memory_bytes=3 * manifest.bytes,
    )


def server_options(pools: Mapping[int, int], *, version_compatible: bool) -> list[str]:
    """What Triton has to be started with. pools: bytes of inputs and outputs under way, by GPU."""
    return [
        *(f"--cuda-memory-pool-byte-size={gpu}:{size}" for gpu, size in sorted(pools.items())),
        *(("--backend-config=tensorrt,version-compatible=true",) if version_compatible else ()),
    ]


def timing_cache(root: Path, machine: Machine) -> Path:
    """Where the timings of this GPU and TensorRT are kept; another one's would only be ignored."""
    parts = (machine.gpu or "no_gpu", machine.tensorrt or "no_tensorrt")
    return root / "timing" / ("-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts) + ".cache")


def trtexec_command(plan: BuildPlan) -> list[str]:
    """The equal command line of NVIDIA's `trtexec`; several profiles follow each other."""
    options = plan.options
    command = [
        "trtexec",
        f"--onnx={plan.onnx}",
        f"--saveEngine={plan.plan}",
        "--stronglyTyped",
        "--noTF32",
        f"--builderOptimizationLevel={options.level}",
        f"--memPoolSize=workspace:{options.workspace_bytes >> 20}M",
        f"--timingCacheFile={plan.timing_cache}",
        "--skipInference",
    ]
    if options.refittable:
        command.append("--refit")
    if options.version_compatible:
        command.append("--versionCompatible")
    if options.hardware_compatibility != "none":
        command.append(f"--hardwareCompatibilityLevel={_HARDWARE[options.hardware_compatibility]}")
    for index, profile in enumerate(plan.profiles):
        if len(plan.profiles) > 1:
            command.append(f"--profile={index}")
        for end in ("min", "opt", "max"):
            shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(r, end)))}" for name, r in profile.items())
            command.append(f"--{end}Shapes={shapes}")
    return command


def _shape(tensor: TensorInfo, sizes: Mapping[str, int]) -> Shape:
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape)
