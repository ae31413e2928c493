"""TensorRT: does it parse and build the graphs, is the plan right, is attention fused, how long is a step?

    python -m benchmarks.gpu.tensorrt_step

Random weights of the real 1.3B shapes in 16 bits, exported as `wanstream-export` does it, built at the level
that `wanstream-build` takes. Each plan is compared with PyTorch before it is timed. Needs TensorRT's builder
and polygraphy. With --device cpu the graphs are exported and checked, and nothing is built.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.block_graphs import Graph, Workload, graphs, random_inputs
from benchmarks.gpu.common import Result, Row, Wrong, leave, median_ms, must_agree, parse
from benchmarks.random_weights import fill_random
from export.onnx.onnx_export import export_onnx
from streaming.engines.manifest import BuildOptions

NAMES = ("transformer", "vae_decoder")
SIZES = ("1.3B", "lightvae", "tae")
ALIKE = 0.99


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    if device.type == "cuda":
        need_builder()
    work = Workload(64, 96) if options.tiny else Workload(320, 576)
    sizes = ("tiny",) if options.tiny else SIZES
    result = Result("tensorrt-step", options, precision="bfloat16")
    with tempfile.TemporaryDirectory(prefix="wanstream-benchmark-") as directory:
        for graph in graphs():
            if graph.name in NAMES and graph.size in sizes:
                result.add(measure(graph, work, device, Path(directory) / f"{graph.name}-{graph.size}"))
    result.finish()


def need_builder() -> None:
    try:
        import polygraphy  # noqa: F401
        import tensorrt  # noqa: F401
    except ImportError as error:
        leave(f"TensorRT's builder or polygraphy is not installed ({error}).")


def measure(graph: Graph, work: Workload, device: torch.device, directory: Path) -> Row:
    """Export, build, compare, time. What fails on the way is the result."""
    directory.mkdir()
    path = directory / "model.onnx"
    # Convolutions in bfloat16 are no valid ONNX at this opset.
    dtype = torch.bfloat16 if graph.name == "transformer" else torch.float16
    with torch.device("meta"):
        module = graph.build(graph.layers)
        signature = graph.signature(module, work)
    fill_random(module, dtype, torch.device("cpu"))
    row: Row = {"graph": graph.name, "size": graph.size, "picture": f"{work.width}x{work.height}"}
    axes = graph.axes(work)
    export_onnx(module, signature, axes, path, dtype)
    row["onnx_mb"] = sum(file.stat().st_size for file in directory.iterdir()) / 1e6
    if device.type != "cuda":
        return row
    tensors = random_inputs(signature, axes, dtype, device)
    arguments = signature.arguments(tensors)
    inputs = {spec.name: tensor for spec, tensor in zip(signature.inputs, tensors, strict=True)}
    with torch.inference_mode():
        module.to(device)
        reference = module(**arguments)[0].clone()
        row["torch_ms"] = median_ms(lambda: module(**arguments), device)
    try:
        began = time.perf_counter()
        engine = build(path, {name: tuple(tensor.shape) for name, tensor in inputs.items()})
        row |= {"build_s": time.perf_counter() - began, "fused_attention": fused(engine)}
        outputs = [spec.name for spec in signature.outputs]
        with runner_of(engine) as runner:
            found = runner.infer(inputs, copy_outputs_to_host=False)[outputs[0]]
            row["cosine"] = must_agree(f"The plan of {graph.name}", found, reference, ALIKE)
            row["ms"] = median_ms(lambda: runner.infer(inputs, copy_outputs_to_host=False), device)
    except (Exception, Wrong) as error:  # whatever TensorRT says is what is asked for
        row["error"] = str(error).strip().split("\n", 1)[0][:200]
    return row


def build(path: Path, shapes: dict[str, tuple[int, ...]]) -> Any:
    """An engine for exactly these shapes."""
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, Profile

    profile = Profile()
    for name, shape in shapes.items():
        profile.add(name, shape, shape, shape)
    config = CreateConfig(
        profiles=[profile],
        builder_optimization_level=BuildOptions().level,
        profiling_verbosity=detailed(),
    )
    return EngineFromNetwork(NetworkFromOnnxPath(str(path), strongly_typed=True), config)()


def detailed() -> Any:
    import tensorrt

    return tensorrt.ProfilingVerbosity.DETAILED  # the inspector names layers only then


def fused(engine: Any) -> int:
    """How many layers the engine inspector calls multi-head attention."""
    import tensorrt

    text = engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.ONELINE)
    return sum("mha" in line.lower() for line in text.splitlines())


def runner_of(engine: Any) -> Any:
    from polygraphy.backend.trt import TrtRunner

    return TrtRunner(engine)


if __name__ == "__main__":
    main()
