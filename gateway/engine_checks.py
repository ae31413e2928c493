"""Whether engines can run where Triton is, before it is asked to load them; and why it did not."""

from collections.abc import Sequence
from pathlib import Path

from streaming.machine import Machine
from streaming.manifest import check_files, check_runs_on_cpu, engine_directory, read_manifest
from streaming.plans import check_plan, serves_plan
from streaming.records import EngineError


def check_engines(models: Path, names: Sequence[str], engine_set: str, *, on_cpu: bool) -> None:
    """Raises EngineError unless these engines of a set are undamaged and have a backend.

    models   their Triton models
    on_cpu   Triton is the embedded one
    """
    for name in names:
        directory = engine_directory(models, name)
        manifest = read_manifest(directory)
        check_files(directory, manifest, hashes=False)
        if not serves_plan(directory):
            check_runs_on_cpu(manifest)
            continue
        if on_cpu:
            raise EngineError(
                f"Engine set '{engine_set}' is served by TensorRT, which the embedded Triton does not have. "
                f"Run: wanstream-build {engine_set} --serve-with onnxruntime, or name a Triton with a GPU: "
                "--triton-url."
            )
        check_plan(directory, manifest, Machine())  # Triton may run on another machine than this one


def why_refused(models: Path, name: str) -> str:
    """A sentence about the plan of an engine that Triton did not load; empty for ONNX Runtime."""
    directory = engine_directory(models, name)
    build = read_manifest(directory).tensorrt
    if build is None or not serves_plan(directory):
        return ""
    return (
        f" Its plan was built for {build.gpu} with TensorRT {build.version}; if Triton has another GPU or "
        f"release, run there: wanstream-build {build.engine_set}."
    )
