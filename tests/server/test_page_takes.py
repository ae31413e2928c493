"""Recordings on the built-in page, in real Chromium: begun, played, downloaded and deleted."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.server.browser import opened, start
from tests.server.processes import ServerProcess
from tests.takes import shown

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_recording_is_made_played_downloaded_and_deleted(
    browser: Browser, server: ServerProcess, tmp_path: Path
) -> None:
    async with opened(browser, server.url) as page:
        await start(page)
        await page.get_by_role("button", name="Record", exact=True).click()
        await page.wait_for_selector("#record[aria-pressed=true]")
        await asyncio.sleep(1.0)  # of the camera
        await page.locator("#record").click()
        await page.wait_for_selector("#record[aria-pressed=false]")
        await page.locator("#takes summary").click()
        await page.get_by_role("button", name="Play").first.click()
        await page.wait_for_function("() => document.getElementById('take-player').currentTime > 0.3")
        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="Download").first.click()
        await (await downloading.value).save_as(tmp_path / "take.mp4")
        await page.screenshot(path=tmp_path / "page.png", full_page=True)
        await page.get_by_role("button", name="Delete").first.click()
        await page.wait_for_selector("#takes", state="hidden")
        player_is_hidden = await page.locator("#take-player").is_hidden()

    assert len(shown(tmp_path / "take.mp4")) >= 5
    assert player_is_hidden
    assert not list((server.home / "recordings").glob("*.mp4"))
