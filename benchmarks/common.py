"""What the benchmarks of the server share: servers on free ports, processes by role, options."""

import argparse
import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.results import REPOSITORY, add_out_option
from streaming.specs import PipelineSpec

START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 300.0


class BenchmarkError(RuntimeError):
    """The benchmark cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. pid: root of its process tree, None for a server that somebody else started."""

    url: str
    pid: int | None


@contextlib.contextmanager
def echo_server() -> Iterator[Server]:
    """The bare aiortc echo in a process of its own."""
    port = free_port()
    with _process([sys.executable, "-m", "benchmarks.echo_server", str(port)], port, {}) as server:
        yield server


@contextlib.contextmanager
def gateway(
    url: str | None = None,
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
    checkout: Path = REPOSITORY,
) -> Iterator[Server]:
    """Our server: the one at `url`, or a new one with `home` or an empty home of its own.

    env, python, checkout: further settings, the interpreter and the source of a new one
    """
    if url is not None:
        yield Server(url.rstrip("/"), None)
        return
    port = free_port()
    command = [python, "-m", "gateway", "-N", "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        if home is None:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wanstream-benchmark-")))
        # As in the echo: no STUN server, peers on one machine need none.
        own = {"WANSTREAM_HOME": str(home), "WANSTREAM_ICE_SERVERS": "[]", "WANSTREAM_DEMO": "off"}
        yield stack.enter_context(_process(command, port, own | dict(env or {}), checkout))


def load_pipeline(server: Server, pipeline: str = "passthrough", **parameters: object) -> dict[str, Any]:
    """Load a pipeline and wait for it; its status then. Raises BenchmarkError."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        body = {"pipeline_id": pipeline, "load_params": parameters}
        answer = client.post("/api/v1/pipeline/load", json=body)
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        status: dict[str, Any] = answer.json()
        while answer.status_code == 200 and time.monotonic() < deadline:
            status = client.get("/api/v1/pipeline/status").json()
            if status["status"] == "loaded":
                return status
            if status["status"] == "error":
                break
            time.sleep(0.05)
    raise BenchmarkError(f"The pipeline {pipeline} was not loaded: {status}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody used a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(
    command: Sequence[str], port: int, env: Mapping[str, str], directory: Path = REPOSITORY
) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=directory, env=os.environ | env, stdout=log, stderr=log)
        try:
            server = Server(f"http://127.0.0.1:{port}", process.pid)
            try:
                _wait_until_healthy(process, server.url)
                yield server
            except BaseException:
                log.seek(0)
                sys.stderr.write(
                    f"--- log of {shlex.join(command)}\n{log.read()[-8000:].decode(errors='replace')}"
                )
                raise
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"The server ended with exit code {process.returncode} before it was ready.")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise BenchmarkError(f"The server did not answer within {START_TIMEOUT_S:.0f} s.")


def processes_by_role(server: Server) -> dict[str, list[psutil.Process]]:
    """The server's processes: `gateway`, `triton` and `stub` (Triton's Python models); none without a pid."""
    roles: dict[str, list[psutil.Process]] = {"gateway": [], "triton": [], "stub": []}
    if server.pid is None:
        return roles
    root = psutil.Process(server.pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            name = process.name()
            role = "stub" if "python_backend" in name else "triton" if "tritonserver" in name else "gateway"
            roles[role].append(process)
    return roles


def processes_by_model(server: Server) -> dict[str, psutil.Process]:
    """The server's processes by name: `gateway`, `triton`, and each model's own one; none without a pid."""
    groups = processes_by_role(server)
    named = {"gateway": groups["gateway"][0]} if groups["gateway"] else {}
    named |= {"triton": groups["triton"][0]} if groups["triton"] else {}
    for process in groups["stub"]:
        with contextlib.suppress(psutil.NoSuchProcess):
            source = next((part for part in process.cmdline() if part.endswith("/model.py")), None)
            if source is not None:  # <repository>/<model>/<version>/model.py
                named[Path(source).parts[-3]] = process
    return named


def demo_engines(home: Path, spec: PipelineSpec, size: tuple[int, int]) -> None:
    """Export a pipeline's demonstration engines for pictures of this size, unless they are below `home`.

    Raises BenchmarkError with what the export said.
    """
    if spec.loop is None:
        return
    command = [sys.executable, "-m", "export", spec.id, "--demo", "--home", str(home)]
    command += ["--size", "{}x{}".format(*size)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"Engines of {spec.id} could not be exported: {done.stderr[-2000:]}")


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system CPU time that living processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def rss_bytes(processes: Sequence[psutil.Process]) -> int:
    """Resident memory; pages shared between processes count in each."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def machine_busy_seconds() -> float:
    """CPU time that all processes of the machine have used, to see what else ran."""
    times = psutil.cpu_times()
    return float(
        times.user + times.nice + times.system + getattr(times, "irq", 0) + getattr(times, "softirq", 0)
    )


def percentiles(values: Sequence[float], *ranks: int) -> dict[str, float | None]:
    """{"p50": ...} for each rank and the largest value; None where there is no value."""
    result: dict[str, float | None] = dict.fromkeys((*(f"p{rank}" for rank in ranks), "max"))
    if values:
        result = {f"p{rank}": round(float(np.percentile(values, rank)), 2) for rank in ranks}
        result["max"] = round(max(values), 2)
    return result


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark that streams: what the peers send, and where the result goes."""
    parser.add_argument("--size", type=_size, default=(512, 512), help="WIDTHxHEIGHT of the peers' video")
    parser.add_argument("--fps", type=int, default=30, help="frame rate of the peers' video")
    add_out_option(parser)


def size_option(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH in pixels, as `wanstream-export` takes it."""
    height, width = (int(part) for part in text.lower().split("x"))
    return height, width


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return height, width
