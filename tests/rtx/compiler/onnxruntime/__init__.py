"""The part of ONNX Runtime's Python module that compiles, with the manners of the real one, without a GPU.

It is found before the real one, whose library it calls by the C API: the real compiler compiles, for a device
that the environment names. The worker of `wanstream-build --with rtx` runs on it unchanged.
"""

import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from ctypes import CDLL, RTLD_GLOBAL
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from c_api import OnnxRuntime
from compile_only import allow_virtual_devices
from driver import LIBRARIES, installed

PROVIDER = "NvTensorRTRTXExecutionProvider"
# In this order, and before the plug-in, so that no LD_LIBRARY_PATH is needed.
NEEDED = ("libcudart.so.*.*", "libtensorrt_rtx.so.*.*.*", "libtensorrt_onnxparser_rtx.so.*.*.*")
__version__ = importlib.metadata.version("onnxruntime")

_stand_ins, _package = Path(os.environ["RTX_TEST_STAND_INS"]), installed()
for _path in (
    *(_stand_ins / name for name in LIBRARIES),
    *(next(_package.glob(pattern)) for pattern in NEEDED),
):
    CDLL(str(_path), mode=RTLD_GLOBAL)
_runtime = OnnxRuntime(
    {
        "allow_virtual_devices": "1",
        f"ep_factory.{PROVIDER}.nv_target_sm": os.environ["RTX_TEST_TARGET"],
    }
)
_registered: dict[str, Path] = {}


class OrtEpDevice:
    """A device that a plug-in offers."""

    def __init__(self, name: str, pointer: Any) -> None:
        self.ep_name, self.pointer = name, pointer


def register_execution_provider_library(name: str, path: str) -> None:
    allow_virtual_devices(Path(path))
    _runtime.register(name, Path(path))
    _registered[name] = Path(path)


def get_ep_devices() -> list[OrtEpDevice]:
    found = [OrtEpDevice(name, device) for name in _registered for device in _runtime.devices(name)]
    return [OrtEpDevice("CPUExecutionProvider", None), *found]


class SessionOptions:
    """Providers and their options."""

    def __init__(self) -> None:
        self.devices: list[OrtEpDevice] = []
        self.chosen: dict[str, str] = {}

    def add_provider_for_devices(self, devices: Sequence[OrtEpDevice], options: Mapping[str, str]) -> None:
        if not devices or {device.ep_name for device in devices} - {PROVIDER}:
            raise RuntimeError("devices of one provider are wanted, and at least one")
        self.devices, self.chosen = list(devices), dict(options)


class OrtCompileApiFlags:
    """Bits of `flags`."""

    NONE = 0
    ERROR_IF_NO_NODES_COMPILED = 1


class ModelCompiler:
    """The compiler of a session's providers."""

    def __init__(self, sess_options: SessionOptions, input_model_path: str, flags: int = 0) -> None:
        if not Path(input_model_path).is_file():
            raise RuntimeError(f"[ONNXRuntimeError] : 3 : NO_SUCHFILE : {input_model_path}")
        assert flags == OrtCompileApiFlags.ERROR_IF_NO_NODES_COMPILED, "c_api.py asks for that"
        self._options, self._path = sess_options, Path(input_model_path)

    def compile_to_file(self, output_model_path: str) -> None:
        devices = [device.pointer for device in self._options.devices]
        # The tests read what it has found in the graph.
        options = {**self._options.chosen, "nv_detailed_build_log": "1"}
        _runtime.compile(self._path, Path(output_model_path), devices, options)
