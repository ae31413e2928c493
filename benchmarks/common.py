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

import httpx
import numpy as np
import psutil

from benchmarks.results import REPOSITORY, add_out_option

START_TIMEOUT_S = 60.0


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
def gateway(url: str | None = None) -> Iterator[Server]:
    """Our server with `passthrough` loaded: the one at `url`, or a new one with an empty home of its own."""
    if url is not None:
        server = Server(url.rstrip("/"), None)
        load_passthrough(server)
        yield server
        return
    port = free_port()
    command = [sys.executable, "-m", "gateway", "-N", "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="wanstream-benchmark-"))
        # As in the echo: no STUN server, peers on one machine need none.
        env = {"WANSTREAM_HOME": home, "WANSTREAM_ICE_SERVERS": "[]"}
        server = stack.enter_context(_process(command, port, env))
        load_passthrough(server)
        yield server


def load_passthrough(server: Server) -> None:
    """Load the pipeline and wait for it. Raises BenchmarkError."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        answer = client.post("/api/v1/pipeline/load", json={"pipeline_id": "passthrough"})
        deadline = time.monotonic() + START_TIMEOUT_S
        status = answer.json()
        while answer.status_code == 200 and time.monotonic() < deadline:
            status = client.get("/api/v1/pipeline/status").json()
            if status["status"] == "loaded":
                return
            if status["status"] == "error":
                break
            time.sleep(0.1)
    raise BenchmarkError(f"The pipeline passthrough was not loaded: {status}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody used a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(command: Sequence[str], port: int, env: Mapping[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | env, stdout=log, stderr=log)
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


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return height, width
