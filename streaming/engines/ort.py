"""Graphs in ONNX Runtime: on the CPU, or on a GPU by CUDA or by TensorRT for RTX. Torch-free."""

import ctypes
import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from streaming.engines.rtx import PACKAGE, PROVIDER, RtxVersions, installed_versions, target_of
from streaming.errors import WanstreamError
from streaming.memory.machine import Machine

# What computes a graph. cuda: `onnxruntime-gpu`; rtx: what `wanstream-build --with rtx` has compiled
Provider = Literal["cpu", "cuda", "rtx"]
ProviderChoice = Literal["auto", "cpu", "cuda", "rtx"]
_CUDA: Final = "CUDAExecutionProvider"
_GPU_PACKAGE: Final = "onnxruntime-gpu"


@dataclass(frozen=True, slots=True)
class GpuProviders:
    """What ONNX Runtime can compute with on the GPU of this machine.

    target   what it is called in a build for TensorRT for RTX; None: there is none, or it is not for this one
    cuda     ONNX Runtime is built for CUDA
    rtx      versions of TensorRT for RTX; None: not installed
    """

    target: str | None = None
    cuda: bool = False
    rtx: RtxVersions | None = None

    @staticmethod
    def here(choice: ProviderChoice = "auto") -> "GpuProviders":
        """Of this Python environment, without loading anything; choice: others are left out."""
        capability = None if choice == "cpu" else Machine.here().compute_capability
        if capability is None:
            return GpuProviders()
        cuda = choice != "rtx" and _is_installed(_GPU_PACKAGE)
        rtx = None if choice == "cuda" else installed_versions()
        return GpuProviders(target_of(capability), cuda, rtx)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a graph runs on a GPU.

    device          its number, for CUDA
    stream          address of the CUDA stream that everything is queued on; 0 is none to ONNX Runtime
    runtime_cache   directory of what TensorRT for RTX compiles at the first load
    profiles        of sizes, that the graph was compiled with
    """

    device: int
    stream: int
    runtime_cache: Path
    profiles: int = 1


def open_graph(
    path: Path,
    threads: int,
    weights: Mapping[str, Any] | None = None,
    provider: Provider = "cpu",
    gpu: GpuOptions | None = None,
) -> Any:
    """An `onnxruntime.InferenceSession` of the file.

    threads: within one operator; 0: one per core
    weights: values for the session in place of those in the file, by their names in the graph, see
        `ort_values`; they must live as long as the session
    gpu: None on the CPU
    Raises WanstreamError when the file is absent or no graph, or when the provider does not take it.
    """
    onnxruntime = _onnxruntime()
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
        if provider == "cpu":
            return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        assert gpu is not None, "a GPU is wanted, and none is named"
        return _ON_GPU[provider](onnxruntime, path, options, gpu)
    except WanstreamError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        remedy = "Export it again: wanstream-export." if provider == "cpu" else _REMEDIES[provider]
        raise WanstreamError(f"Engine '{path}' cannot be loaded ({error}). {remedy}") from error


_REMEDIES: Final[dict[Provider, str]] = {
    "cuda": "Install what ONNX Runtime for CUDA needs: pip install 'onnxruntime-gpu[cuda,cudnn]'; or load "
    "with WANSTREAM_ONNXRUNTIME_PROVIDER=cpu.",
    "rtx": "Compile it again on this machine: wanstream-build ENGINE_SET --with rtx; or load with "
    "WANSTREAM_ONNXRUNTIME_PROVIDER=cpu.",
}


def _open_in_cuda(onnxruntime: Any, path: Path, options: Any, gpu: GpuOptions) -> Any:
    """Raises WanstreamError where ONNX Runtime would take the CPU, of which it only warns."""
    chosen = {
        "device_id": str(gpu.device),
        "user_compute_stream": str(gpu.stream),
        "arena_extend_strategy": "kSameAsRequested",  # the other doubles what is left in use
        "use_tf32": "0",
    }
    session = onnxruntime.InferenceSession(str(path), options, [(_CUDA, chosen), "CPUExecutionProvider"])
    if _CUDA not in session.get_providers():
        raise WanstreamError(
            f"ONNX Runtime cannot compute engine '{path}' on the GPU: its log tells why. {_REMEDIES['cuda']}"
        )
    return session


def _open_in_rtx(onnxruntime: Any, path: Path, options: Any, gpu: GpuOptions) -> Any:
    """Only what was compiled runs: nothing falls back to the CPU. Raises WanstreamError without a device."""
    register_rtx()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    if not devices:
        raise WanstreamError(f"TensorRT for RTX finds no GPU that it is for. {_REMEDIES['rtx']}")
    gpu.runtime_cache.mkdir(parents=True, exist_ok=True)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    chosen = {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(gpu.stream),
        "nv_runtime_cache_path": str(gpu.runtime_cache),
        "nv_persistent_context_memory": "1",
        "nv_multi_profile_enable": str(int(gpu.profiles > 1)),
    }
    options.add_provider_for_devices([devices[0]], chosen)  # it takes one device for a session
    return onnxruntime.InferenceSession(str(path), options)


_ON_GPU: Final = {"cuda": _open_in_cuda, "rtx": _open_in_rtx}


@cache
def register_rtx() -> None:
    """Tell ONNX Runtime of the plug-in, once in a process. Raises WanstreamError without it."""
    try:
        plugin = importlib.import_module(PACKAGE)
    except ImportError as error:
        raise WanstreamError(
            "TensorRT for RTX is not installed where Triton's models run. Run there: pip install "
            "'wanstream[rtx]'."
        ) from error
    library = Path(plugin.get_library_path())
    # The package brings CUDA's runtime without the name that the library asks for.
    for runtime in sorted(library.parent.glob("libcudart.so.*.*")):
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    _onnxruntime().register_execution_provider_library(plugin.get_ep_name(), str(library))


def run_options(provider: Provider, profile: int = 0) -> Any:
    """Of one call. None on the CPU.

    On a GPU the call only queues its work on the stream, whose user waits for it, not ONNX Runtime.
    profile: number of that which has the sizes of the call
    """
    if provider == "cpu":
        return None
    options = _onnxruntime().RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if provider == "rtx":
        options.add_run_config_entry("nv_profile_index", str(profile))
    return options


def ort_values(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays for `open_graph`; a value shares the memory of its array, and a session that of its values."""
    if not arrays:
        return {}
    onnxruntime = _onnxruntime()
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def _onnxruntime() -> Any:
    """The module. Raises WanstreamError without it."""
    try:
        return importlib.import_module("onnxruntime")  # an extra: the gateway's installation has none
    except ImportError as error:
        raise WanstreamError(
            f"ONNX Runtime is not installed where Triton's models run ({error}). Run there: pip install "
            "'wanstream[pipelines]', or build plans for a GPU: wanstream-build."
        ) from error
