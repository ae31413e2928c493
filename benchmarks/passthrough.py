"""Frame rate, delay, gaps, time to first frame and CPU of `passthrough` beside a bare aiortc echo.

Peers in their own processes send numbered frames and read the numbers that come back. The echo and our server
are measured in turns, so that the ratio holds on a machine that does other work too.

    python -m benchmarks.passthrough --sessions 1,2,4,8 --seconds 20
    python -m benchmarks.passthrough --sessions 1 --rounds 4 --beside DIRECTORY   # and another commit
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import (
    BenchmarkError,
    Server,
    add_common_options,
    cpu_seconds,
    echo_server,
    gateway,
    load_pipeline,
    machine_busy_seconds,
    percentiles,
    processes_by_role,
)
from benchmarks.peer import PeerError, PeerOptions, PeerProcess, StreamRecord
from benchmarks.results import write_result

WARM_UP_S = 3.0
BUSY_CLIENT = 0.8  # of a core; beyond it the client may be what is measured

Run = dict[str, Any]


def main() -> None:
    """Run the benchmark from the command line."""
    options = _options()
    try:
        runs = _measure_all(options)
    except (BenchmarkError, PeerError) as error:
        sys.exit(f"The benchmark failed: {error}")
    summary = [summarized(runs, sessions) for sessions in options.sessions]
    warnings = _warnings(runs)
    settings = {
        "sessions": options.sessions,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "size": "{1}x{0}".format(*options.size),
        "fps": options.fps,
        "external_server": options.url is not None,
        "beside": options.beside is not None,
    }
    result = {"settings": settings, "warnings": warnings, "summary": summary, "runs": runs}
    path = write_result(options.out, "passthrough", result)
    print(f"\n{path}")
    for warning in warnings:
        print(f"Warning: {warning}")
    print(table(summary))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=_numbers, default=[1, 2, 4, 8], help="numbers of peers: 1,2,4,8")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=2, help="turns of echo and ours per number of sessions")
    parser.add_argument(
        "--url", help="measure this running server instead of starting one (no server CPU then)"
    )
    parser.add_argument(
        "--beside", type=Path, help="another checkout of ours, set up with its own .venv, to measure in turns"
    )
    add_common_options(parser)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("at least one session")
    return numbers


def _measure_all(options: argparse.Namespace) -> list[Run]:
    runs = []
    peers: list[PeerProcess] = []
    peer_options = PeerOptions(height=options.size[0], width=options.size[1], fps=options.fps)
    try:
        with contextlib.ExitStack() as stack:
            servers = {"echo": stack.enter_context(echo_server())}
            servers["ours"] = stack.enter_context(gateway(options.url))
            if options.beside is not None:
                python, checkout = str(options.beside / ".venv/bin/python"), options.beside
                servers["beside"] = stack.enter_context(gateway(python=python, checkout=checkout))
            for name in servers.keys() - {"echo"}:
                load_pipeline(servers[name])
            for sessions in sorted(options.sessions):
                while len(peers) < sessions:
                    peers.append(PeerProcess(peer_options))
                for turn in range(options.rounds):
                    for name, server in servers.items():
                        run = measure(server, peers[:sessions], options.seconds)
                        runs.append({"server": name, "sessions": sessions, "round": turn} | run)
                        print(_progress(runs[-1]), flush=True)
    finally:
        for peer in peers:
            peer.close()
    return runs


def measure(server: Server, peers: Sequence[PeerProcess], seconds: float) -> Run:
    """Stream with all peers at once for `seconds` after a warm-up; times in ms.

    CPU is in ms per received frame.
    """
    for peer in peers:
        peer.start_connecting(server.url)
    first_frames_ms = [1000 * peer.wait_for_frames() for peer in peers]
    time.sleep(WARM_UP_S)

    clients = [[psutil.Process(peer.pid)] for peer in peers]
    groups = processes_by_role(server)
    start, cpu_start = time.monotonic(), _cpu(groups, clients)
    time.sleep(seconds)
    end, cpu_end = time.monotonic(), _cpu(groups, clients)
    records = [peer.disconnect() for peer in peers]

    used = {name: cpu_end[name] - cpu_start[name] for name in cpu_start}
    run = _stream_numbers(records, start, end)
    run["first_frame_ms"] = percentiles(first_frames_ms, 50) | {
        "all": [round(ms, 1) for ms in first_frames_ms]
    }
    run |= _cpu_numbers(used, server, run["frames"], end - start, len(peers))
    return run


def _cpu(
    groups: Mapping[str, Sequence[psutil.Process]], clients: Sequence[Sequence[psutil.Process]]
) -> dict[str, float]:
    used = {role: cpu_seconds(processes) for role, processes in groups.items()}
    used |= {f"client {i}": cpu_seconds(processes) for i, processes in enumerate(clients)}
    return used | {"machine": machine_busy_seconds()}


def _cpu_numbers(used: Mapping[str, float], server: Server, frames: int, seconds: float, clients: int) -> Run:
    per_client = [used[f"client {i}"] for i in range(clients)]
    per_frame = {"clients": sum(per_client)}
    if server.pid is not None:
        roles = {role: used[role] for role in ("gateway", "triton", "stub")}
        per_frame |= roles | {"server": sum(roles.values())}
    ours = sum(used.values()) - used["machine"]
    return {
        "cpu_ms_per_frame": {name: round(1000 * s / max(frames, 1), 2) for name, s in per_frame.items()},
        "busiest_client_cores": round(max(per_client) / seconds, 2),
        "other_work_cores": round((used["machine"] - ours) / seconds, 2),
    }


def _stream_numbers(records: Sequence[StreamRecord], start: float, end: float) -> Run:
    delays_ms: list[float] = []
    gaps_ms: list[float] = []
    fps: list[float] = []
    totals = {"frames": 0, "lost": 0, "repeated": 0, "unreadable": 0, "client_stalled": 0}
    for record in records:
        matched = [(match, t) for match, t in matches(record) if start <= t < end]
        found = [match for match, _ in matched if match is not None]
        delays_ms += [1000 * (t - record.sent[match][1]) for match, t in matched if match is not None]
        gaps_ms += [1000 * (after - before) for (_, before), (_, after) in itertools.pairwise(matched)]
        fps.append(len(matched) / (end - start))
        totals["frames"] += len(matched)
        totals["repeated"] += len(found) - len(set(found))
        totals["unreadable"] += len(matched) - len(found)
        totals["lost"] += max(found) - min(found) + 1 - len(set(found)) if found else 0
        totals["client_stalled"] += record.stalled
    seconds = [record.received[-1][1] - record.offer_sent for record in records]
    rates = [8e-3 * record.bytes_received / s for record, s in zip(records, seconds, strict=True)]
    return totals | {
        "fps": {"median": round(statistics.median(fps), 2), "min": round(min(fps), 2)},
        "delay_ms": percentiles(delays_ms, 50, 95, 99),
        "gap_ms": percentiles(gaps_ms, 50, 95, 99),
        "received_kbit_per_s": round(statistics.mean(rates)),
    }


def matches(record: StreamRecord) -> Iterator[tuple[int | None, float]]:
    """For each received frame the index in `record.sent` of what it shows, and its time.

    The numbers come in a loop: what was sent last under a number, before the frame arrived, is what it shows.
    """
    latest: dict[int, int] = {}
    index = 0
    for number, t in record.received:
        while index < len(record.sent) and record.sent[index][1] <= t:
            latest[record.sent[index][0]] = index
            index += 1
        yield (None if number is None else latest.get(number)), t


def summarized(runs: Sequence[Run], sessions: int) -> Run:
    """Medians over the rounds, and how many times the echo's each server's are."""
    rows = {
        server: _medians([_figures(r) for r in runs if r["server"] == server and r["sessions"] == sessions])
        for server in dict.fromkeys(run["server"] for run in runs)
    }
    ratios = {
        f"{server}_to_echo": {
            key: round(row[key] / echo, 2) for key, echo in rows["echo"].items() if echo and key in row
        }
        for server, row in rows.items()
        if server != "echo"
    }
    return {"sessions": sessions, **rows, **ratios}


def _medians(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    known = {key: [value for row in rows if (value := row[key]) is not None] for key in rows[0]}
    return {key: round(statistics.median(values), 2) for key, values in known.items() if values}


def _figures(run: Run) -> dict[str, float | None]:
    """The figures of a run under one name each."""
    return {
        "fps": run["fps"]["median"],
        "fps_min": run["fps"]["min"],
        "delay_p50_ms": run["delay_ms"]["p50"],
        "delay_p95_ms": run["delay_ms"]["p95"],
        "delay_p99_ms": run["delay_ms"]["p99"],
        "gap_p50_ms": run["gap_ms"]["p50"],
        "gap_p95_ms": run["gap_ms"]["p95"],
        "gap_p99_ms": run["gap_ms"]["p99"],
        "gap_max_ms": run["gap_ms"]["max"],
        "lost": run["lost"],
        "unreadable": run["unreadable"],
        "first_frame_ms": run["first_frame_ms"]["p50"],
        "received_kbit_per_s": run["received_kbit_per_s"],
        **{f"cpu_{name}_ms_per_frame": value for name, value in run["cpu_ms_per_frame"].items()},
    }


def _warnings(runs: Sequence[Run]) -> list[str]:
    warnings = []
    for run in runs:
        where = f"{run['server']}, {run['sessions']} sessions, round {run['round']}"
        if run["busiest_client_cores"] > BUSY_CLIENT:
            warnings.append(
                f"{where}: a client used {run['busiest_client_cores']:.0%} of a core; it may be the limit."
            )
        if run["client_stalled"] > 0.01 * run["frames"]:
            warnings.append(f"{where}: the clients fell {run['client_stalled']} frames behind.")
    return warnings


def _progress(run: Run) -> str:
    names = (
        *(
            "server",
            "sessions",
            "round",
            "fps",
            "delay_ms",
            "gap_ms",
            "lost",
            "first_frame_ms",
            "cpu_ms_per_frame",
        ),
        *("busiest_client_cores", "other_work_cores", "received_kbit_per_s"),
    )
    return json.dumps({name: run[name] for name in names})


COLUMNS = {
    "fps": "fps",
    "delay_p50_ms": "delay p50 ms",
    "delay_p95_ms": "p95",
    "delay_p99_ms": "p99",
    "gap_p95_ms": "gap p95 ms",
    "gap_max_ms": "max",
    "lost": "lost",
    "first_frame_ms": "first frame ms",
    "cpu_gateway_ms_per_frame": "CPU ms/frame gateway",
    "cpu_triton_ms_per_frame": "Triton",
    "cpu_stub_ms_per_frame": "its Python",
    "cpu_server_ms_per_frame": "all",
    "cpu_clients_ms_per_frame": "client",
}


def table(summary: Sequence[Run]) -> str:
    lines = [
        "| sessions | server | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for entry in summary:
        for name in [key for key in entry if key != "sessions"]:
            cells = [str(entry[name].get(key, "")) for key in COLUMNS]
            lines.append(
                f"| {entry['sessions']} | {name.replace('_to_', ' / ')} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
