"""Graphs in ONNX Runtime, on the CPU. Torch-free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streaming.errors import WanstreamError


def open_graph(path: Path, threads: int, weights: Mapping[str, Any] | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of the file.

    threads: within one operator; 0: one per core
    weights: values for the session in place of those in the file, by their names in the graph, see
        `ort_values`; they must live as long as the session
    Raises WanstreamError when the file is absent or no graph.
    """
    try:
        import onnxruntime  # an extra: the gateway's installation has none
    except ImportError as error:
        raise WanstreamError(
            f"ONNX Runtime is not installed where Triton's models run ({error}). Run there: pip install "
            "'wanstream[pipelines]', or build plans for a GPU: wanstream-build."
        ) from error
    if not path.is_file():
        raise WanstreamError(f"Engine '{path}' does not exist. Export it: wanstream-export.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Engines run one at a time, so what is between one's layers is free for the next: an arena for each would
    # keep it. Memory patterns are cheap with an arena only: without one they cost time.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    # Threads that spin while they wait take the cores from whatever else the stream needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Trained networks meet numbers near zero that the CPU computes with many times slower: 10 % of a call.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise WanstreamError(
            f"Engine '{path}' cannot be loaded ({error}). Export it again: wanstream-export."
        ) from error


def ort_values(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays for `open_graph`; a value shares the memory of its array, and a session that of its values."""
    if not arrays:
        return {}
    import onnxruntime

    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
