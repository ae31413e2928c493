"""The GPU and the TensorRT of this machine, read without loading either. Torch-free."""

import ctypes
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10")  # of the Triton and TensorRT containers


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan depends on. None: not known, or there is none."""

    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    tensorrt: str | None = None

    @classmethod
    def here(cls, gpu: int = 0) -> "Machine":
        """Of the GPU of this machine that CUDA calls number `gpu`."""
        return cls(*_gpu(gpu), _tensorrt())


def gpu_memory_bytes(gpu: int = 0) -> tuple[int, int] | None:
    """(used, total) memory of the GPU that CUDA calls number `gpu`; None: nobody can tell."""
    import pynvml  # here: it looks for a driver that most machines do not have

    try:
        pynvml.nvmlInit()
        memory = pynvml.nvmlDeviceGetMemoryInfo(_nvml_device(gpu))
    except pynvml.NVMLError:
        return None
    return int(memory.used), int(memory.total)


def torch_has_cuda() -> bool:
    """Whether the PyTorch of this environment is built for CUDA; reads its version, imports nothing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b.*= *['\"]", text, re.MULTILINE) is not None


def _nvml_device(index: int) -> Any:
    """NVML's handle of the GPU that CUDA calls number `index`.

    NVML counts all GPUs of the machine as the bus does; CUDA those of CUDA_VISIBLE_DEVICES, by default the
    fastest first. Raises pynvml.NVMLError.
    """
    import pynvml

    address = _bus_address(index)
    if address is None:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    return pynvml.nvmlDeviceGetHandleByPciBusId(address)


def _bus_address(index: int) -> bytes | None:
    """Where a GPU of CUDA is, such as 0000:3B:00.0; None where there is no CUDA, or no such GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, address = ctypes.c_int(), ctypes.create_string_buffer(64)
    succeeded = (
        cuda.cuInit(0) == 0
        and cuda.cuDeviceGet(ctypes.byref(device), index) == 0
        and cuda.cuDeviceGetPCIBusId(address, len(address), device) == 0
    )
    return address.value if succeeded else None


def _gpu(index: int) -> tuple[str | None, str | None, str | None]:
    """Name, compute capability, driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        device = _nvml_device(index)
        name, driver = pynvml.nvmlDeviceGetName(device), pynvml.nvmlSystemGetDriverVersion()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
    except pynvml.NVMLError:
        return None, None, None
    return str(name), f"{major}.{minor}", str(driver)


def _tensorrt() -> str | None:
    """Version of the Python package; without it, of the library that Triton's backend loads."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name in _LIBRARIES:
        try:
            number = ctypes.CDLL(name).getInferLibVersion()
        except (OSError, AttributeError):
            continue
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return None
