"""Sizes that TensorRT for RTX compiles an engine for, in the words of its plug-in. Torch-free."""

from collections.abc import Mapping
from typing import Final, Literal

from streaming.engines.manifest import AxisRange, EngineManifest, TensorInfo

PROVIDER: Final = "NvTensorRTRTXExecutionProvider"
End = Literal["min", "opt", "max"]
_ENDS: Final[tuple[End, ...]] = ("min", "opt", "max")


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
