"""Seconds from the command to a server that streams the demonstration: with an empty home, and again.

    python -m benchmarks.start --repeat 3

The first start of a home exports the demonstration's engines; the next one finds them. `http`: it answers;
`loaded`: the pipeline streams; `picture`: a viewer that connects then has decoded its first one. Only an idle
machine tells what a user sees.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import LOAD_TIMEOUT_S, BenchmarkError, Server, gateway
from benchmarks.peer import PeerOptions, PeerProcess
from benchmarks.results import add_out_option, write_result

FIRST_GOAL_S, NEXT_GOAL_S = 30.0, 5.0
PROMPT = {"prompts": [{"text": "a large red circle moves left on a blue background", "weight": 1.0}]}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="starts with the engines there")
    add_out_option(parser)
    options = parser.parse_args()
    viewer = PeerProcess(PeerOptions(height=96, width=96, fps=30, camera=False))
    runs = []
    try:
        for run in starts(viewer, options.repeat):
            print("  ".join(f"{key} {value}" for key, value in run.items()), flush=True)
            runs.append(run)
    finally:
        viewer.close()
    later = runs[1:]
    result = {
        "load_average": os.getloadavg()[0],
        "goals_s": {"first_picture": FIRST_GOAL_S, "next_loaded": NEXT_GOAL_S},
        "first": runs[0],
        "next": {key: statistics.median(run[key] for run in later) for key in later[0]},
        "runs": runs,
    }
    print(write_result(options.out, "start", result))


def starts(viewer: PeerProcess, repeat: int) -> Iterator[dict[str, float]]:
    """Each start's seconds: one of an empty home, then `repeat` of the same one."""
    with tempfile.TemporaryDirectory(prefix="wanstream-start-") as home:
        for _ in range(1 + repeat):
            began = time.monotonic()
            with gateway(home=Path(home), env={"WANSTREAM_DEMO": "on"}) as server:
                http = time.monotonic()
                wait_until_loaded(server)
                loaded = time.monotonic()
                viewer.start_connecting(server.url, PROMPT)
                picture = viewer.wait_for_frames()
                viewer.disconnect()
            times = {"http": http - began, "loaded": loaded - began, "picture": loaded - began + picture}
            yield {key: round(value, 2) for key, value in times.items()}


def wait_until_loaded(server: Server) -> None:
    """Until the pipeline that the server opens with is loaded. Raises BenchmarkError."""
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    status: dict[str, Any] = {}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        while time.monotonic() < deadline:
            status = client.get("/api/v1/pipeline/status").json()
            if status["status"] == "loaded":
                return
            if status["status"] == "error":
                break
            time.sleep(0.05)
    raise BenchmarkError(f"The demonstration was not loaded: {status}")


if __name__ == "__main__":
    main()
