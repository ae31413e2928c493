"""A second browser on the page's stream: the link, who watches, asking for control and handing it over."""

import pytest
from playwright.async_api import Browser, Page, expect

from tests.server.browser import PHONE, notice, opened, out_of_reach, sessions_end, start
from tests.server.double_process import DoubleProcess
from tests.server.peer import until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def link_of(page: Page, *, control: bool = False) -> str:
    """The link that the page offers, once its QR code is drawn."""
    if not await page.locator("#share").evaluate("details => details.open"):
        await page.locator("#share > summary").click()
    await page.get_by_label("Whoever opens it may ask for control").set_checked(control)
    role = "role=controller" if control else "stream="
    await page.wait_for_function(
        "role => document.querySelector('#share-link').value.includes(role)"
        " && document.querySelector('#share-code').naturalWidth > 100",
        arg=role,
    )
    return await page.get_by_label("Link for viewers").input_value()


async def watching(page: Page) -> None:
    await expect(page.locator("#status-text")).to_have_text("Watching")


async def test_a_viewer_opens_the_link_and_is_seen_by_whoever_shared_it(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        link = await link_of(page)
        async with opened(browser, "about:blank", viewport=PHONE) as viewer:
            said: list[str] = []
            viewer.on("console", lambda message: said.append(message.text))
            await viewer.goto(link)
            await watching(viewer)

            await expect(page.locator("#share-count")).to_have_text("(1 watching)")
            await expect(page.locator("#share-people li")).to_have_count(1)
            await expect(viewer.get_by_role("button", name="Ask for control")).to_be_hidden()
            shown = await viewer.locator("#output").evaluate("video => [video.videoWidth, video.videoHeight]")
            unreachable = await out_of_reach(viewer)

        await expect(page.locator("#share-nobody")).to_be_visible()
        assert shown[0] > 0
        assert unreachable == []
        assert said == [], "the page keeps to its policy"
    await sessions_end(double)


async def test_control_is_asked_for_handed_over_and_comes_back_when_its_holder_leaves(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        link = await link_of(page, control=True)
        async with opened(browser, link) as other:
            await watching(other)
            await other.get_by_role("button", name="Ask for control").click()
            await expect(notice(page, "asks for control")).to_be_visible()
            await page.get_by_role("button", name="Hand over").click()

            await other.get_by_placeholder("A prompt").fill("a blue box")
            await other.get_by_role("button", name="Apply").click()
            await until(lambda: double.prompts() == ["a blue box"], 30, "the other one's prompt")
            await expect(page.locator("#driven")).to_be_visible()
            await expect(page.get_by_label("Prompt 1", exact=True)).to_have_value("a blue box")

        await expect(page.locator("#driven")).to_be_hidden()
        own = page.get_by_label("Prompt 1", exact=True)
        await own.fill("mine again")
        await own.press("Enter")
        await until(lambda: double.prompts() == ["mine again"], 30, "the own prompt")


async def test_whoever_watches_is_told_of_the_end_and_sees_the_stream_that_comes_after(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        async with opened(browser, f"{double.url}/watch") as viewer:  # the newest stream
            await watching(viewer)

            await page.get_by_role("button", name="Stop").click()
            await expect(viewer.locator("#placeholder-title")).to_have_text("The stream has ended")
            await start(page, "LongLive")

            await expect(viewer.locator("#status-text")).to_have_text("Watching", timeout=15_000)
