"""Peak memory of loading a checkpoint of the real 1.3B size, against the size of its file.

    python -m benchmarks.loading --formats safetensors,pt --dtype bfloat16

Writes random weights to a temporary directory and loads them in a new process, whose peak is measured. The
bound that the project keeps is 1.3 times the file, when the weights stay in the file's type.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.blocks import MB, status_bytes
from benchmarks.results import REPOSITORY, add_out_option, write_result
from export.checkpoints.checkpoints import checkpoint_shapes, load_weights, open_checkpoint
from export.graphs.transformer import TextKV, Transformer
from streaming.checkpoints.config import WAN_1_3B, WAN_14B

CONFIGS = {"1.3B": WAN_1_3B, "14B": WAN_14B}
BOUND = 1.3


def main() -> None:
    """Run the benchmark from the command line; exit code 1 if the bound is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(CONFIGS), default="1.3B")
    parser.add_argument("--formats", default="safetensors,pt", help="comma separated")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--load", type=Path, help="only load this file and print what it took")
    add_out_option(parser)
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(load(options.load, options.model, getattr(torch, options.dtype))))
        return
    runs = [measure(options.model, name, options.dtype) for name in options.formats.split(",")]
    for run in runs:
        print("  ".join(f"{key} {value}" for key, value in run.items()))
    result = {"precision": options.dtype, "model": options.model, "bound": BOUND, "runs": runs}
    print(write_result(options.out, "loading", result))
    worst = max(run["peak_per_file"] for run in runs)
    if worst > BOUND:
        sys.exit(f"Loading took {worst} times the file's size; the bound is {BOUND}.")


def measure(model: str, file_format: str, dtype: str) -> dict[str, Any]:
    """Write a checkpoint, load it in a new process."""
    with tempfile.TemporaryDirectory(prefix="wanstream-loading-") as directory:
        path = Path(directory) / f"random.{file_format}"
        write_checkpoint(path, model, getattr(torch, dtype))
        command = ["--load", str(path), "--model", model, "--dtype", dtype]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.loading", *command],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            check=True,
        )
        loaded: dict[str, Any] = json.loads(done.stdout)
        size = path.stat().st_size
    return {
        "format": file_format,
        "file_mb": round(size / MB, 1),
        **loaded,
        "peak_per_file": round(loaded["peak_mb"] * MB / size, 3),
        "added_per_file": round((loaded["peak_mb"] - loaded["before_mb"]) * MB / size, 3),
    }


def write_checkpoint(path: Path, model: str, dtype: torch.dtype) -> None:
    """Random weights under the real keys; a .pt file has the `generator` layout of the pipelines."""
    state = {}
    for key, shape in checkpoint_shapes(*modules(model)).items():
        state[key] = torch.empty(shape, dtype=dtype).normal_()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"generator": {f"model.{key}": tensor for key, tensor in state.items()}}, path)


def load(path: Path, model: str, dtype: torch.dtype) -> dict[str, Any]:
    """Load the file in this process; peak is all memory of the process, interpreter and PyTorch included."""
    before = status_bytes("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    load_weights(open_checkpoint(path, "generator"), *modules(model), dtype=dtype)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - start_cpu, 2),
        "before_mb": round(before / MB, 1),
        "peak_mb": round(status_bytes("VmHWM") / MB, 1),
    }


def modules(model: str) -> list[nn.Module]:
    with torch.device("meta"):
        return [Transformer(CONFIGS[model]), TextKV(CONFIGS[model])]


if __name__ == "__main__":
    main()
