"""Whether the plan of an engine is undamaged and was built for this machine. Torch-free.

TensorRT refuses a foreign plan too, but says neither what it was built for nor what to do.
"""

import re
from pathlib import Path

from streaming.engines.manifest import EngineManifest, TensorRTBuild, sha256
from streaming.engines.records import EngineError
from streaming.memory.machine import Machine


def rebuild_command(manifest: EngineManifest) -> str:
    """What to run on the machine that serves."""
    engine_set = "ENGINE_SET" if manifest.tensorrt is None else manifest.tensorrt.engine_set
    return f"wanstream-build {engine_set}"


def check_plan(directory: Path, manifest: EngineManifest, machine: Machine, *, hashes: bool = False) -> None:
    """Raises EngineError unless the plan is there, is the one that was built, and fits the machine.

    directory   of the engine's files
    machine     what of it is None is not compared
    hashes      read the whole plan; otherwise its size is compared
    """
    build = manifest.tensorrt
    if build is None:
        problem: str | None = "it was never built"
    else:
        problem = _damage(directory, build, hashes) or _foreign(build, machine)
    if problem is not None:
        raise EngineError(
            f"The TensorRT plan of engine '{manifest.name}' cannot be used: {problem}. Run where Triton "
            f"runs: {rebuild_command(manifest)}."
        )


def _damage(directory: Path, build: TensorRTBuild, hashes: bool) -> str | None:
    path = directory / build.plan.file
    if not path.is_file():
        return f"'{path}' is missing"
    size = path.stat().st_size
    if size != build.plan.bytes:
        return f"'{path}' has {size} bytes, not {build.plan.bytes}"
    if hashes and sha256(path) != build.plan.sha256:
        return f"the content of '{path}' has changed since it was built"
    return None


def _foreign(build: TensorRTBuild, machine: Machine) -> str | None:
    options = build.options
    digits = 1 if options.version_compatible else 3
    if machine.tensorrt is not None and _cut(build.version, digits) != _cut(machine.tensorrt, digits):
        return f"it was built by TensorRT {build.version}, and here is {machine.tensorrt}"
    fits = {
        "none": build.gpu == machine.gpu,
        "same_compute_capability": build.compute_capability == machine.compute_capability,
        "ampere_plus": _cut(machine.compute_capability or "0", 1) >= (8,),
    }
    if machine.gpu is not None and not fits[options.hardware_compatibility]:
        return f"it was built for {build.gpu}, and here is {machine.gpu}"
    return None


def _cut(version: str, digits: int) -> tuple[int, ...]:
    """The first numbers of a version: those that must agree."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:digits])
