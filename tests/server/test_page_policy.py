"""The pages' Content-Security-Policy in Chromium: they keep to it, and strangers cannot frame them."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.async_api import Browser, Page, expect

from tests.server.browser import field, opened, start
from tests.server.double_process import DoubleProcess

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


def console(page: Page) -> list[str]:
    """What the page's console says from now on; violations are among it."""
    lines: list[str] = []
    page.on("console", lambda message: lines.append(message.text))
    return lines


async def test_the_page_streams_within_its_policy(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, "about:blank") as page:
        said = console(page)
        answer = await page.goto(double.url)

        await start(page, "LongLive")
        await field(page, "Prompt 1").fill("a blue box")
        await field(page, "Prompt 1").press("Enter")
        async with page.expect_download():
            await page.get_by_role("button", name="Save a snapshot").click()

        assert answer is not None
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert said == []


async def test_the_api_s_page_works_within_its_policy(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, "about:blank") as page:
        said = console(page)

        await page.goto(f"{double.url}/docs")

        await expect(page.locator(".opblock").first).to_be_visible()
        assert said == []


async def test_the_page_of_osc_addresses_copies_within_its_policy(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, "about:blank") as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=double.url)
        said = console(page)
        await page.goto(f"{double.url}/api/v1/osc/docs")

        await page.get_by_role("button", name="/scope/noise_scale").first.click()

        await expect(page.locator("button.copied")).to_have_text("/scope/noise_scale")
        assert await page.evaluate("navigator.clipboard.readText()") == "/scope/noise_scale"
        assert await page.locator("body").evaluate("body => getComputedStyle(body).margin") != "8px"
        assert said == []


@contextmanager
def site(address: str, markup: str) -> Iterator[str]:
    """A web server whose every page is `markup`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(markup.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_port}/"
        server.shutdown()


async def test_only_pages_of_the_same_machine_may_frame_the_page(
    browser: Browser, double: DoubleProcess, tmp_path: Path
) -> None:
    markup = f'<iframe src="{double.url}/"></iframe>'
    from_disk = tmp_path / "frame.html"
    from_disk.write_text(markup)
    heading = 'h1:has-text("wanstream")'

    with site("127.0.0.1", markup) as local, site("127.0.0.2", markup) as stranger:
        for url in (local, from_disk.as_uri()):
            async with opened(browser, url) as page:
                await expect(page.frame_locator("iframe").locator(heading)).to_be_visible()
        async with opened(browser, "about:blank") as page:
            said = console(page)
            await page.goto(stranger)

            await expect(page.frame_locator("iframe").locator(heading)).to_have_count(0)
            assert "frame-ancestors" in "".join(said)
