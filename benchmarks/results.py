"""The result file of a benchmark and what is needed to repeat its run: command, commit, versions, machine.

Needs nothing but the standard library, so that the model benchmarks run wherever PyTorch does.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "wanstream",
    "aiortc",
    "aioice",
    "av",
    "numpy",
    "onnxruntime",
    "safetensors",
    "torch",
    "quart",
    "hypercorn",
    "tritonclient",
    "nvidia-pytriton",
)
REPOSITORY = Path(__file__).resolve().parent.parent


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """--out, the directory of the result file: by default $OUT, else benchmarks/results."""
    default = Path(os.environ.get("OUT") or REPOSITORY / "benchmarks/results")
    parser.add_argument("--out", type=Path, default=default, help="directory of the result file")


def write_result(directory: Path, name: str, result: Mapping[str, Any]) -> Path:
    """Write `<directory>/<name>.json` with what is needed to repeat the run; the path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(_provenance(name) | dict(result), indent=2) + "\n")
    return path


def _provenance(name: str) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "benchmark": name,
        "command": _command(name, sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _git("status", "--porcelain") not in ("", None),
        "versions": versions,
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": _memory_gb(),
            "system": platform.platform(),
            "gpu": _gpu(),
        },
        "precision": "n/a",
    }


def _command(name: str, arguments: Sequence[str]) -> str:
    """The command to repeat; where this machine keeps its files is nobody else's business."""
    shown = ["DIRECTORY" if Path(argument).is_absolute() else argument for argument in arguments]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *shown])


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark that did not load it used no GPU
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def _memory_gb() -> float | None:
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no sysconf on Windows
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return None


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
