"""What the page says when somebody else changes the pipeline under its stream, in real Chromium."""

import pytest
from playwright.async_api import Browser, expect

from tests.server.browser import movement, notice, opened, sessions_end, start, state
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load

pytest_plugins = "tests.server.page_fixtures"
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LOAD = "/api/v1/pipeline/load"


async def test_two_tabs_and_one_loads_another_pipeline(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as mine, opened(browser, double.url) as other:
        await start(mine, "LongLive")
        double.set_faults(load_delay_s=600)
        await other.get_by_role("radio", name="MemFlow", exact=True).check()

        await other.get_by_role("button", name="Load", exact=True).click()
        await state(mine, "replacing")
        await expect(notice(mine, "MemFlow is being loaded")).to_be_visible()
        await expect(mine.get_by_text("Another pipeline is coming")).to_be_visible()
        await expect(mine.get_by_text("Loading plain pictures")).to_be_visible()
        double.set_faults(load_delay_s=0)
        await state(mine, "streaming")

        told = notice(mine, "MemFlow took the place of your pipeline")
        await expect(told).to_contain_text("Your stream goes on with it in text mode")
        await expect(mine.get_by_text("Loaded: MemFlow")).to_be_visible()
        assert await movement(mine) > 0
        await told.get_by_role("button", name="Back to LongLive").click()
        await expect(mine.get_by_text("Loaded: LongLive")).to_be_visible()
        await state(mine, "streaming")
        await expect(notice(mine, "took the place")).to_have_count(0)
    await sessions_end(double)


async def test_a_pipeline_that_needs_an_input_video_is_said(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await load(double.client, "passthrough")
        await state(page, "unsuitable")

        told = notice(page, "Passthrough needs an input video")
        await expect(page.locator("#status-text")).to_have_text("Needs an input video")
        await told.get_by_role("button", name="Use Passthrough here").click()
        await state(page, "streaming")
        await expect(page.get_by_text("Loaded: Passthrough")).to_be_visible()
        await expect(notice(page, "needs an input video")).to_have_count(0)
    await sessions_end(double)


async def test_the_same_pipeline_in_another_size_is_noticed(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        double.set_faults(load_delay_s=600)

        body = {"pipeline_id": "longlive", "load_params": {"height": 64, "width": 128}}
        await double.client.call("POST", LOAD, json_body=body)
        await state(page, "replacing")
        double.set_faults(load_delay_s=0)
        await state(page, "streaming")

        assert await movement(page) > 0
        await expect(page.locator(".notice")).to_have_count(0)
    await sessions_end(double)


async def test_who_unloaded_is_said(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await double.client.call("POST", "/api/v1/pipeline/unload")
        await state(page, "error")

        await expect(notice(page, "The pipeline was unloaded")).to_contain_text("Someone else unloaded it")
    await sessions_end(double)
