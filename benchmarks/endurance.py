"""A long stream of a pipeline through a real server: does it stall, go blank, or grow?

    python -m benchmarks.endurance --pipeline longlive --minutes 20 --home DIRECTORY

The stream is long enough when its chunks pass the end of the rotary positions (1024 latent frames); the
result says so.

Its prompts are of the demonstration's own world, because only these vouch for a picture that is not blank: of
words that it does not know the model makes a dark plane.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

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
from export.nano.world import COLOURS, MOTIONS, RADII, SHAPES, Scene
from streaming.specs import SPECS, TEXT, LoopSpec, PipelineSpec

SAMPLE_PERIOD_S = 5.0
WARM_UP = 0.2  # of the samples; pools and caches fill first
# Levels of 8 bit: pictures of the world's prompts spread by 12.8 and more when the loop makes them without a
# server (5874 pictures at 96x96 and 128x192), a plane by less than 1.
BLANK = 5.0
GROWTH_MB = 0.05  # of the size after the warm-up, over the rest of the stream
GROWTH_FLOOR_MB = 8.0
STALL = 3.0  # times the chunks of that minute; on a machine that does other work they may be slow for a while
WINDOW = 12  # samples
MB = 1e6

Sample = dict[str, float]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", default="longlive", choices=sorted(SPECS))
    parser.add_argument("--minutes", type=float, default=20.0, help="length of the stream")
    parser.add_argument("--home", type=Path, required=True, help="where engines are, or are exported to")
    parser.add_argument("--change-every", type=float, default=15.0, help="seconds between two new prompts")
    parser.add_argument("--size", type=size_option, default=(128, 192), help="HEIGHTxWIDTH of the pictures")
    add_out_option(parser)
    options = parser.parse_args()
    spec, size = SPECS[options.pipeline], options.size

    peer = PeerProcess(PeerOptions(height=size[0], width=size[1], fps=30, camera=False))
    try:
        demo_engines(options.home, spec, size)
        with gateway(home=options.home) as server:
            load_pipeline(server, spec.id, height=size[0], width=size[1])
            samples, record, metrics = stream(server, peer, spec, 60 * options.minutes, options.change_every)
    except (BenchmarkError, PeerError) as error:
        sys.exit(f"The benchmark failed: {error}")
    finally:
        peer.close()

    report = judge(spec, samples, record, metrics)
    settings = {
        "pipeline": spec.id,
        "minutes": options.minutes,
        "change_every_s": options.change_every,
        "size": "{}x{}".format(*size),
    }
    result = {"precision": "float32", "settings": settings, **report, "samples": samples}
    print(f"\n{write_result(options.out, 'endurance', result)}")
    for name, check in report["checks"].items():
        print(f"{'ok    ' if check['ok'] else 'FAILED'} {name}: {check['value']} (limit {check['limit']})")
    sys.exit(0 if all(check["ok"] for check in report["checks"].values()) else 1)


def stream(
    server: Server, peer: PeerProcess, spec: PipelineSpec, seconds: float, change_every_s: float
) -> tuple[list[Sample], StreamRecord, dict[str, Any]]:
    """Watch one stream; sizes on the way, what came, and the server's own numbers at the end.

    Each new prompt is one that the stream has not seen before. On a slow machine the stream goes on until the
    rotary end is passed, but not longer than twice the time.
    """
    prompts = new_prompts()
    peer.start_connecting(server.url, {"input_mode": TEXT, "prompts": next(prompts)})
    peer.wait_for_frames()
    started = time.monotonic()
    samples = []
    changes = 0
    with httpx.Client(base_url=server.url, timeout=30) as client:
        while (elapsed := time.monotonic() - started) < 2 * seconds:
            time.sleep(SAMPLE_PERIOD_S)
            if spec.supports_prompts and elapsed >= (changes + 1) * change_every_s:
                changes += 1
                peer.send({"prompts": next(prompts)})
            metrics = session_metrics(client)
            if elapsed >= seconds and latent_frames(spec, metrics) > spec_loop(spec).rope_positions:
                break
            samples.append(
                sizes(server) | {"time_s": time.monotonic() - started, "chunks": metrics["chunks"]}
            )
            print({name: round(value, 1) for name, value in samples[-1].items()}, flush=True)
        metrics = session_metrics(client)
    return samples, peer.disconnect(), metrics


def new_prompts(seed: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Values for the parameter `prompts`: all that the world knows in some order, and again."""
    scenes = [
        Scene(size, colour, shape, motion, background)
        for size, colour, shape, motion, background in itertools.product(
            RADII, COLOURS, SHAPES, MOTIONS, COLOURS
        )
        if colour != background
    ]
    random.Random(seed).shuffle(scenes)
    for scene in itertools.cycle(scenes):
        yield [{"text": scene.prompt, "weight": 1.0}]


def spec_loop(spec: PipelineSpec) -> LoopSpec:
    assert spec.loop is not None, "a pipeline without a loop has no rotary end"
    return spec.loop


def latent_frames(spec: PipelineSpec, metrics: Mapping[str, Any]) -> int:
    """Of the stream so far, at least."""
    return int(metrics["chunks"]) * spec_loop(spec).frames_per_chunk


def session_metrics(client: httpx.Client) -> dict[str, Any]:
    """The server's numbers of the only session. Raises BenchmarkError when it has ended."""
    sessions: dict[str, dict[str, Any]] = client.get("/api/v1/session/metrics").json()["sessions"]
    if len(sessions) != 1:
        raise BenchmarkError("The stream has ended by itself; the server's log says why.")
    return next(iter(sessions.values()))


def sizes(server: Server) -> Sample:
    """MB: what each process has for itself, by its role or model, and the server's files in /dev/shm.

    Pages of those files that a process has touched are in `shm_touched_mb`, not in the process's own size.
    """
    processes = processes_by_model(server)
    found = {}
    for name, process in processes.items():
        memory = process.memory_info()
        found[f"{name}_mb"] = (memory.rss - memory.shared) / MB
    files = [path.stat() for path in shared_files(processes.values())]
    found["shm_mb"] = sum(file.st_size for file in files) / MB
    return found | {"shm_touched_mb": sum(512 * file.st_blocks for file in files) / MB}


def shared_files(processes: Iterable[psutil.Process]) -> list[Path]:
    """Files in /dev/shm that these processes have mapped."""
    paths = {
        Path(mapping.path)
        for process in processes
        for mapping in process.memory_maps(grouped=True)
        if mapping.path.startswith("/dev/shm/")
    }
    return [path for path in paths if path.exists()]


def judge(
    spec: PipelineSpec, samples: Sequence[Sample], record: StreamRecord, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is to be said about the stream."""
    times = [received for _, received in record.received]
    gaps_ms = [1000 * (after - before) for before, after in itertools.pairwise(times)]
    seconds = times[-1] - times[0]
    blank = [when for when, spread in zip(times, record.spreads, strict=True) if spread < BLANK]
    checks = {
        "latent_frames_past_rotary_end": at_least(
            latent_frames(spec, metrics), spec_loop(spec).rope_positions
        ),
        "longest_gap_in_chunks": at_most(longest_gap_in_chunks(times, samples), STALL),
        "blank_pictures": at_most(len(blank), 0),
        "failed_chunks": at_most(metrics["failed_chunks"], 0),
        "problems_told": at_most(len(record.messages), 0),
    }
    growth = {}
    for name in samples[0]:
        if name.endswith("_mb"):
            growth[name] = grown([sample.get(name, 0.0) for sample in samples])
            if name == "shm_touched_mb":
                continue  # bounded by shm_mb: the allocator walks through its fixed files
            limit = max(GROWTH_FLOOR_MB, GROWTH_MB * growth[name]["from"])
            checks[f"growth_of_{name}"] = at_most(growth[name]["by"], limit)
    return {
        "checks": checks,
        "chunks": metrics["chunks"],
        "frames": len(times),
        "fps": round(len(times) / seconds, 2),
        "gap_ms": percentiles(gaps_ms, 50, 95, 99),
        "blank_at_s": [round(when - times[0], 2) for when in blank],
        "least_spread": round(min(record.spreads), 2),
        "sizes": growth,
    }


def longest_gap_in_chunks(times: Sequence[float], samples: Sequence[Sample]) -> float:
    """The longest time without a picture, over the mean time of a chunk then."""
    longest = 0.0
    for before, after in itertools.pairwise(times):
        end = next((i for i, s in enumerate(samples) if s["time_s"] >= after - times[0]), len(samples) - 1)
        first, last = samples[max(end - WINDOW, 0)], samples[max(end, 1)]
        chunks = last["chunks"] - first["chunks"]
        if chunks:  # else the gap is longer than the window, and the next ones are judged by it
            longest = max(longest, (after - before) * chunks / (last["time_s"] - first["time_s"]))
        elif after - before > last["time_s"] - first["time_s"]:
            return float("inf")
    return longest


def grown(values: Sequence[float]) -> dict[str, float]:
    """From which size, after the warm-up, and by how much until the end; least squares."""
    warm = values[round(WARM_UP * len(values)) :]
    slope = float(np.polyfit(range(len(warm)), warm, deg=1)[0]) if len(warm) > 1 else 0.0
    return {
        "from": round(warm[0], 1),
        "max": round(max(warm), 1),
        "by": round(slope * (len(warm) - 1), 2),
    }


def at_most(value: float, limit: float) -> dict[str, Any]:
    return {"value": round(value, 2), "limit": round(limit, 2), "ok": value <= limit}


def at_least(value: float, limit: float) -> dict[str, Any]:
    return {"value": round(value, 2), "limit": round(limit, 2), "ok": value >= limit}


if __name__ == "__main__":
    main()
