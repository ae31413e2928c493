"""Viewers who move a control all the time: does a scene start afresh, is Triton restarted?

    python -m benchmarks.controls --home DIRECTORY --viewers 4 --minutes 5

Each viewer sends the weights of two prompts, as a slider does, `--rate` times a second, and now and then a
new text. One of them hangs up and comes back every `--leave-every` seconds, somewhere in a chunk. At the end
the pipeline is unloaded under all of them.
"""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import (
    BenchmarkError,
    Server,
    demo_engines,
    gateway,
    load_pipeline,
    percentiles,
    processes_by_model,
    size_option,
)
from benchmarks.peer import PeerError, PeerOptions, PeerProcess, StreamRecord
from benchmarks.results import add_out_option, write_result
from streaming.specs import SPECS

LOST = re.compile(r"The sequence .*(begins afresh|idled out)")
RESTARTED = re.compile(r"Triton is started anew|could not be unloaded|model process .* died")
UNLOAD_LIMIT_S = 15.0
NEW_TEXT_S = 10.0


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = sorted(name for name, spec in SPECS.items() if spec.supports_prompts)
    parser.add_argument("--pipeline", default="longlive", choices=models)
    parser.add_argument("--viewers", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of each viewer's stream")
    parser.add_argument("--rate", type=float, default=8.0, help="messages of each viewer per second")
    parser.add_argument("--leave-every", type=float, default=20.0, help="seconds until one hangs up")
    parser.add_argument("--home", type=Path, required=True, help="where engines are, or are exported to")
    parser.add_argument("--no-export", action="store_true", help="take the engines in --home as they are")
    parser.add_argument("--size", type=size_option, default=(128, 192), help="HEIGHTxWIDTH of the pictures")
    add_out_option(parser)
    options = parser.parse_args()
    try:
        if not options.no_export:
            demo_engines(options.home, SPECS[options.pipeline], options.size)
        with gateway(home=options.home) as server:
            load_pipeline(server, options.pipeline, height=options.size[0], width=options.size[1])
            report = measure(server, options)
    except (BenchmarkError, PeerError) as error:
        sys.exit(f"The benchmark failed: {error}")
    settings = {name: getattr(options, name) for name in ("pipeline", "viewers", "minutes", "rate")}
    result = {"precision": "float32", "settings": settings, **report}
    print(f"\n{write_result(options.out, 'controls', result)}")
    for name, check in report["checks"].items():
        print(f"{'ok    ' if check['ok'] else 'FAILED'} {name}: {check['value']} (limit {check['limit']})")
    sys.exit(0 if all(check["ok"] for check in report["checks"].values()) else 1)


def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Let the viewers move their controls, unload under them, and judge."""
    triton = processes_by_model(server)["triton"].pid
    camera = PeerOptions(height=options.size[0], width=options.size[1], fps=30, camera=False)
    viewers = [PeerProcess(camera) for _ in range(options.viewers)]
    try:
        records, sent = move(server, viewers, options)
        unload_s = unload(server)
    finally:
        for viewer in viewers:
            viewer.close()
    logs = "\n".join(path.read_text() for path in sorted((options.home / "logs").glob("*.log"))[-1:])
    gaps = [1000 * (b - a) for r in records for a, b in itertools.pairwise(t for _, t in r.received)]
    told = [message for record in records for message in record.messages]
    return {
        "checks": {
            "sequences_lost": at_most(len(LOST.findall(logs)), 0),
            "restarts_in_the_log": at_most(len(RESTARTED.findall(logs)), 0),
            "triton_is_another_process": at_most(processes_by_model(server)["triton"].pid != triton, 0),
            "streams_without_pictures": at_most(sum(len(r.received) < 2 for r in records), 0),
            "problems_told": at_most(len(told), 0),
            "unload_s": at_most(round(unload_s, 2), UNLOAD_LIMIT_S),
        },
        "messages_sent": sent,
        "streams": len(records),
        "chunks_begun_again": logs.count("begins again"),
        "pictures": sum(len(record.received) for record in records),
        "gap_ms": percentiles(gaps, 50, 95, 99),
        "told": told[:20],
    }


def move(
    server: Server, viewers: Sequence[PeerProcess], options: argparse.Namespace
) -> tuple[list[StreamRecord], int]:
    """What all streams saw, those that were left included, and how many messages were sent."""
    for viewer in viewers:
        connect(server, viewer)
    records, sent = [], 0
    started = time.monotonic()
    leave_at = options.leave_every
    for tick in itertools.count():
        elapsed = time.monotonic() - started
        if elapsed >= 60 * options.minutes:
            break
        if elapsed >= leave_at and len(viewers) > 1:
            leave_at += options.leave_every
            records.append(viewers[-1].disconnect())
            connect(server, viewers[-1])
        for number, viewer in enumerate(viewers):
            viewer.send({"prompts": prompts(tick, int((elapsed + number) / NEW_TEXT_S))})
            sent += 1
        time.sleep(max(0.0, started + (tick + 1) / options.rate - time.monotonic()))
    return records + [viewer.record() for viewer in viewers], sent


def connect(server: Server, viewer: PeerProcess) -> None:
    viewer.start_connecting(server.url, {"input_mode": "text", "prompts": prompts(0, 0)})
    viewer.wait_for_frames()


def prompts(tick: int, text: int) -> list[dict[str, Any]]:
    """Two prompts whose weights go to and fro."""
    weight = abs(tick % 40 - 20) / 20
    return [
        {"text": "a red ball", "weight": weight},
        {"text": f"a blue box, number {text}", "weight": 1 - weight},
    ]


def unload(server: Server) -> float:
    """Seconds until the pipeline is gone, and Triton answers."""
    began = time.monotonic()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.post("/api/v1/pipeline/unload")
        while time.monotonic() - began < 4 * UNLOAD_LIMIT_S:
            status = client.get("/api/v1/pipeline/status").json()["status"]
            if status == "not_loaded" and client.get("/health").json()["triton"]["ready"]:
                break
            time.sleep(0.1)
    return time.monotonic() - began


def at_most(value: float, limit: float) -> dict[str, Any]:
    return {"value": value, "limit": limit, "ok": value <= limit}


if __name__ == "__main__":
    main()
