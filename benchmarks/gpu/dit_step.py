"""How long is a denoising step, and what do the key bias, torch.compile and CUDA graphs change?

    python -m benchmarks.gpu.dit_step

Random weights in bfloat16, a chunk of 3 latent frames over 9 cached ones. `floor_ms` is the time of the FLOPs
at the measured rate of a matrix product. Results are compared, with float32 too, before they are timed.
"""

import sys

import torch
from torch import Tensor

from benchmarks.block_graphs import Graph, Workload, graphs, random_inputs
from benchmarks.blocks import GPU_MODES, prepared, top_kernels
from benchmarks.gpu.common import Row, cosine, finish, median_ms, must_agree, parse, peak_mb, reset_peak
from benchmarks.random_weights import fill_random

PICTURES = ((320, 576), (480, 832))
ALIKE = 0.99  # cosine of bfloat16 to float32 after thirty layers of random weights


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    sizes, pictures = (("tiny",), ((32, 48),)) if options.tiny else (("1.3B", "14B"), PICTURES)
    rows = []
    with torch.inference_mode():
        rate = matmul_rate(device)
        for graph in graphs():
            if graph.name == "transformer" and graph.size in sizes:
                # 14B at the larger size has 7 GB of keys and values; ask for it when the smaller one fits.
                for height, width in pictures if graph.size != "14B" else pictures[:1]:
                    rows += measure(graph, Workload(height, width), device, rate)
    finish("dit-step", options, rows, precision="bfloat16", matmul_tflops=rate / 1e12)


def measure(graph: Graph, work: Workload, device: torch.device, rate: float) -> list[Row]:
    """A row per mode, with and without key bias."""
    rows = []
    modes = GPU_MODES if device.type == "cuda" else ("eager",)
    with torch.device("meta"):
        module = graph.build(graph.layers)
        signature = graph.signature(module, work)
    fill_random(module, torch.bfloat16, device)
    inputs = random_inputs(signature, graph.axes(work), torch.bfloat16, device)
    for bias in (True, False):
        given: list[Tensor | None] = [
            tensor if bias or spec.name != "key_bias" else None
            for spec, tensor in zip(signature.inputs, inputs, strict=True)
        ]
        reference = module(*given)[0].clone()
        check_precision(graph, work, device)
        for mode in modes:
            row: Row = {"size": graph.size, "picture": f"{work.width}x{work.height}", "key_bias": bias}
            row["mode"] = mode
            try:
                call = prepared(module, given, mode)
                row["cosine_to_eager"] = must_agree(f"{mode} of {graph.size}", call()[0], reference, 0.999)
                reset_peak(device)
                row["ms"] = median_ms(call, device)
            except RuntimeError as error:  # that a mode fails on this device is a result too
                row["error"] = str(error).strip().split("\n", 1)[0][:200]
            assert graph.flops is not None
            row |= {"floor_ms": graph.flops(work) / rate * 1e3, "peak_mb": peak_mb(device)}
            if device.type == "cuda" and mode == "eager":
                row["kernels"] = top_kernels(lambda: module(*given))  # noqa: B023 - called at once
            rows.append(row)
            print(row, flush=True)
    return rows


def check_precision(graph: Graph, work: Workload, device: torch.device) -> None:
    """A few layers in bfloat16 against the same in float32. Ends the program when they do not agree."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.device("meta"):
            module = graph.build(2)
            signature = graph.signature(module, work)
        fill_random(module, torch.float32, torch.device("cpu"))
        for owner in module.modules():
            if not getattr(owner, "float32_parameters", False):
                for parameter in owner.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        inputs = random_inputs(signature, graph.axes(work), torch.float32, torch.device("cpu"))
        typed = [
            tensor.to(device, torch.float32 if spec.float32 else dtype)
            for spec, tensor in zip(signature.inputs, inputs, strict=True)
        ]
        results.append(module.to(device)(*typed)[0].float())
    if (found := cosine(results[1], results[0])) < ALIKE:
        sys.exit(f"bfloat16 is wrong: cosine {found:.6f} to float32.")


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a large square matrix product in bfloat16."""
    n = 8192 if device.type == "cuda" else 256
    a = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    return 2 * n**3 / median_ms(lambda: a @ a, device) * 1e3


if __name__ == "__main__":
    main()
