"""The health check of Triton's image."""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from streaming.triton.health import gpu_problem
from tests.local_http import LocalHttp, Reply, Request


class Triton(LocalHttp):
    """dead: models that are loaded and have no process. going: those that are gone at a second look."""

    ready = 200
    dead: tuple[str, ...] = ()
    going: tuple[str, ...] = ()

    async def answer(self, request: Request) -> Reply:
        if request.path == "/v2/health/ready":
            return Reply(self.ready)
        if request.path == "/v2/repository/index":
            assert request.method == "POST"
            assert json.loads(request.body) == {"ready": True}
            seen = sum(each.path == request.path for each in self.requests)
            names = ["passthrough", *self.dead, *(self.going if seen == 1 else ())]
            return Reply(body=json.dumps([{"name": name, "state": "READY"} for name in names]).encode())
        name = request.path.removeprefix("/v2/models/").removesuffix("/ready")
        return Reply(400 if name in (*self.dead, *self.going) else 200)


async def check(port: int) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streaming.triton.health", str(port)), stderr=subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_each_loaded_model_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with Triton() as triton:
        well = await check(triton.port)
        asked = [request.path for request in triton.requests]
        triton.dead = ("longlive",)
        dead = await check(triton.port)
        triton.ready = 400
        not_ready = await check(triton.port)
    gone = await check(triton.port)

    assert well == (0, "")
    assert asked == ["/v2/health/ready", "/v2/repository/index", "/v2/models/passthrough/ready"]
    assert dead == (1, "Model 'longlive' is loaded and not ready: its process may have died\n")
    assert not_ready == (1, f"Triton at port {triton.port} is not ready\n")
    assert gone[0] == 1
    assert f"No answer from Triton at port {triton.port}" in gone[1]


async def test_a_model_that_is_being_unloaded_is_no_problem() -> None:
    async with Triton() as triton:
        triton.going = ("longlive",)
        result = await check(triton.port)

    assert result == (0, "")


def test_a_device_file_that_cannot_be_opened_is_a_lost_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket in its place: the kernel refuses to open it, as it does after a reload of systemd's units."""
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    none = gpu_problem(tmp_path)
    with socket.socket(socket.AF_UNIX) as device:
        device.bind("nvidia0")
        lost = gpu_problem(tmp_path)

    assert none is None
    assert lost is not None
    assert lost.startswith(f"The GPU is lost: {tmp_path / 'nvidia0'} cannot be opened")
    assert "Restart the container" in lost
