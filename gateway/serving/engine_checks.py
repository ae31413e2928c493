"""Whether engines can run where Triton is, before it is asked to load them; and why it did not."""

from collections.abc import Mapping
from pathlib import Path

from streaming.engines.engine_set import EngineSet, Variant
from streaming.engines.manifest import (
    EngineManifest,
    check_files,
    check_runs_on_cpu,
    engine_directory,
    read_manifest,
)
from streaming.engines.ort import Provider
from streaming.engines.plans import check_plan
from streaming.memory.machine import Machine

_MOVED = "No module named 'streaming."  # an exported model imports ours by name


def checked_manifests(
    engines: EngineSet,
    models: Path,
    size: tuple[int, int],
    variant: Variant,
    *,
    vace: bool = True,
    provider: Provider = "cpu",
) -> Mapping[str, EngineManifest]:
    """Manifests of the engines of one size of picture, by name, in the order of loading.

    Raises EngineError unless they are undamaged and `variant` can run them. models: their Triton models.
    vace: with the branch, if there is one. provider: of ONNX Runtime, when it runs them.
    """
    manifests = {}
    for name in engines.engines(size, vace=vace):
        directory = engine_directory(models, name)
        manifest = manifests[name] = read_manifest(directory)
        check_files(directory, manifest, hashes=False)
        if variant == "tensorrt":
            check_plan(directory, manifest, Machine())  # Triton may run on another machine than this one
        elif provider == "cpu":
            check_runs_on_cpu(manifest)
    return manifests


def why_refused(manifest: EngineManifest, variant: Variant, said: str) -> str:
    """A sentence about an engine that Triton did not load, or nothing. said: by Triton."""
    if _MOVED in said:
        return (
            " Its model.py was written by an earlier version of wanstream: export the pipeline again with "
            "wanstream-export, or load it without the parameter 'backend'."
        )
    build = manifest.tensorrt
    if build is None or variant != "tensorrt":
        return ""
    return (
        f" Its plan was built for {build.gpu} with TensorRT {build.version}; if Triton has another GPU or "
        f"release, run there: wanstream-build {build.engine_set}."
    )
