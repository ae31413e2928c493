"""Whether TensorRT for RTX takes the transformer at the real widths: yes or no, without a GPU.

    python -m benchmarks.rtx_compile                  # LongLive, 1.3B, 30 layers: 7 GB of memory
    python -m benchmarks.rtx_compile --layers 2       # the same widths in a minute

Random weights in bfloat16, at 320x576. It needs what `make test` installs. Times of that compiler are not
printed: nobody has read whether its licence allows to tell them.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from benchmarks.random_weights import fill_random
from export.onnx.jobs import DTYPES, Request, components_of
from export.onnx.onnx_export import export_onnx
from export.onnx.run import PlannedEngine, manifest_of
from streaming.checkpoints.config import WAN_1_3B
from streaming.engines.manifest import MANIFEST, ONNX_FILE, engine_directory
from tests.rtx.compiling import Compiler

NAME = "transformer"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=WAN_1_3B.num_layers)
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--size", default="320x576", help="HEIGHTxWIDTH")
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="wanstream-rtx-") as directory:
        models = Path(directory)
        export(models, options.layers, (height, width))
        print("exported", flush=True)
        problems = Compiler.with_stand_ins(models / "stand_ins").problems(models, [NAME], options.target)
    print(f"compiles for {options.target}: {'no, ' + str(problems[NAME]) if problems else 'yes'}")


def export(models: Path, layers: int, size: tuple[int, int]) -> None:
    """Write the engine with random weights below `models`."""
    request = Request("longlive", models, (size,), precision="bf16")
    config = dataclasses.replace(WAN_1_3B, num_layers=layers)
    parts = components_of(request, config)
    part, graph = next((part, graph) for part in parts for graph in part.graphs if graph.kind == NAME)
    modules = part.published()
    fill_random(modules[0], torch.bfloat16, torch.device("cpu"))
    module, signature = graph.build(modules)
    directory = engine_directory(models, NAME)
    directory.mkdir(parents=True)
    export_onnx(module, signature, graph.example, directory / ONNX_FILE, DTYPES["bf16"])
    manifest = manifest_of(PlannedEngine(NAME, "", part, (), graph), signature, (), None)
    (directory / MANIFEST).write_text(manifest.model_dump_json())


if __name__ == "__main__":
    main()
