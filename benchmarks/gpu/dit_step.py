"""How long is a denoising step, and what do the key bias, torch.compile and CUDA graphs change?

    python -m benchmarks.gpu.dit_step

Random weights in bfloat16, a chunk of 3 latent frames over 9 cached ones. `floor_ms` is the time of the FLOPs
at the measured rate of a matrix product. Results are compared, with float32 too, before they are timed. Rows
of `attention` are the self-attention of one layer alone, by the kernel that PyTorch is told to take.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.block_graphs import Graph, Workload, graphs, random_inputs
from benchmarks.blocks import GPU_MODES, prepared, top_kernels
from benchmarks.gpu.common import Result, Row, Wrong, median_ms, must_agree, parse, peak_mb, reset_peak
from benchmarks.gpu.random_model import cast
from benchmarks.random_weights import fill_random

# The most wanted first: a run may be cut off. 14B at the larger size has 7 GB of keys and values.
CASES = (("1.3B", 480, 832), ("1.3B", 320, 576), ("14B", 320, 576))
ALIKE = 0.99  # cosine of two layers in bfloat16 to float32, and of a mode to eager
FEW_LAYERS = 2
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    with torch.inference_mode():
        rate = matmul_rate(device)
        result = Result("dit-step", options, precision="bfloat16", matmul_tflops=rate / 1e12)
        for size, height, width in (("tiny", 32, 48),) if options.tiny else CASES:
            graph = next(g for g in graphs() if g.name == "transformer" and g.size == size)
            measure(graph, Workload(height, width), device, rate, result)
            if device.type == "cuda" and size == "1.3B":
                result.add(*attention_rows(graph, Workload(height, width), device))
    result.finish()


def measure(graph: Graph, work: Workload, device: torch.device, rate: float, result: Result) -> None:
    """A row per mode, with and without key bias."""
    assert graph.flops is not None
    shape: Row = {"size": graph.size, "picture": f"{work.width}x{work.height}"}
    head = shape | {"floor_ms": graph.flops(work) / rate * 1e3}
    result.add(
        shape | {"mode": f"{FEW_LAYERS} layers", "cosine_to_float32": check_precision(graph, work, device)}
    )
    with torch.device("meta"):
        module = graph.build(graph.layers)
        signature = graph.signature(module, work)
    fill_random(module, torch.bfloat16, device)
    inputs = random_inputs(signature, graph.axes(work), torch.bfloat16, device)
    without = [
        None if spec.name == "key_bias" else tensor
        for spec, tensor in zip(signature.inputs, inputs, strict=True)
    ]
    given = {bias: signature.arguments(values) for bias, values in ((True, inputs), (False, without))}
    reference = {bias: module(**arguments)[0].clone() for bias, arguments in given.items()}
    for mode in GPU_MODES if device.type == "cuda" else ("eager",):
        for bias, arguments in given.items():
            row = head | {"mode": mode, "key_bias": bias}
            try:
                reset_peak(device)
                call = prepared(module, arguments, mode)
                row["cosine_to_eager"] = must_agree(
                    f"{mode} of {graph.size}", call()[0], reference[bias], ALIKE
                )
                row |= {"ms": median_ms(call, device), "peak_mb": peak_mb(device)}
            except (Exception, Wrong) as error:  # that a mode fails on this device is a result too
                row["error"] = str(error).strip().split("\n", 1)[0][:200]
            result.add(row)
    if device.type == "cuda":  # last, since a profiler may slow down what follows
        for bias, arguments in given.items():
            kernels = top_kernels(lambda: module(**arguments), 8)  # noqa: B023 - called at once
            result.add(shape | {"mode": "kernels", "key_bias": bias, "kernels": kernels})


def check_precision(graph: Graph, work: Workload, device: torch.device) -> float:
    """Cosine of a few layers in bfloat16 to the same in float32. Ends the program when they do not agree."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.device("meta"):
            module = graph.build(FEW_LAYERS)
            signature = graph.signature(module, work)
        fill_random(module, torch.float32, device)
        cast(module, dtype)
        inputs = random_inputs(signature, graph.axes(work), torch.float32, device)
        typed = [
            tensor.to(torch.float32 if spec.float32 else dtype)
            for spec, tensor in zip(signature.inputs, inputs, strict=True)
        ]
        results.append(module(**signature.arguments(typed))[0].float())
    return must_agree("bfloat16", results[1], results[0], ALIKE)


def attention_rows(graph: Graph, work: Workload, device: torch.device) -> list[Row]:
    """Self-attention of one layer, new tokens to cached and new ones, with and without key bias."""
    with torch.device("meta"):
        heads, head_dim = graph.signature(graph.build(1), work).inputs[-1].shape[-2:]
    assert isinstance(heads, int)
    assert isinstance(head_dim, int)
    axes, rows = graph.axes(work), []
    q, k, v = (torch.randn(1, heads, axes[n], head_dim, device=device) for n in ("T", "S+T", "S+T"))
    mask = 0.01 * torch.randn(1, 1, 1, axes["S+T"], device=device)
    flops = 4.0 * heads * head_dim * axes["T"] * axes["S+T"]
    for bias in (None, mask):
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            exact = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        half = [t.bfloat16() for t in (q, k, v)]
        small = None if bias is None else bias.bfloat16()
        for backend in (None, *BACKENDS):
            row: Row = {
                "size": graph.size,
                "picture": f"{work.width}x{work.height}",
                "key_bias": bias is not None,
            }
            row["mode"] = f"attention, {'PyTorch chooses' if backend is None else backend.name}"
            try:
                with nullcontext() if backend is None else sdpa_kernel(backend):

                    def call() -> Tensor:
                        return F.scaled_dot_product_attention(*half, attn_mask=small)  # noqa: B023

                    row["cosine_to_float32"] = must_agree("attention", call(), exact, ALIKE)
                    row["ms"] = median_ms(call, device)
                    row["tflops"] = flops / row["ms"] / 1e9
            except (Exception, Wrong) as error:
                row["error"] = str(error).strip().split("\n", 1)[0][:200]
            rows.append(row)
    return rows


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a large square matrix product in bfloat16."""
    n = 8192 if device.type == "cuda" else 256
    a = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    return 2 * n**3 / median_ms(lambda: a @ a, device) * 1e3


if __name__ == "__main__":
    main()
