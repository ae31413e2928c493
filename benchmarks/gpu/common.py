"""What the GPU benchmarks share: the device, times by CUDA events, a table, the result file."""

import argparse
import shlex
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


class Wrong(SystemExit):
    """A result that is to be timed does not agree with its reference."""


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
    """Of two tensors as vectors, in float64; NaN where one holds NaN."""
    a, b = a.detach().double().flatten(), b.detach().double().flatten().to(a.device)
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))


def relative_rms(value: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    value, reference = value.detach().double(), reference.detach().double().to(value.device)
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def must_agree(what: str, value: Tensor, reference: Tensor, at_least: float) -> float:
    """Their cosine. Raises Wrong, which ends a program, when the result that is to be timed is wrong."""
    found = cosine(value, reference)
    if not found >= at_least:
        raise Wrong(f"{what} is wrong: cosine {found:.6f} to the reference, at least {at_least} is needed.")
    return found


class Result:
    """Rows of a benchmark. The file is written anew with each: a run that is cut off leaves what it has."""

    def __init__(self, name: str, options: argparse.Namespace, **more: Any) -> None:
        module = f"benchmarks.gpu.{name.replace('-', '_')}"
        command = shlex.join(["python", "-m", module, *sys.argv[1:]])
        self._name, self._out, self._more = name, options.out, {"command": command, **more}
        self.rows: list[Row] = []

    def add(self, *rows: Row) -> None:
        for row in rows:
            self.rows.append(row)
            print(row, flush=True)
        self._path = write_result(self._out, f"gpu-{self._name}", {**self._more, "rows": self.rows})

    def finish(self) -> None:
        """Print the table last."""
        print(f"\n{self._path}\n{table(self.rows)}", flush=True)


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
