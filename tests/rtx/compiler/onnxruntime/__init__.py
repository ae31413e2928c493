"""compile_graph.py SOURCE TARGET SM STAND_INS [option=value ...]: compile one ONNX file, without a GPU.

SM: sm86, sm89, sm120 or sm121. STAND_INS: directory of the driver's, which driver.py makes.
The exit code is 1 for a graph that is refused, whose reason is the last line.
"""

import ctypes
import os
import sys
from pathlib import Path

from c_api import OnnxRuntime
from compile_only import allow_virtual_devices
from driver import LIBRARIES, installed

PROVIDER = "NvTensorRTRTXExecutionProvider"
# In this order, and before the plug-in, so that no LD_LIBRARY_PATH is needed.
NEEDED = ("libcudart.so.*.*", "libtensorrt_rtx.so.*.*.*", "libtensorrt_onnxparser_rtx.so.*.*.*")


def load(package: Path, stand_ins: Path) -> Path:
    """Load what the plug-in needs; returns the plug-in's path."""
    drivers = (stand_ins / name for name in LIBRARIES)
    for path in (*drivers, *(next(package.glob(pattern)) for pattern in NEEDED)):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return package / "libonnxruntime_providers_nv_tensorrt_rtx.so"


def main() -> int:
    source, target, sm, stand_ins, *options = sys.argv[1:]
    runtime = OnnxRuntime({"allow_virtual_devices": "1", f"ep_factory.{PROVIDER}.nv_target_sm": sm})
    library = load(installed(), Path(stand_ins))
    allow_virtual_devices(library)
    runtime.register(PROVIDER, library)
    chosen = dict(option.split("=", 1) for option in options)
    try:
        runtime.compile(Path(source), Path(target), runtime.devices(PROVIDER), chosen)
    except RuntimeError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return 1
    return 0


code = main()
sys.stderr.flush()
os._exit(code)  # the plug-in's destructors call the driver
