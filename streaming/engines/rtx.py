"""TensorRT for RTX: sizes that it compiles an engine for, and whether what it compiled runs here. Torch-free.

It is a plug-in of ONNX Runtime in a package of its own, for GeForce and workstation cards, and it needs no
container. A graph is compiled ahead, for one compute capability; the first load ends the work on the card.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from streaming.engines.manifest import AxisRange, EngineManifest, RtxBuild, TensorInfo, sha256
from streaming.engines.records import EngineError, Record

PROVIDER: Final = "NvTensorRTRTXExecutionProvider"
PACKAGE: Final = "onnxruntime_ep_nv_tensorrt_rtx"
COMPILED_FILE: Final = "model_ctx.onnx"
_DISTRIBUTIONS: Final = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12")
_CAPABILITIES: Final = ("8.6", "8.9")  # and all from the next one on
_BLACKWELL: Final = (12, 0)
End = Literal["min", "opt", "max"]
_ENDS: Final[tuple[End, ...]] = ("min", "opt", "max")


class RtxVersions(Record):
    """What compiles and runs. A compiled file is for these versions."""

    plugin: str
    tensorrt_rtx: str


def installed_versions() -> RtxVersions | None:
    """Of this Python environment; None: the plug-in is not installed. Loads nothing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return versions_of(Path(spec.origin).parent)


def versions_of(package: Path) -> RtxVersions | None:
    """Of the plug-in in a directory of packages; None: it is not whole."""
    libraries = sorted(package.glob("libtensorrt_rtx.so.*.*.*"))
    metadata = importlib.metadata.distributions(path=[str(package.parent)])
    plugins = [found.version for found in metadata if found.metadata["Name"] in _DISTRIBUTIONS]
    if not libraries or not plugins:
        return None
    return RtxVersions(plugin=plugins[0], tensorrt_rtx=libraries[-1].name.partition(".so.")[2])


def target_of(capability: str) -> str | None:
    """What compute capability 8.9 is called in a build, "sm89"; None: TensorRT for RTX has no such GPUs."""
    numbers = tuple(map(int, re.findall(r"\d+", capability)))
    if capability not in _CAPABILITIES and numbers < _BLACKWELL:
        return None
    return "sm" + "".join(map(str, numbers))


def compiled_directory(directory: Path, target: str) -> Path:
    """Where an engine compiled for `target` is. directory: of the engine's files."""
    return directory / "rtx" / target


def compiled_for(manifest: EngineManifest, target: str) -> RtxBuild | None:
    """What was compiled for `target`, by any version."""
    return next((build for build in manifest.rtx if build.target == target), None)


def check_compiled(
    directory: Path,
    manifest: EngineManifest,
    target: str,
    versions: RtxVersions | None,
    *,
    hashes: bool = False,
) -> Path:
    """The compiled graph of the engine. Raises EngineError unless it is there, whole and for these versions.

    directory: of the engine's files. hashes: read all of it; otherwise sizes are compared
    """
    build = compiled_for(manifest, target)
    if build is None:
        raise _unusable(manifest, f"it was never compiled for {target}")
    if versions is not None and build.versions != (versions.plugin, versions.tensorrt_rtx):
        raise _unusable(
            manifest,
            f"version {build.plugin} of the plug-in compiled it, with TensorRT for RTX {build.tensorrt_rtx}, "
            f"and here are {versions.plugin} and {versions.tensorrt_rtx}",
        )
    place = compiled_directory(directory, target)
    for info in build.files:
        path = place / info.file
        if not path.is_file() or path.stat().st_size != info.bytes:
            raise _unusable(manifest, f"'{path}' is missing or incomplete")
        if hashes and sha256(path) != info.sha256:
            raise _unusable(manifest, f"the content of '{path}' has changed since it was compiled")
    return place / build.files[0].file


def _unusable(manifest: EngineManifest, problem: str) -> EngineError:
    return EngineError(
        f"Engine '{manifest.name}' cannot run in TensorRT for RTX: {problem}. Run on the machine that "
        "serves: wanstream-build ENGINE_SET --with rtx."
    )


def profile_options(manifest: EngineManifest) -> dict[str, str]:
    """The plug-in's options, `nv_profile_*_shapes`; none for a graph whose sizes are all fixed.

    Without them it takes 0 to 32767 for every axis, which no larger graph of ours compiles with.
    """
    dynamic = [tensor for tensor in manifest.inputs if any(isinstance(axis, str) for axis in tensor.shape)]
    if not dynamic or not manifest.profiles:
        return {}
    return {
        f"nv_profile_{end}_shapes": ",".join(
            f"{tensor.name}:{_shape(tensor, profile, end)}"
            for profile in manifest.profiles
            for tensor in dynamic
        )
        for end in _ENDS
    }


def _shape(tensor: TensorInfo, profile: Mapping[str, AxisRange], end: End) -> str:
    axes = (axis if isinstance(axis, int) else getattr(profile[axis], end) for axis in tensor.shape)
    return "x".join(map(str, axes))
