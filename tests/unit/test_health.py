"""The health check of the gateway's image."""

import asyncio
import subprocess
import sys

import pytest

from tests.local_http import LocalHttp, Reply, Request


class Server(LocalHttp):
    status = 200

    async def answer(self, request: Request) -> Reply:
        return Reply(self.status if request.path == "/health" else 404)


@pytest.mark.parametrize(
    "form", [["--port", "{}"], ["--host=127.0.0.1", "--port={}"], ["--port", "1", "--port", "{}"]]
)
async def test_the_server_is_asked_where_its_arguments_say(
    form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with Server() as server:
        arguments = ["wanstream", "--no-browser", *(part.format(server.port) for part in form)]
        codes = []
        for server.status in (200, 503):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway.health", *arguments, stderr=subprocess.DEVNULL
            )
            codes.append(await process.wait())

    assert codes == [0, 1]
