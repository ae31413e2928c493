"""Resident memory of our server over a long stream and over many connections.

python -m benchmarks.memory --minutes 10 --cycles 50
"""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.common import (
    BenchmarkError,
    Server,
    add_common_options,
    gateway,
    load_pipeline,
    processes_by_role,
    rss_bytes,
)
from benchmarks.peer import PeerError, PeerOptions, PeerProcess
from benchmarks.results import write_result

SAMPLE_PERIOD_S = 5.0
WARM_UP = 0.2  # of the samples; pools and caches fill first
MB = 1e6

Sample = dict[str, float]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the stream")
    parser.add_argument("--cycles", type=int, default=50, help="connections that are made and closed")
    add_common_options(parser)
    options = parser.parse_args()

    peer = PeerProcess(PeerOptions(height=options.size[0], width=options.size[1], fps=options.fps))
    try:
        with gateway() as server:
            load_pipeline(server)
            idle = _sample(server, time.monotonic())
            stream, frames = _stream(server, peer, options.minutes)
            cycles = _cycles(server, peer, options.cycles)
    except (BenchmarkError, PeerError) as error:
        sys.exit(f"The benchmark failed: {error}")
    finally:
        peer.close()

    summary = _summary(idle, stream, cycles)
    settings = {"minutes": options.minutes, "cycles": options.cycles, "fps": options.fps}
    result = {"settings": settings, "frames": frames, "summary": summary, "stream": stream, "cycles": cycles}
    print(f"\n{write_result(options.out, 'memory', result)}")
    print(_table(summary))


def _stream(server: Server, peer: PeerProcess, minutes: float) -> tuple[list[Sample], int]:
    """Memory during one stream, and the number of frames that came back."""
    peer.start_connecting(server.url)
    peer.wait_for_frames()
    started = time.monotonic()
    samples = []
    while time.monotonic() - started < 60 * minutes:
        time.sleep(SAMPLE_PERIOD_S)
        samples.append(_sample(server, started))
        print(samples[-1], flush=True)
    return samples, len(peer.disconnect().received)


def _cycles(server: Server, peer: PeerProcess, cycles: int) -> list[Sample]:
    """Memory after each connection was closed again."""
    started = time.monotonic()
    samples = []
    for _ in range(cycles):
        peer.start_connecting(server.url)
        peer.wait_for_frames()
        time.sleep(0.5)
        peer.disconnect()
        time.sleep(0.5)  # the server notices and frees the session
        samples.append(_sample(server, started))
    return samples


def _sample(server: Server, started: float) -> Sample:
    """Seconds since `started` and MB by role."""
    sizes = {f"{role}_mb": rss_bytes(group) / MB for role, group in processes_by_role(server).items()}
    return {name: round(value, 1) for name, value in {"time_s": time.monotonic() - started, **sizes}.items()}


def _summary(
    idle: Sample, stream: Sequence[Sample], cycles: Sequence[Sample]
) -> dict[str, dict[str, float | None]]:
    """By role, in MB: sizes, and how fast they grow once warm."""
    minutes = [sample["time_s"] / 60 for sample in stream]
    summary = {}
    for role in ("gateway", "triton", "stub"):
        during, after = ([sample[f"{role}_mb"] for sample in samples] for samples in (stream, cycles))
        summary[role] = {
            "idle": idle[f"{role}_mb"],
            "stream_max": max(during, default=None),
            "stream_growth_per_minute": _slope(minutes, during),
            "cycles_max": max(after, default=None),
            "cycles_growth_per_cycle": _slope(range(len(after)), after),
        }
    return summary


def _slope(positions: Sequence[float], values: Sequence[float]) -> float | None:
    """Least-squares slope after the warm-up; None when fewer than two samples are left."""
    first = round(WARM_UP * len(values))
    if len(values) - first < 2:
        return None
    return round(float(np.polyfit(positions[first:], values[first:], deg=1)[0]), 3)


def _table(summary: dict[str, dict[str, float | None]]) -> str:
    columns = list(summary["gateway"])
    lines = ["| process, MB | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for role, sizes in summary.items():
        lines.append(f"| {role} | " + " | ".join(str(sizes[column]) for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
