"""A stream over a network narrower than the configured bitrates: real server, Chromium, shaped link."""

import os
import shlex
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.server.browser import ALLOW_CAMERA, FAKE_CAMERA, chromium, notice, opened, start
from tests.server.conftest import GATEWAY
from tests.server.narrow_link import NarrowLink, narrow_link, run_where_we_are_root
from tests.server.peer import until
from tests.server.processes import ServerProcess

COUNT_PICTURES = """() => {
    window.pictures = 0;
    const video = document.querySelector("#output");
    const count = () => { window.pictures += 1; video.requestVideoFrameCallback(count); };
    video.requestVideoFrameCallback(count);
}"""


def write_busy_video(path: Path, height: int = 480, width: int = 640, frames: int = 30) -> None:
    """A YUV4MPEG2 file that takes all the bits that an encoder may spend: blocks that move at random."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F30:1 Ip A1:1 C420jpeg\n".encode())
        for _ in range(frames):
            blocks = rng.integers(0, 256, (height // 16, width // 16), dtype=np.uint8)
            file.write(b"FRAME\n" + np.kron(blocks, np.ones((16, 16), np.uint8)).tobytes())
            file.write(np.full(height * width // 2, 128, np.uint8).tobytes())


@pytest.fixture
def link() -> Iterator[NarrowLink]:
    with narrow_link() as link:
        yield link


@pytest_asyncio.fixture
async def page(link: NarrowLink, tmp_path: Path) -> AsyncIterator[Page]:
    """The page at the far end of the link, with a camera that shows a lot."""
    server = ServerProcess(GATEWAY, tmp_path / "home", options=["-N", "--host", "0.0.0.0"])
    try:
        write_busy_video(tmp_path / "busy.y4m")
        wrapper = tmp_path / "chromium"
        browser = shutil.which("chromium") or "chromium"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(link.inside(browser))} "$@"\n')
        wrapper.chmod(0o755)
        url = f"http://{link.address}:{server.port}"
        arguments = (
            FAKE_CAMERA,
            ALLOW_CAMERA,
            f"--use-file-for-fake-video-capture={tmp_path / 'busy.y4m'}",
            f"--unsafely-treat-insecure-origin-as-secure={url}",
        )
        async with chromium(*arguments, wrapper=wrapper) as browser, opened(browser, url) as page:
            yield page
    finally:
        server.stop()


async def more_pictures(page: Page, count: int, within_s: float, when: str) -> None:
    """Wait until the page has shown `count` more pictures."""
    before = await page.evaluate("window.pictures")

    async def shown() -> bool:
        return bool(await page.evaluate("window.pictures") >= before + count)

    await until(shown, within_s, f"{count} pictures {when}")


if os.geteuid() == 0:

    async def test_the_picture_moves_on_a_link_below_the_configured_floor(
        page: Page, link: NarrowLink
    ) -> None:
        await start(page)
        await page.evaluate(COUNT_PICTURES)
        await more_pictures(page, 60, 30, "without a limit")

        link.limit(2_000_000)
        await more_pictures(page, 60, 30, "at 2 Mbit/s")
        link.limit(500_000)
        await more_pictures(page, 60, 30, "at 500 kbit/s")
        link.limit(40_000)  # nothing gets through that: the page has to say why
        await notice(page, "The network is too slow").wait_for(timeout=40_000)
        overloaded = await notice(page, "No new picture").count()
        link.lift()
        await more_pictures(page, 60, 60, "after the limit")

        assert overloaded == 0

else:

    def test_the_picture_moves_on_a_link_below_the_configured_floor() -> None:
        """The test above, in namespaces of its own."""
        run_where_we_are_root(Path(__file__))
