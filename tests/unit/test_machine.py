"""Which GPU of NVML is the one that CUDA calls number 0."""

import ctypes
from typing import Any

import pynvml
import pytest

from streaming.memory import machine
from streaming.memory.machine import Machine, gpu_memory_bytes


class Cuda:
    """A CUDA driver whose first GPU, by CUDA_VISIBLE_DEVICES, is the second one of the machine."""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        return 0 if number == 0 else 101

    def cuDeviceGetPCIBusId(self, text: Any, length: int, device: Any) -> int:  # noqa: N802
        text.value = b"0000:3B:00.0"
        return 0


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs; a handle is a GPU's name."""

    class Memory:
        def __init__(self, total: int) -> None:
            self.used, self.total = 1, total

    names = {b"0000:3B:00.0": "second"}
    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: ["first", "second"][index],
        "nvmlDeviceGetHandleByPciBusId": names.__getitem__,
        "nvmlDeviceGetName": lambda device: device,
        "nvmlSystemGetDriverVersion": lambda: "580",
        "nvmlDeviceGetCudaComputeCapability": lambda device: (9, 0),
        "nvmlDeviceGetMemoryInfo": lambda device: Memory({"first": 24, "second": 80}[device]),
    }.items():
        monkeypatch.setattr(pynvml, name, function)


@pytest.mark.usefixtures("nvml")
def test_a_plan_and_its_memory_belong_to_the_gpu_that_cuda_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    load: Any = ctypes.CDLL
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Cuda() if "cuda" in name else load(name))

    assert Machine.here().gpu == "second"
    assert gpu_memory_bytes() == (1, 80)


@pytest.mark.usefixtures("nvml")
def test_without_cuda_nvml_s_own_numbers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(machine.ctypes, "CDLL", absent)

    assert Machine.here().gpu == "first"
    assert gpu_memory_bytes() == (1, 24)
