"""One measurement of the latency suite: a pipeline in one mode and size, engines served or in process."""

import contextlib
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from aiortc.mediastreams import VIDEO_TIME_BASE
from av import VideoFrame
from tritonclient.grpc import InferenceServerClient

from benchmarks.chunk_times import (
    ChunkSample,
    EngineTimes,
    first_frame_of_chunk,
    gaps_ms,
    new_samples,
    overhead,
    split,
)
from benchmarks.common import (
    BenchmarkError,
    Server,
    cpu_seconds,
    machine_busy_seconds,
    percentiles,
    processes_by_model,
)
from benchmarks.peer import PeerError, PeerOptions, PeerProcess, StreamRecord
from streaming.specs import TEXT, VIDEO, PipelineSpec

POLL_S = 0.1
SETTLE_S = 2.0  # after the first picture
ANSWER_S = 60.0
CHANGED = re.compile(r"Chunk (\d+) changes [\w, ]*prompts")
MB = 1e6

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured. size: height and width in pixels; seconds: of the steady stream."""

    spec: PipelineSpec
    mode: str
    size: tuple[int, int]
    seconds: float
    changes: int  # of the prompt
    connections: int  # of which the first has a prompt that no one has sent before

    @property
    def denoise_steps(self) -> int:
        return len(self.spec.denoising_steps or ())

    def parameters(self, text: str) -> dict[str, Any]:
        if not self.spec.supports_prompts:
            return {"input_mode": self.mode}
        return {"input_mode": self.mode, "prompts": [{"text": text, "weight": 1.0}]}


@dataclass(slots=True)
class Window:
    """What was seen of a server over some seconds of a stream."""

    samples: list[ChunkSample] = field(default_factory=list)
    seconds: float = 0.0
    chunks: int = 0
    engines: dict[str, EngineTimes] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    machine_s: float = 0.0


def measure_served(server: Server, work: Workload, triton_url: str | None) -> Row:
    """Measure a server that has the pipeline loaded. triton_url: host:port of Triton's gRPC, or None."""
    height, width = work.size
    peer = PeerProcess(PeerOptions(height=height, width=width, fps=30, camera=work.mode == VIDEO))
    try:
        first = time_to_first_frame(server, peer, work)
        peer.start_connecting(server.url, work.parameters("a red ball"))
        peer.wait_for_frames()
        with httpx.Client(base_url=server.url, timeout=30) as client, engine_counters(triton_url) as counters:
            time.sleep(SETTLE_S)
            began = time.monotonic()
            window = watch(server, client, counters, work.seconds)
            ended = time.monotonic()
            changes = change_prompts(client, peer, work)
            metrics = only_session(client)
            memory = memory_mb(server)
        record = peer.disconnect()
    except PeerError as error:
        raise BenchmarkError(str(error)) from error
    finally:
        peer.close()
    times = [t for _, t in record.received if began <= t < ended]
    return {
        "placement": "served",
        "first_frame_ms": first,
        "fps": round(len(times) / (ended - began), 2),
        "gap_ms": percentiles(gaps_ms(times), 50, 95, 99),
        **chunk_numbers(work, window),
        "prompt_to_picture_ms": delays(work, changes, record, metrics),
        "video_encode_ms_per_frame": video_encode_ms(record),
        "failed_chunks": metrics["failed_chunks"],
        "frames_dropped": metrics["frames_dropped"],
        **memory,
        **cpu_numbers(window, len(times)),
    }


def time_to_first_frame(server: Server, peer: PeerProcess, work: Workload) -> dict[str, float]:
    """ms from sending the offer to the first decoded picture, the prompt being new, and known."""
    text = f"a prompt of {time.time_ns()}"
    taken = []
    for _ in range(max(work.connections, 2)):
        peer.start_connecting(server.url, work.parameters(text))
        taken.append(round(1000 * peer.wait_for_frames(), 1))
        peer.disconnect()
        time.sleep(0.5)  # the server notices and frees the session
    return {"new_prompt": taken[0], "known_prompt": statistics.median(taken[1:])}


def watch(server: Server, client: httpx.Client, counters: "Counters | None", seconds: float) -> Window:
    """Poll a stream's metrics, and read counters and CPU clocks before and after.

    Both times just after a chunk was finished: the engines' calls then belong to the chunks that are counted.
    """
    processes = processes_by_model(server)
    window = Window()
    known = [next_chunk(client, next_chunk(client, ChunkSample(-1, 0.0, {})))]
    engines, cpu, machine = read_counters(counters), read_cpu(processes), machine_busy_seconds()
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        known.append(next_chunk(client, known[-1]))
    after = read_counters(counters)
    window.samples = known[1:]
    window.seconds = time.monotonic() - began
    window.chunks = known[-1].number - known[0].number
    window.engines = {name: times.since(engines.get(name, EngineTimes())) for name, times in after.items()}
    window.cpu_s = {name: used - cpu[name] for name, used in read_cpu(processes).items()}
    window.machine_s = machine_busy_seconds() - machine
    return window


def next_chunk(client: httpx.Client, last: ChunkSample) -> ChunkSample:
    """Wait for a chunk after `last`. Raises BenchmarkError when none comes."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        if found := new_samples([last], only_session(client)):
            return found[0]
        time.sleep(POLL_S)
    raise BenchmarkError(f"No chunk was finished within {ANSWER_S:.0f} s.")


def chunk_numbers(work: Workload, window: Window) -> Row:
    """What a window says about chunks."""
    chunk_times = [sample.chunk_ms for sample in window.samples]
    numbers: Row = {
        "chunks": window.chunks,
        "chunk_ms": percentiles(chunk_times, 50, 95, 99),
        "split_ms": split(window.samples, work.denoise_steps),
        "each_chunk_ms": [
            {"chunk": sample.chunk_ms, **{k: round(v, 1) for k, v in sample.timings_ms.items()}}
            for sample in window.samples
        ],
    }
    called = {name: times for name, times in window.engines.items() if times.calls and name != work.spec.id}
    if not window.chunks or not window.engines or work.spec.loop is None:
        return numbers
    if not called:  # engines in the pipeline's process, where each call is a step
        steps_ms = statistics.fmean(sample.steps_ms for sample in window.samples)
        return numbers | {"overhead": overhead(window.samples, steps_ms)}
    per_chunk = {name: times.work_ms / window.chunks for name, times in called.items()}
    return numbers | {
        "overhead": overhead(window.samples, sum(per_chunk.values())),
        "engines": {
            name: {
                "calls_per_chunk": round(times.calls / window.chunks, 2),
                "work_ms_per_call": round(times.work_ms / times.calls, 2),
                "transfer_ms_per_call": round(
                    (times.input_ms + times.output_ms + times.queue_ms) / times.calls, 2
                ),
            }
            for name, times in called.items()
        },
    }


def cpu_numbers(window: Window, frames: int) -> Row:
    """CPU of the server's processes, and of everything else on the machine while it was measured."""
    if not window.cpu_s:
        return {}
    ours = sum(window.cpu_s.values())
    return {
        "cpu_ms_per_frame": {
            k: round(1000 * s / max(frames, 1), 2) for k, s in window.cpu_s.items() if s > 0
        },
        "cpu_cores": round(ours / window.seconds, 2),
        "other_work_cores": round((window.machine_s - ours) / window.seconds, 2),
    }


def change_prompts(client: httpx.Client, peer: PeerProcess, work: Workload) -> list[tuple[float, int]]:
    """Change the prompt several times; (when it was sent, number of the chunk that it changed) of each."""
    if not work.spec.supports_prompts:
        return []
    changes = []
    for turn in range(work.changes):
        offset = client.get("/api/v1/logs/tail?lines=1").json()["offset"]
        chunk_s = only_session(client)["last_chunk_ms"] / 1000
        time.sleep(chunk_s * (1 + (turn + 0.5) / work.changes))  # at any point of a chunk
        sent = peer.send({"prompts": [{"text": f"a ball of colour {turn % 2}", "weight": 1.0}]})
        changes.append((sent, changed_chunk(client, offset)))
        time.sleep(2 * chunk_s)
    return changes


def changed_chunk(client: httpx.Client, offset: int) -> int:
    """Number of the chunk that the log, after `offset`, says took a new prompt. Raises BenchmarkError."""
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        tail = client.get(f"/api/v1/logs/tail?lines=200&since_offset={offset}").json()
        for line in tail["lines"]:
            if found := CHANGED.search(line):
                return int(found.group(1))
        time.sleep(POLL_S)
    raise BenchmarkError("The server's log names no chunk that took the new prompt.")


def delays(
    work: Workload, changes: Sequence[tuple[float, int]], record: StreamRecord, metrics: Mapping[str, Any]
) -> dict[str, float | None] | None:
    """ms from sending a prompt to the first picture of the first chunk under it; None if pictures were lost.

    Pictures are counted: that of a chunk is known when none is missing.
    """
    if not changes or work.spec.loop is None or metrics["frames_dropped"]:
        return None
    found = []
    for number, (sent, chunk) in enumerate(changes):
        resets = number if work.mode == VIDEO else 0  # a new prompt is one there (pipelines-common.md 6)
        index = first_frame_of_chunk(work.spec.loop, work.mode, chunk, resets)
        if index < len(record.received):
            found.append(1000 * (record.received[index][1] - sent))
    return percentiles(found, 50)


def video_encode_ms(record: StreamRecord) -> float | None:
    """CPU ms of the server's VP8 encoder for a picture of this stream, measured in this process."""
    from gateway.config import Bitrate
    from gateway.stream.encoding.codecs import VideoEncoder
    from gateway.stream.encoding.rate import RateLimits

    if not record.samples:
        return None
    encoder, limits, times = VideoEncoder("VP8"), RateLimits(Bitrate()), []
    for number, image in enumerate(record.samples):
        frame = VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = number * 6000, VIDEO_TIME_BASE
        began = time.process_time()
        encoder.encode(frame.reformat(format="yuv420p"), limits.default(frame.width, frame.height))
        times.append(1000 * (time.process_time() - began))
    return round(statistics.median(times), 2)


class Counters:
    """Triton's counters of its models."""

    def __init__(self, url: str) -> None:
        self._client = InferenceServerClient(url)

    def read(self) -> dict[str, EngineTimes]:
        statistics_ = self._client.get_inference_statistics(as_json=True)
        return {model["name"]: _engine_times(model) for model in statistics_.get("model_stats", [])}

    def close(self) -> None:
        self._client.close()


def _engine_times(model: Mapping[str, Any]) -> EngineTimes:
    stats = model.get("inference_stats", {})

    def ms(name: str) -> float:
        return int(stats.get(name, {}).get("ns", 0)) / 1e6

    return EngineTimes(
        int(stats.get("success", {}).get("count", 0)),
        ms("queue"),
        ms("compute_input"),
        ms("compute_infer"),
        ms("compute_output"),
    )


@contextlib.contextmanager
def engine_counters(url: str | None) -> Iterator[Counters | None]:
    """Triton's counters at `url`, host:port; None without one."""
    if url is None:
        yield None
        return
    counters = Counters(url)
    try:
        yield counters
    finally:
        counters.close()


def read_counters(counters: Counters | None) -> dict[str, EngineTimes]:
    return {} if counters is None else counters.read()


def read_cpu(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    return {name: cpu_seconds([process]) for name, process in processes.items()}


def memory_mb(server: Server) -> dict[str, dict[str, float]]:
    """Of each process: all that is resident, that without pages it shares, and with its part of these."""
    processes = processes_by_model(server)
    sizes = {name: process.memory_full_info() for name, process in processes.items()}
    return {
        "pss_mb": {name: round(size.pss / MB, 1) for name, size in sizes.items()},
        "rss_mb": {name: round(size.rss / MB, 1) for name, size in sizes.items()},
        "private_mb": {name: round((size.rss - size.shared) / MB, 1) for name, size in sizes.items()},
    }


def only_session(client: httpx.Client) -> dict[str, Any]:
    """Metrics of the newest session. Raises BenchmarkError when there is none."""
    sessions: dict[str, dict[str, Any]] = client.get("/api/v1/session/metrics").json()["sessions"]
    if not sessions:
        raise BenchmarkError("The stream has ended by itself; the server's log says why.")
    return list(sessions.values())[-1]


def measure_in_process(engines: Path, work: Workload, threads: int) -> Row:
    """Run the pipeline's loop here, on its engine set in `engines`, with ONNX Runtime in this process."""
    import numpy as np
    import torch

    from streaming.engines.engine import Engine
    from streaming.engines.served import InProcess, open_model
    from streaming.triton.model_pipeline import ModelPipeline

    torch.set_num_threads(1)
    clock: dict[str, list[float]] = {}
    place = InProcess(engines / "models", threads)

    def timed(name: str, **facts: object) -> Engine:
        return TimedEngine(place(name, **facts), clock.setdefault(name, []))

    directory = set_of(engines, work.spec)
    pipeline = ModelPipeline(work.spec, open_model(directory, work.spec, timed, work.size), 42)
    pipeline.warm_up()
    for times in clock.values():
        times.clear()
    stream, samples, frames = pipeline.open_stream(), [], 0
    pictures = np.random.default_rng(0).integers(
        0, 255, (work.spec.input_frames_per_chunk, *work.size, 3), np.uint8
    )
    began = time.monotonic()
    while time.monotonic() - began < work.seconds:
        chunk_began = time.perf_counter()
        video = pictures if work.mode == VIDEO else None
        parts = list(stream.next_chunk(work.parameters("a red ball"), video, lambda: False))
        frames += sum(len(images) for images, _ in parts)
        elapsed = 1000 * (time.perf_counter() - chunk_began)
        samples.append(ChunkSample(len(samples), round(elapsed, 2), parts[-1][1].get("timings_ms", {})))
    window = Window(
        samples=samples,
        seconds=time.monotonic() - began,
        chunks=len(samples),
        engines={name: EngineTimes(len(t), work_ms=sum(t)) for name, t in clock.items()},
    )
    memory = psutil.Process().memory_info()
    return {
        "placement": "in_process",
        "fps": round(frames / window.seconds, 2),
        **chunk_numbers(work, window),
        "rss_mb": {"process": round(memory.rss / MB, 1)},
        "private_mb": {"process": round((memory.rss - memory.shared) / MB, 1)},
    }


class TimedEngine:
    """An engine whose calls are timed, in ms."""

    def __init__(self, engine: Any, times: list[float]) -> None:
        self._engine, self._times = engine, times
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        began = time.perf_counter()
        results: dict[str, Any] = self._engine.run(inputs, outputs)
        self._times.append(1000 * (time.perf_counter() - began))
        return results


def set_of(engines: Path, spec: PipelineSpec) -> Path:
    """The pipeline's engine set. Raises BenchmarkError."""
    from streaming.engines.engine_set import read_engine_set

    for directory in sorted((engines / "sets").iterdir()):
        if read_engine_set(directory).pipeline == spec.id:
            return directory
    raise BenchmarkError(f"There is no engine set of {spec.id} in {engines}.")


MODES = (TEXT, VIDEO)
