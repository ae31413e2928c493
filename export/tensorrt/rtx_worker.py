"""rtx_worker.py GRAPH OUTPUT [option=value ...]: compile one ONNX file with TensorRT for RTX, for this GPU.

A process for each graph: a crash of the compiler is that graph's, and its memory is free afterwards. It needs
ONNX Runtime and the plug-in, and nothing of this package: they may have a Python of their own.
The exit code is 1 for a graph that is refused; the reason is the last line.
"""

import ctypes
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import onnxruntime

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"


def devices() -> list[Any]:
    """The GPUs that the plug-in is for."""
    plugin = importlib.import_module(PACKAGE)
    library = Path(plugin.get_library_path())
    # The package brings CUDA's runtime without the name that the library asks for.
    for runtime in sorted(library.parent.glob("libcudart.so.*.*")):
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, str(library))
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def compile_graph(graph: str, output: str, chosen: dict[str, str]) -> None:
    """Write `output`, and the engine that it points at beside it. Raises what ONNX Runtime raises."""
    found = devices()
    if not found:
        raise RuntimeError("TensorRT for RTX finds no GPU here that it is for")
    options = onnxruntime.SessionOptions()
    options.add_provider_for_devices([found[0]], chosen)  # it takes one device
    flags = onnxruntime.OrtCompileApiFlags.ERROR_IF_NO_NODES_COMPILED
    onnxruntime.ModelCompiler(options, graph, flags=flags).compile_to_file(output)


def main() -> int:
    graph, output, *options = sys.argv[1:]
    try:
        compile_graph(graph, output, dict(option.split("=", 1) for option in options))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # destructors of the plug-in may outlive what they need
