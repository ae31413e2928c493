"""The server below a path of somebody else's address."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from gateway.config import Config
from streaming.errors import WanstreamError
from tests.server.browser import opened, start
from tests.server.double_process import DoubleProcess
from tests.server.test_locked import PNG

PROXY, STRANGER = "127.0.0.2", "127.0.0.1"
TOKEN = "correct-horse"

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """At /video, behind a proxy of this machine that may also take that path away."""
    env = {"WANSTREAM_BASE_PATH": "/video", "WANSTREAM_TRUSTED_PROXIES": PROXY}
    process = DoubleProcess(tmp_path_factory.mktemp("below"), env)
    yield process
    process.stop()


def ask(server: DoubleProcess, path: str, source: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a GET from an address of this machine."""
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", server.port), timeout=5, source_address=(source, 0)) as s:
        s.sendall("\r\n".join(lines).encode())
        head, _, body = s.makefile("rb").read().partition(b"\r\n\r\n")
    first, *rest = head.decode().splitlines()
    fields = (line.partition(":") for line in rest)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, body


async def test_the_page_streams_below_the_path(browser: Browser, below: DoubleProcess) -> None:
    async with opened(browser, f"{below.url}/video") as page:
        below.client.request("POST", "/video/api/v1/assets?filename=a.png", body=PNG)
        await start(page, "LongLive")

        await expect(page.get_by_role("link", name="API")).to_have_attribute("href", "docs")
        shown = await page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        address = page.url

    assert address == f"{below.url}/video/"
    assert len(shown) > 10
    assert [name for name in shown if not name.startswith((f"{below.url}/video/", "blob:", "data:"))] == []


@pytest.mark.parametrize("path", ["/health", "/video/health"])
async def test_probes_need_not_know_the_path(path: str, below: DoubleProcess) -> None:
    assert below.client.request("GET", path).status == 200


@pytest.mark.parametrize("path", ["/videos/health", "/video/video/health", "/other/health"])
async def test_other_paths_are_not_found(path: str, below: DoubleProcess) -> None:
    assert below.client.request("GET", path).status == 404


@pytest.mark.parametrize(
    ("source", "header", "root"),
    [
        (PROXY, "X-Forwarded-Prefix: /live/a", "/live/a"),
        (PROXY, "X-Forwarded-Prefix: /evil, /live/", "/live"),
        (PROXY, "X-Forwarded-Prefix: //evil.example", "/"),
        (PROXY, "X-Forwarded-Prefix: /a?b", "/"),
        (STRANGER, "X-Forwarded-Prefix: /live", "/"),
    ],
)
async def test_only_a_trusted_proxy_tells_which_path_it_took_away(
    source: str, header: str, root: str, below: DoubleProcess
) -> None:
    status, _, body = ask(below, "/openapi.json", source, header)

    assert status == 200
    assert json.loads(body)["servers"] == [{"url": root}]


async def test_addresses_in_answers_have_the_path(below: DoubleProcess) -> None:
    below_path = ask(below, "/video/docs/", STRANGER)[1]["location"]
    taken_away = ask(below, "/docs/", PROXY, "X-Forwarded-Prefix: /live")[1]["location"]
    none = ask(below, "/docs/", STRANGER)[1]["location"]

    assert (below_path, taken_away, none) == ("/video/docs", "/live/docs", "/docs")


async def test_the_token_s_cookie_is_sent_for_this_path_alone(tmp_path: Path) -> None:
    server = DoubleProcess(tmp_path, {"WANSTREAM_BASE_PATH": "/video/", "WANSTREAM_TOKEN": TOKEN})
    refused = server.client.request("GET", "/video/").status
    cookie = server.client.request("GET", f"/video/?token={TOKEN}").headers["set-cookie"]
    server.stop()

    assert refused == 401
    assert "Path=/video;" in f"{cookie};"


@pytest.mark.parametrize("path", ["video", "/video?x", "/a/../b", "https://example.org/video", "/a//b", "/ä"])
async def test_a_base_that_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(WanstreamError, match="must be a path such as /video"):
        Config.from_env({"WANSTREAM_BASE_PATH": path})
