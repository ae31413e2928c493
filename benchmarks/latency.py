"""The latency suite: from a prompt to the picture, for every pipeline, size and placement of the engines.

    python -m benchmarks.latency --all --home DIRECTORY
    python -m benchmarks.latency --pipelines longlive --size 160x288 --seconds 20
    python -m benchmarks.latency --url http://HOST:8000 --pipelines longlive --size 320x576 --triton HOST:8001

Measured: time to first picture (offer to first decoded picture; prompt new, and known), chunk time by step,
pictures per second and their gaps, prompt to picture, memory, CPU. `overhead` is what a chunk takes beside
the work of its engines, by Triton's own counters, `beside H100` the gateway's and the loop's part beside
published times of real engines. Missing engines are exported from the demonstration checkpoint into --home.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.chunk_plot import plot_chunks
from benchmarks.chunk_times import beside_real_engines
from benchmarks.common import BenchmarkError, Server, demo_engines, gateway, load_pipeline, size_option
from benchmarks.latency_runs import MODES, Row, Workload, measure_in_process, measure_served
from benchmarks.results import add_out_option, write_result
from streaming.specs import SPECS, PipelineSpec

PLACEMENTS = ("served", "in_process")


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="wanstream-benchmark-") as temporary:
        home = options.home or Path(temporary)
        try:
            if options.url is None and not options.no_export:
                for spec in options.pipelines:
                    demo_engines(home, spec, options.size)
            if options.export_only:
                return
            rows = [row for spec in options.pipelines for row in measure(spec, options, home)]
        except BenchmarkError as error:
            sys.exit(f"The benchmark failed: {error}")
    report(rows, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="all pipelines")
    parser.add_argument("--pipelines", type=_pipelines, default=[SPECS["longlive"]], help="ids: a,b")
    parser.add_argument("--modes", type=_modes, help="text,video; default: text where there is text")
    parser.add_argument("--size", type=size_option, default=(160, 288), help="HEIGHTxWIDTH")
    parser.add_argument("--placements", type=_placements, default=["served"], help=",".join(PLACEMENTS))
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a steady stream")
    parser.add_argument("--changes", type=int, default=5, help="changes of the prompt")
    parser.add_argument("--connections", type=int, default=3, help="for the time to first picture")
    parser.add_argument(
        "--threads", type=int, default=0, help="of ONNX Runtime in this process; 0: all cores"
    )
    parser.add_argument(
        "--home", type=Path, help="where engines are, or are exported to; default: thrown away"
    )
    parser.add_argument("--export-only", action="store_true", help="export engines and measure nothing")
    parser.add_argument("--no-export", action="store_true", help="take the engines in --home as they are")
    parser.add_argument("--url", help="measure this running server; it must have the engines")
    parser.add_argument("--triton", help="HOST:PORT of its Triton's gRPC, for the engines' own times")
    parser.add_argument("--precision", default="float32", help="of the engines, for the record")
    add_out_option(parser)
    options = parser.parse_args()
    if options.all:
        options.pipelines = list(SPECS.values())
    return options


def measure(spec: PipelineSpec, options: argparse.Namespace, home: Path) -> list[Row]:
    """All rows of one pipeline; what cannot be measured becomes a row that says why."""
    rows: list[Row] = []
    for mode in options.modes or spec.modes[:1]:
        if mode not in spec.modes:
            continue
        work = Workload(spec, mode, options.size, options.seconds, options.changes, options.connections)
        for placement in options.placements:
            if placement == "in_process" and (spec.loop is None or options.url is not None):
                continue
            head = {"pipeline": spec.id, "mode": mode, "size": "{}x{}".format(*options.size)}
            load = os.getloadavg()[0]
            try:
                if placement == "served":
                    row = served(work, options, home)
                else:
                    row = measure_in_process(home / "engines", work, options.threads)
            except Exception as error:  # the other rows are worth having
                traceback.print_exc()
                row = {"placement": placement, "error": str(error).strip().split("\n", 1)[0][:200]}
            pixels = options.size[0] * options.size[1]
            row["beside_real_engines"] = beside_real_engines(spec.id, row.get("overhead", {}), pixels)
            rows.append(head | {"load_average_before": round(load, 1)} | row)
            print(table(rows[-1:]), flush=True)
    return rows


def served(work: Workload, options: argparse.Namespace, home: Path) -> Row:
    """Load the pipeline and measure it."""
    with gateway(options.url, home) as server:
        began = time.monotonic()
        load_pipeline(server, work.spec.id, height=work.size[0], width=work.size[1])
        load_s = round(time.monotonic() - began, 2)
        triton = options.triton or (triton_url(server) if options.url is None else None)
        return {"load_s": load_s} | measure_served(server, work, triton)


def triton_url(server: Server) -> str:
    """host:port of the gRPC of a server on this machine."""
    url: str = httpx.get(f"{server.url}/health", timeout=10).json()["triton"]["url"]
    return url


def report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write JSON, table and pictures; print the table last."""
    settings = {
        "size": "{}x{}".format(*options.size),
        "seconds": options.seconds,
        "threads": options.threads,
        "external_server": options.url is not None,
    }
    result = {"precision": options.precision, "settings": settings, "rows": list(rows)}
    path = write_result(options.out, "latency", result)
    path.with_suffix(".md").write_text(table(rows) + "\n", encoding="utf-8")
    plot_chunks(rows, path.with_suffix(".png"))
    print(f"\n{path}\n{table(rows)}")


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    heads = (
        "pipeline, mode, engines",
        "first picture ms, prompt new / known",
        "fps",
        "gap p50 / p95 / p99 ms",
        "chunk ms p50",
        "text",
        "encode",
        "denoise, per step",
        "clean or context",
        "decode",
        "transfer",
        "gateway, gRPC, loop",
        "overhead",
        "beside H100",
        "prompt to picture ms p50 / max",
        "VP8 ms per picture",
        "memory MB without shared, gateway / Triton / models",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    name = f"{row['pipeline']}, {row['mode']}, {row['placement'].replace('_', ' ')}"
    if "error" in row:
        return [name, row["error"], *[""] * 15]
    first, gap, delay = (
        row.get("first_frame_ms", {}),
        row.get("gap_ms", {}),
        row.get("prompt_to_picture_ms") or {},
    )
    steps, beside = row["split_ms"], row.get("overhead", {})
    real = row.get("beside_real_engines")
    context = [steps[key] for key in ("clean", "context", "recache") if key in steps]
    memory = row["private_mb"]
    models = sum(size for model, size in memory.items() if model not in ("gateway", "triton"))
    return [
        name,
        _joined(first.get("new_prompt"), first.get("known_prompt")),
        _text(row["fps"], 1),
        _joined(gap.get("p50"), gap.get("p95"), gap.get("p99")),
        _text(row["chunk_ms"]["p50"]),
        _text(steps.get("text"), 1),
        _text(steps.get("encode")),
        _text(steps.get("denoise_per_step"), 1),
        _text(sum(context), 1) if context else "",
        _text(steps.get("decode")),
        _text(beside.get("transfer_ms"), 1),
        _text(beside.get("gateway_grpc_loop_ms", steps.get("outside_of_steps")), 1),
        f"{beside['ratio']:.0%}" if beside else "",
        f"{real['ratio']:.1%}" if real else "",
        _joined(delay.get("p50"), delay.get("max")),
        _text(row.get("video_encode_ms_per_frame"), 1),
        _joined(memory.get("gateway"), memory.get("triton"), models),
    ]


def _text(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _joined(*values: float | None) -> str:
    return "" if all(value is None for value in values) else " / ".join(_text(value) for value in values)


def _pipelines(text: str) -> list[PipelineSpec]:
    unknown = [name for name in text.split(",") if name not in SPECS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(SPECS)}")
    return [SPECS[name] for name in text.split(",")]


def _modes(text: str) -> list[str]:
    return [_one_of(name, MODES) for name in text.split(",")]


def _placements(text: str) -> list[str]:
    return [_one_of(name, PLACEMENTS) for name in text.split(",")]


def _one_of(name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
    return name


if __name__ == "__main__":
    main()
