"""The first minute on the page, a take that is replayed there, and access for everybody, in real Chromium."""

import json
import re
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.server.browser import PHONE, field, opened, out_of_reach, start, state
from tests.server.double_process import DoubleProcess
from tests.server.peer import until
from tests.server.processes import ServerProcess
from tests.server.recording import begins_again, more, position, recorded

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
LAPTOP = {"width": 1366, "height": 700}
ZOOMED = {"width": 640, "height": 400}  # a desktop's window at 200 %


@pytest_asyncio.fixture(loop_scope="module")
async def looks(double: DoubleProcess) -> AsyncIterator[DoubleProcess]:
    book = {
        "version": 1,
        "looks": [{"name": n, "title": n.title(), "set": {"prompts": n}} for n in ("red", "blue")],
    }
    await double.client.call("PUT", "/api/v1/looks", json_body=book)
    lines = [{"look": "red"}, {"at": 4, "look": "blue"}]
    await double.client.call("PUT", "/api/v1/cues/evening", json_body={"clock": "time", "lines": lines})
    yield double
    await double.client.call("PUT", "/api/v1/looks", json_body={"version": 1})
    await double.client.call("DELETE", "/api/v1/cues/evening")


async def test_a_newcomer_presses_start_and_an_example_and_finds_the_settings_again(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="RewardForcing", exact=True).check()
        await expect(field(page, "Prompt 1")).to_have_value("a red ball")  # one that its weights know
        await page.get_by_role("radio", name="MemFlow", exact=True).check()
        await expect(field(page, "Prompt 1")).to_have_value(re.compile("^A red fox runs"))
        await page.get_by_role("button", name="Start", exact=True).click()
        await state(page, "streaming")
        await until(
            lambda: bool(double.prompts()) and double.prompts()[0].startswith("A red fox"), 30, "the prompt"
        )

        await page.get_by_role("button", name="Memory", exact=True).click()
        seen: list[str] = []

        def there_and_back() -> bool:
            seen[:] = [chunk["active_prompts"][0]["text"].split()[1] for chunk in double.chunks()]
            return "heavy" in seen and seen[-1] == "red"

        await until(there_and_back, 60, "the other prompt, and the first one again")
        await page.get_by_role("button", name="Stop", exact=True).first.click()
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        names = await page.locator("#try button").all_inner_texts()
        await field(page, "Prompt 1").fill("my own words")
        await field(page, "Prompt 1").press("Enter")

        await page.reload()
        await state(page, "idle")
        await expect(page.get_by_role("radio", name="LongLive", exact=True)).to_be_checked()
        await page.get_by_role("radio", name="RewardForcing", exact=True).check()
        await expect(field(page, "Prompt 1")).to_have_value("my own words")  # never written over

    assert names == ["Another prompt", "Transition", "Camera"]


async def test_a_take_is_replayed_on_the_page_picture_by_picture(
    browser: Browser, demo_server: ServerProcess, tmp_path: Path
) -> None:
    async with opened(browser, demo_server.url, record=True) as page:
        await start(page, "LongLive", within_s=120)
        await page.get_by_label("Begin afresh when recording").check()
        await page.get_by_role("button", name="Record", exact=True).click()
        await page.wait_for_selector("#record[aria-pressed=true]")
        begin = await position(page)
        await field(page, "Prompt 1").fill("a boat")
        await field(page, "Prompt 1").press("Enter")
        await more(page, 60)
        original = (await recorded(page, begin))[-30:]  # of the take: what is shown was recorded before
        await page.locator("#record").click()
        await page.wait_for_selector("#record[aria-pressed=false]")

        await page.locator("#takes summary").click()
        again = await position(page)
        await page.get_by_role("button", name="Replay").first.click()
        await expect(page.get_by_role("button", name="End replay")).to_be_visible(timeout=30_000)
        await expect(page.get_by_role("button", name="End replay")).to_have_count(0, timeout=120_000)
        await begins_again(page, original, again)
        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="Data").first.click()
        await (await downloading.value).save_as(tmp_path / "take.json")
        lines = json.loads((tmp_path / "take.json").read_text())["lines"]
        await page.get_by_role("button", name="Delete").first.click()

    assert lines[0]["format"] == 1
    assert any("set" in line for line in lines[1:])


async def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps people out."""
    await page.evaluate(AXE)
    found: Any = await page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {violation['nodes'][0]['html'][:120]}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


async def test_nothing_keeps_anybody_out_at_any_size(browser: Browser, looks: DoubleProcess) -> None:
    async with opened(browser, looks.url, viewport=LAPTOP, reduced_motion="reduce") as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if "Policy" in message.text else None)
        await start(page, "LongLive")
        for part in ("cues", "tempo", "midi"):
            await page.locator(f"#{part} > summary").click()
        await page.get_by_role("button", name="Edit", exact=True).click()
        await page.get_by_role("button", name="Edit lines").click()
        found = {"live": await serious(page)}
        reach = {"laptop": await out_of_reach(page)}
        for name, size in (("zoomed", ZOOMED), ("phone", PHONE)):
            await page.set_viewport_size(size)  # type: ignore[arg-type]
            reach[name] = await out_of_reach(page)
            reach[f"{name}, across"] = await page.evaluate(
                "() => document.documentElement.scrollWidth > innerWidth ? ['wider than the window'] : []"
            )
        await page.keyboard.press("?")
        found["keys"] = await serious(page)
        await page.keyboard.press("Escape")
        await page.goto(f"{looks.url}/view")
        await state(page, "nothing", "connecting", "streaming")
        found["view"] = await serious(page)

    assert {name: problems for name, problems in found.items() if problems} == {}
    assert {name: controls for name, controls in reach.items() if controls} == {}
    assert said == [], "the page keeps to its policy"


async def test_a_look_is_saved_and_recalled_with_the_keyboard_alone(
    browser: Browser, looks: DoubleProcess
) -> None:
    async with opened(browser, looks.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await page.get_by_role("button", name="Start", exact=True).focus()
        await page.keyboard.press("Enter")
        await state(page, "streaming")
        await page.get_by_role("button", name="Blackout", exact=True).focus()
        for _ in range(20):
            if await page.evaluate("() => document.activeElement.matches('.look')"):
                break
            await page.keyboard.press("Tab")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await until(lambda: looks.prompts() == ["blue"], 30, "the second look")
        await page.keyboard.press("Escape")
        await page.keyboard.press("s")
        await expect(page.get_by_role("button", name="blue", exact=True)).to_have_count(1)
        await expect(page.locator("#looks .look")).to_have_count(3)
