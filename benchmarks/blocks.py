"""Time, peak memory, parameters and cache bytes of every graph, with random weights.

    python -m benchmarks.blocks --size 576x320 --models tiny,1.3B,wan,lightvae,tae

On a GPU (bf16): eager, torch.compile and CUDA graph, the transformer with and without key bias, and the
kernels that take the most time. On a CPU (float32): eager, processor time of one thread, so that other work
does not count; of a model of many equal layers a few are measured and scaled up. `floor_ms` is the time that
the FLOPs take at the measured rate of a matrix product.
"""

import argparse
import copy
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.block_graphs import Graph, Workload, bytes_of, graphs, random_inputs
from benchmarks.random_weights import fill_random
from benchmarks.results import add_out_option, write_result

Row = dict[str, Any]
Call = Callable[[], Any]
GPU_MODES = ("eager", "compile", "eager+graph", "compile+graph")
MB = 1e6
FEW_LAYERS = (1, 3)  # measured where all layers would take too long


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    device: torch.device
    dtype: torch.dtype
    modes: tuple[str, ...]
    repeats: int
    scale_layers: bool  # measure FEW_LAYERS and scale up
    clock: Callable[[], float]  # seconds


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse_options()
    load = os.getloadavg()[0]  # of other work on the machine
    settings = settings_from(options)
    work = Workload(options.size[0], options.size[1], options.chunk, options.cached)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    rate = matmul_rate(settings)
    print(f"{settings.device}, {settings.dtype}, matrix product {rate / 1e12:.2f} TFLOP/s\n")
    rows: list[Row] = []
    with torch.inference_mode():
        for graph in graphs():
            if graph.size in options.models and (not options.graphs or graph.name in options.graphs):
                for row in measure(graph, work, settings, rate):
                    rows.append(row)
                    print_row(row)
    sizes = [size_row(graph, work) for graph in graphs()]
    print()
    for row in sizes:
        print("  ".join(f"{value}" for value in row.values()))
    result = {
        "precision": str(settings.dtype).removeprefix("torch."),
        "workload": {"height": work.height, "width": work.width, "chunk": work.chunk, "cached": work.cached},
        "matmul_tflops": round(rate / 1e12, 3),
        "threads": torch.get_num_threads(),
        "load_average_at_start": round(load, 1),
        "graphs": rows,
        "sizes": sizes,
    }
    print(f"\n{write_result(options.out, 'blocks', result)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--size", type=_size, default=(320, 576), help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--chunk", type=int, default=3, help="new latent frames")
    parser.add_argument("--cached", type=int, default=9, help="cached latent frames")
    parser.add_argument("--models", type=_names, default=_names("tiny,1.3B"), help="sizes, comma separated")
    parser.add_argument("--graphs", type=_names, default=(), help="graph names, comma separated; default all")
    parser.add_argument("--modes", type=_names, help=f"of {', '.join(GPU_MODES)}")
    parser.add_argument("--repeats", type=int)
    add_out_option(parser)
    return parser.parse_args()


def settings_from(options: argparse.Namespace) -> Settings:
    gpu = options.device.startswith("cuda")
    if not gpu:
        torch.set_num_threads(1)
    dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    return Settings(
        device=torch.device(options.device),
        dtype=dtype,
        modes=options.modes or (GPU_MODES if gpu else ("eager",)),
        repeats=options.repeats or (20 if gpu else 3),
        scale_layers=not gpu,
        clock=time.perf_counter if gpu else time.process_time,
    )


def measure(graph: Graph, work: Workload, settings: Settings, rate: float) -> list[Row]:
    """One row per mode, and for the transformer per mode with and without key bias."""
    rows = []
    for bias in (True, False) if graph.name == "transformer" else (True,):
        for mode in settings.modes:
            try:
                row = measure_mode(graph, work, settings, mode, bias)
            except RuntimeError as error:  # that a mode fails on this device is a result too
                row = {"error": str(error).strip().split("\n", 1)[0][:200]}
            head = {"graph": graph.name, "size": graph.size, "mode": mode, "key_bias": bias}
            if graph.name != "transformer":
                del head["key_bias"]
            if graph.flops is not None and "ms" in row:
                row["floor_ms"] = round(graph.flops(work) / rate * 1e3, 2)
            rows.append(head | row)
    return rows


def measure_mode(graph: Graph, work: Workload, settings: Settings, mode: str, bias: bool) -> Row:
    if settings.scale_layers and graph.layers > max(FEW_LAYERS):
        few, more = (timed(graph, layers, work, settings, mode, bias) for layers in FEW_LAYERS)
        per_layer = (more["ms"] - few["ms"]) / (FEW_LAYERS[1] - FEW_LAYERS[0])
        # Layers run one after the other and share the memory of their activations.
        row = more | {
            "ms": round(few["ms"] + (graph.layers - FEW_LAYERS[0]) * per_layer, 1),
            "scaled_from_layers": FEW_LAYERS,
        }
    else:
        row = timed(graph, graph.layers, work, settings, mode, bias)
    return row | whole_model(graph, work, settings.dtype.itemsize)


def whole_model(graph: Graph, work: Workload, item_bytes: int) -> Row:
    """Megabytes of weights and inputs; nothing is allocated."""
    with torch.device("meta"):
        module = graph.build(graph.layers)
        signature = graph.signature(module, work)
    weights = item_bytes * sum(p.numel() for p in module.parameters())
    inputs = bytes_of(signature.inputs, graph.axes(work), item_bytes)
    return {"weights_mb": round(weights / MB, 1), "inputs_mb": round(inputs / MB, 1)}


def timed(graph: Graph, layers: int, work: Workload, settings: Settings, mode: str, bias: bool) -> Row:
    with torch.device("meta"):
        module = graph.build(layers)
        signature = graph.signature(module, work)
    fill_random(module, settings.dtype, settings.device)
    inputs: list[Tensor | None] = [
        *random_inputs(signature, graph.axes(work), settings.dtype, settings.device)
    ]
    if not bias:
        inputs = [
            None if spec.name == "key_bias" else tensor
            for spec, tensor in zip(signature.inputs, inputs, strict=True)
        ]
    call = prepared(module, signature.arguments(inputs), mode)
    peak = peak_bytes(call, settings.device)
    row: Row = {
        "ms": round(median_ms(call, settings), 3),
        "activations_mb": round(peak / MB, 1),
    }
    if settings.device.type == "cuda" and "graph" not in mode:
        row["kernels"] = top_kernels(call)
    return row


def prepared(module: nn.Module, given: Mapping[str, Any], mode: str) -> Call:
    """A call with these arguments; a CUDA graph replays on the tensors that it was captured with."""
    run: Callable[..., Any] = compiled(module) if "compile" in mode else module
    if "graph" not in mode:
        return lambda: run(**given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(**given)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        outputs = run(**given)

    def replay() -> Any:
        captured.replay()
        return outputs

    return replay


def compiled(module: nn.Module) -> Callable[..., Any]:
    """torch.compile for one shape.

    A module of equal blocks becomes a copy that shares its weights, with each block compiled by itself: they
    share what was compiled, which takes seconds where all blocks in one graph take minutes.
    """
    blocks = getattr(module, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        return torch.compile(module, dynamic=False)
    copied = copy.copy(module)
    fast = nn.ModuleList([torch.compile(block, dynamic=False) for block in blocks])  # type: ignore[misc]
    copied.__dict__["_modules"] = {**module._modules, "blocks": fast}
    return copied


def median_ms(call: Call, settings: Settings) -> float:
    call()
    times = []
    for _ in range(settings.repeats):
        synchronize(settings.device)
        start = settings.clock()
        call()
        synchronize(settings.device)
        times.append((settings.clock() - start) * 1e3)
    return statistics.median(times)


def peak_bytes(call: Call, device: torch.device) -> int:
    """Memory of one call beyond what was held before: activations and results."""
    call()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # else the call reuses freed memory that still counts as resident
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS (proc(5)); Linux with glibc only
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    """VmRSS, resident memory, or VmHWM, the most it ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory of a CPU needs Linux.")


def top_kernels(call: Call, count: int = 4) -> list[str]:
    """Names and shares of the kernels that take the most time; shows which attention ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    return [f"{e.self_device_time_total / total:.0%} {e.key[:100]}" for e in events[:count]]


def matmul_rate(settings: Settings) -> float:
    """FLOP/s of a large square matrix product."""
    n = 8192 if settings.device.type == "cuda" else 1536
    a = torch.randn(n, n, dtype=settings.dtype, device=settings.device)
    return 2 * n**3 / median_ms(lambda: a @ a, settings) * 1e3


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def size_row(graph: Graph, work: Workload) -> Row:
    """Parameters, and bytes of weights and caches in a type of two bytes; nothing is allocated."""
    with torch.device("meta"):
        module = graph.build(graph.layers)
        signature = graph.signature(module, work)
    parameters = sum(p.numel() for p in module.parameters())
    caches = tuple(spec for spec in signature.inputs if spec.group == "cache")
    return {
        "graph": graph.name,
        "size": graph.size,
        "parameters": parameters,
        "weights_mb": round(2 * parameters / MB, 1),
        "cache_mb": round(bytes_of(caches, graph.axes(work), 2) / MB, 1),
    }


def print_row(row: Row) -> None:
    print("  ".join(f"{key} {value}" for key, value in row.items() if key != "kernels"), flush=True)
    for kernel in row.get("kernels", ()):
        print(f"    {kernel}")


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return height, width


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
