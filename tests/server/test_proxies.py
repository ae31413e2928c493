"""Servers under the proxy variables of an office or a desktop, and a proxy that sees what reaches it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.local_http import LocalHttp
from tests.server.client import Answer
from tests.server.gateway_calls import load
from tests.server.peer import Peer
from tests.server.processes import ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

LORA = {"url": "https://huggingface.co/a/b/resolve/main/style.safetensors"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy() -> AsyncIterator[LocalHttp]:
    """Answers 404 to everything and remembers it."""
    async with LocalHttp() as proxy:
        yield proxy


async def started(home: Path, env: dict[str, str], *options: str) -> ServerProcess:
    return await asyncio.to_thread(ServerProcess, "gateway", home, env, ["-N", *options])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(proxy: LocalHttp, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """With an embedded Triton, and everything to be asked through a proxy."""
    env = dict.fromkeys(
        ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"), f"http://user:secret@127.0.0.1:{proxy.port}"
    )
    server = await started(tmp_path_factory.mktemp("office"), env)
    yield server
    await asyncio.to_thread(server.stop)


async def download(server: ServerProcess) -> Answer:
    return await server.client.call("POST", "/api/v1/loras", json_body=LORA)


async def test_the_embedded_triton_is_asked_directly_and_the_world_through_the_proxy(
    office: ServerProcess, proxy: LocalHttp
) -> None:
    await load(office.client, "passthrough")
    async with Peer(office.client) as peer:
        await peer.connect({"input_mode": "text"})
    inside = list(proxy.requests)
    answer = await download(office)

    assert inside == []
    assert answer.status == 500, answer.text
    assert [(r.method, r.target) for r in proxy.requests] == [("CONNECT", "huggingface.co:443")]
    assert f"the proxy http://127.0.0.1:{proxy.port} refuses it (404" in answer.text
    assert "secret" not in answer.text + office.log


async def test_a_local_triton_is_asked_directly_and_a_proxy_of_an_unknown_kind_is_a_sentence(
    office: ServerProcess, proxy: LocalHttp, tmp_path: Path
) -> None:
    """As desktops set it. The external Triton is the embedded one of the other server."""
    asked = len(proxy.requests)
    await office.client.call("POST", "/api/v1/pipeline/unload")
    health: dict[str, Any] = (await office.client.call("GET", "/health")).json()
    env = {"ALL_PROXY": f"socks://127.0.0.1:{proxy.port}", "http_proxy": f"127.0.0.1:{proxy.port}"}
    metrics = f"http://127.0.0.1:{office.port}/metrics"
    options = ("--triton-url", health["triton"]["url"], "--triton-metrics-url", metrics)
    desktop = await started(tmp_path, env, *options)
    try:
        await load(desktop.client, "passthrough")
        hardware = await desktop.client.call("GET", "/api/v1/hardware/info")
        answer = await download(desktop)
    finally:
        await asyncio.to_thread(desktop.stop)

    assert hardware.status == 200
    assert len(proxy.requests) == asked
    assert "Traceback" not in desktop.log
    for text in (desktop.log, answer.text):
        assert f"the proxy socks://127.0.0.1:{proxy.port} of the environment cannot be used" in text
        assert "no_proxy" in text
