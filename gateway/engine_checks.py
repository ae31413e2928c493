"""Whether engines can run where Triton is, before it is asked to load them; and why it did not."""

from collections.abc import Mapping
from pathlib import Path

from streaming.engine_set import EngineSet, Variant
from streaming.machine import Machine
from streaming.manifest import (
    EngineManifest,
    check_files,
    check_runs_on_cpu,
    engine_directory,
    read_manifest,
)
from streaming.plans import check_plan


def checked_manifests(
    engines: EngineSet, models: Path, size: tuple[int, int], variant: Variant
) -> Mapping[str, EngineManifest]:
    """Manifests of the engines of one size of picture, by name, in the order of loading.

    Raises EngineError unless they are undamaged and `variant` can run them. models: their Triton models.
    """
    manifests = {}
    for name in engines.engines(size):
        directory = engine_directory(models, name)
        manifest = manifests[name] = read_manifest(directory)
        check_files(directory, manifest, hashes=False)
        if variant == "tensorrt":
            check_plan(directory, manifest, Machine())  # Triton may run on another machine than this one
        else:
            check_runs_on_cpu(manifest)
    return manifests


def why_refused(manifest: EngineManifest, variant: Variant) -> str:
    """A sentence about the plan of an engine that Triton did not load; empty for ONNX Runtime."""
    build = manifest.tensorrt
    if build is None or variant != "tensorrt":
        return ""
    return (
        f" Its plan was built for {build.gpu} with TensorRT {build.version}; if Triton has another GPU or "
        f"release, run there: wanstream-build {build.engine_set}."
    )
