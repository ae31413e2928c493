"""The GPU and the TensorRT of this machine, read without loading either. Torch-free."""

import ctypes
import importlib.metadata
from dataclasses import dataclass

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
        """Of GPU number `gpu` of this machine."""
        return cls(*_gpu(gpu), _tensorrt())


def _gpu(index: int) -> tuple[str | None, str | None, str | None]:
    """Name, compute capability, driver."""
    import pynvml  # here: it looks for a driver that most machines do not have

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
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
