"""What the GPU benchmarks share: the device, times by CUDA events, a table, the result file."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import add_out_option, write_result

NO_GPU = 2  # exit code
REPEATS, WARM_UPS = 20, 3

Row = dict[str, Any]


def parse(description: str | None, *, tiny: bool = True) -> argparse.Namespace:
    """--device, --tiny and --out. Ends the program, with a sentence, where the device is missing."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    if tiny:
        parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    add_out_option(parser)
    options = parser.parse_args()
    need_device(options.device)
    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return options


def need_device(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        leave("there is no NVIDIA GPU that PyTorch can use here. To try the script: --device cpu --tiny.")


def leave(reason: str) -> None:
    """End the program: what it asks cannot be answered here."""
    sys.stderr.write(f"Not measured: {reason}\n")
    sys.exit(NO_GPU)


def median_ms(call: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Median time of a call, by CUDA events on a GPU."""
    for _ in range(WARM_UPS):
        call()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            began = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def peak_mb(device: torch.device) -> float | None:
    """Most memory that tensors took since the last reset."""
    return round(torch.cuda.max_memory_allocated() / 1e6, 1) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two tensors as vectors, in float64."""
    a, b = a.detach().double().flatten().cpu(), b.detach().double().flatten().cpu()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))


def relative_rms(value: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def must_agree(what: str, value: Tensor, reference: Tensor, at_least: float) -> float:
    """Their cosine. Ends the program when the result that is to be timed is wrong."""
    found = cosine(value, reference)
    if not found >= at_least:
        sys.exit(f"{what} is wrong: cosine {found:.6f} to the reference, at least {at_least} is needed.")
    return found


def finish(name: str, options: argparse.Namespace, rows: Sequence[Row], **more: Any) -> None:
    """Write the result and print the table last."""
    path = write_result(options.out, f"gpu-{name}", {**more, "rows": list(rows)})
    print(f"\n{path}\n{table(rows)}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; columns are the keys of all rows in order of appearance, lists left out."""
    columns = list(dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, list | dict)))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_text(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
