"""Runs in ModelOpt's own environment, and imports nothing of ours: see `export/fp8/quantization.py`.

One argument, JSON: `onnx`, a float32 graph; `nodes`, names of the MatMuls to quantise; `calls`, .npz files
with the inputs of one call each; `output`, the file to write. Without an argument: print the version.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import modelopt
import numpy as np
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader


class RecordedCalls(CalibrationDataReader):  # type: ignore[misc]
    """One call in memory at a time; caches make them large."""

    def __init__(self, files: list[str]) -> None:
        self._files = files
        self.rewind()

    def rewind(self) -> None:
        self._calls: Iterator[str] = iter(self._files)

    def get_first(self) -> dict[str, Any]:
        return dict(np.load(self._files[0]))

    def get_next(self) -> dict[str, Any] | None:
        file = next(self._calls, None)
        return None if file is None else dict(np.load(file))


def main() -> None:
    """Quantise what the argument describes."""
    if len(sys.argv) > 1:
        job = json.loads(sys.argv[1])
        quantize(
            job["onnx"],
            quantize_mode="fp8",
            calibration_method="max",
            calibration_data_reader=RecordedCalls(job["calls"]),
            calibration_eps=["cpu"],
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[f"^{re.escape(name)}$" for name in job["nodes"]],
            disable_mha_qdq=True,
            high_precision_dtype="fp32",
            use_external_data_format=True,
            output_path=job["output"],
        )
    sys.stdout.write(f"modelopt {modelopt.__version__}\n")


if __name__ == "__main__":
    main()
