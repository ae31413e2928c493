"""Every GPU benchmark in turn, each within its time, and all results in one file.

    python -m benchmarks.gpu.all --limit 480

Goes on after a failure. `<gpu>-<date>.json` in --out holds the results with driver and library versions,
`<gpu>-<date>.log` what was printed. Ends with a table of what ran; exit code 1 if something did not end well.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.common import table
from benchmarks.results import REPOSITORY, add_out_option

LIMIT_S = 480


@dataclass(frozen=True)
class Part:
    """A script and how long it may take, in seconds. other_python: it takes `--triton-python`."""

    name: str
    limit_s: int
    other_python: bool = False


PARTS = (  # in order of value; when the whole time is over the last ones are left out
    Part("golden", 60),
    Part("dit_step", 190),
    Part("whole_chunk", 160),
    Part("triton_copies", 70, other_python=True),
    Part("fp8_step", 80),
    Part("precision", 90),
)

_TIME_IS_UP = (124, 137, -9)  # of `timeout`, which kills itself too when it has to kill


def main() -> None:
    """Run the benchmarks from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the scripts")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="names, comma separated")
    parser.add_argument("--commit", help="of this tree, where there is no git")
    parser.add_argument("--triton-python", default=sys.executable, help="that runs the Triton benchmark")
    add_out_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    stem = options.out / f"{re.sub('[^a-z0-9]+', '-', gpu.lower())}-{date.today().isoformat()}"
    document: dict[str, Any] = {"gpu": gpu, "commit": options.commit, "system": system(), "results": {}}
    deadline = time.monotonic() + options.limit
    rows = []
    with tempfile.TemporaryDirectory() as scratch, open(f"{stem}.log", "a") as log:
        for part in PARTS:
            if options.parts is None or part.name in options.parts:
                rows.append(run(part, options, Path(scratch), deadline, log))
                document["parts"] = rows
                for file in sorted(Path(scratch).glob("*.json")):
                    document["results"][file.stem] = json.loads(file.read_text())
                Path(f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{stem}.json\n{table(rows)}", flush=True)
    sys.exit(any(row["exit"] != 0 for row in rows))


def run(part: Part, options: argparse.Namespace, out: Path, deadline: float, log: Any) -> dict[str, Any]:
    """One script: exit code ("time is up" when it was ended) and seconds."""
    left = min(part.limit_s, deadline - time.monotonic())
    if left < 5:
        return {"part": part.name, "exit": "left out", "s": 0.0}
    python = options.triton_python if part.other_python else sys.executable
    command = [
        python,
        "-m",
        f"benchmarks.gpu.{part.name}",
        "--device",
        options.device,
        "--out",
        str(out),
    ]
    command += ["--tiny"] if options.tiny else []
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    print(f"\n== {shlex.join(command[1:])}, at most {left:.0f} s", flush=True)
    began = time.monotonic()
    # SIGINT first, so that a server that it started ends too.
    limited = ["timeout", "--signal=INT", "--kill-after=10", f"{left:.0f}", *command]
    process = subprocess.Popen(
        limited, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        log.flush()
        sys.stdout.write(line[:400].rstrip("\n") + "\n")
        sys.stdout.flush()
    code = process.wait()
    return {
        "part": part.name,
        "exit": "time is up" if code in _TIME_IS_UP else code,
        "s": time.monotonic() - began,
    }


def system() -> dict[str, Any]:
    """Versions that decide about speed."""
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,power.limit",
        "--format=csv,noheader",
    ]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {
        "nvidia_smi": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }


if __name__ == "__main__":
    main()
