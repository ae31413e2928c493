"""Export of a checkpoint of LongLive's real size: time, peak memory, file sizes, for bfloat16 and float32.

    python -m benchmarks.export_1_3b --precisions bf16,fp32

Writes random weights in the layout of the real files (transformer and autoencoder of full size; the text
encoder has the real width and two layers, for UMT5-XXL would take 11 GB and change nothing else) to
a temporary directory, and exports them in a process of its own for each precision. Engines are deleted after
they were measured. Memory and disk do not depend on the size of the pictures, which is small: the comparison
of float32 engines with PyTorch runs them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import REPOSITORY, add_out_option, write_result
from export.checkpoints.demo import random_weights, write_demo_models
from export.graphs.vae import VaeConfig
from export.onnx.jobs import Request
from export.onnx.run import export_pipeline
from export.onnx.store import EngineStore, Resources
from streaming.checkpoints.config import WAN_1_3B
from streaming.memory.units import in_units

SIZE = (128, 192)
PIPELINE = "longlive"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precisions", default="bf16,fp32", help="comma separated")
    parser.add_argument("--directory", type=Path, help="where the temporary directory is made")
    parser.add_argument("--models", type=Path, help="only export these checkpoints and print what it took")
    parser.add_argument("--engines", type=Path)
    add_out_option(parser)
    options = parser.parse_args()
    if options.models is not None:
        export(options.models, options.engines, options.precisions)
        return
    with tempfile.TemporaryDirectory(prefix="wanstream-export-", dir=options.directory) as directory:
        models = Path(directory) / "models"
        start = time.perf_counter()
        weights = random_weights(WAN_1_3B, VaeConfig(), SIZE, torch.bfloat16)
        write_demo_models(models, weights, [PIPELINE])
        del weights
        print(f"checkpoints: {in_units(size_of(models))} in {time.perf_counter() - start:.0f} s", flush=True)
        runs = [measure(models, Path(directory) / "engines", p) for p in options.precisions.split(",")]
        result = {
            "precision": options.precisions,
            "pipeline": PIPELINE,
            "height": SIZE[0],
            "width": SIZE[1],
            "checkpoint_bytes": size_of(models),
            "runs": runs,
        }
        print(write_result(options.out, "export_1_3b", result))


def measure(models: Path, engines: Path, precision: str) -> dict[str, Any]:
    """Export in a new process; delete the engines."""
    command = ["--models", str(models), "--engines", str(engines), "--precisions", precision]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.export_1_3b", *command], cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"The export in {precision} ended with exit code {process.returncode}.")
    store = EngineStore(engines)
    found = {
        directory.name: {"bytes": manifest.bytes, "parity": manifest.parity}
        for directory in sorted(store.models.iterdir())
        for manifest in [store.verified(directory.name)]
        if manifest.precision == precision or manifest.kind.startswith("vae")
    }
    run = {
        "precision": precision,
        "seconds": round(seconds),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_bytes": usage.ru_maxrss << 10,
        "engine_bytes": sum(engine["bytes"] for engine in found.values()),
        "engines": found,
    }
    print(json.dumps(run), flush=True)
    for directory in store.models.iterdir():
        if not directory.name.startswith("wan_"):  # both precisions have the same autoencoder
            shutil.rmtree(directory)
    return run


def export(models: Path, engines: Path, precision: Any) -> None:
    """Export in this process; what memory it needs is to be measured, so nothing is refused."""

    def disk_only(directory: Path) -> Resources:
        return Resources(Resources.now(directory).disk, None)

    def say(line: str) -> None:
        print(f"{time.strftime('%T')} {line}", flush=True)

    request = Request(PIPELINE, models, (SIZE,), precision=precision)
    export_pipeline(request, EngineStore(engines), say, resources=disk_only)


def size_of(directory: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
