"""What stays on the page while something else is made ready, the last picture, with a mark."""

import numpy as np
import numpy.typing as npt
import pytest
from playwright.async_api import Browser, Page, expect

from tests.server.browser import field, mean_colour, opened, start, state
from tests.server.double import COLOURS
from tests.server.double_process import DoubleProcess
from tests.server.peer import until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")

HELD_S = 600.0  # until the test lets go
TWO_CAMERAS = """
const devices = navigator.mediaDevices;
const [list, open] = [devices.enumerateDevices.bind(devices), devices.getUserMedia.bind(devices)];
devices.enumerateDevices = async () =>
  (await list()).flatMap((device) => [device, { ...device.toJSON(), deviceId: "second", label: "Second" }]);
window.letCameraOpen = () => {};
window.held = Promise.resolve();
window.holdCamera = () => (held = new Promise((resolve) => (letCameraOpen = resolve)));
devices.getUserMedia = async (wanted) => {
  await held;
  return open(wanted);
};
"""


async def seen(page: Page) -> npt.NDArray[np.float64]:
    """Mean colour of what the page shows of the picture, left of its middle and low."""
    box = await page.locator("#screen").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.28, box["y"] + box["height"] * 0.7
    return await mean_colour(page, x, y, 40, 20)


async def test_the_last_picture_stays_with_a_mark_while_another_pipeline_or_size_is_loaded(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await field(page, "Prompt 1").fill("red")
        await start(page, "LongLive")
        shown = {}
        for what in ("pipeline", "size"):
            double.set_faults(load_delay_s=HELD_S)
            if what == "pipeline":
                await page.get_by_role("radio", name="MemFlow", exact=True).check()
                await page.get_by_role("button", name="Switch", exact=True).click()
            else:
                await field(page, "Width").fill("448")
                await page.keyboard.press("Tab")
                await page.get_by_role("button", name="Reload", exact=True).click()
            await state(page, "loading")
            await expect(page.locator("#badge")).to_have_text("Last picture")
            await expect(page.locator("#progress")).to_be_visible()
            shown[what] = await seen(page)
            double.reset_faults()
            await state(page, "streaming")
            await expect(page.locator("#badge")).to_be_hidden()
        await page.wait_for_function("() => document.querySelector('#output').videoWidth === 448")

    red = np.asarray(COLOURS["red"])
    assert {what: bool(np.abs(colour - red).max() < 40) for what, colour in shown.items()} == {
        "pipeline": True,
        "size": True,
    }, shown


async def test_the_last_picture_stays_with_a_mark_while_another_camera_opens(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, "about:blank") as page:
        await page.context.add_init_script(TWO_CAMERAS)
        await page.goto(double.url)
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await page.get_by_role("radio", name="Video", exact=True).check()
        await field(page, "Prompt 1").fill("red")
        await start(page, "LongLive")
        red = np.asarray(COLOURS["red"])

        async def is_red() -> bool:
            return bool(np.abs(await seen(page) - red).max() < 40)

        await until(is_red, 60, "the picture")
        await page.evaluate("() => { holdCamera(); }")
        await page.get_by_label("Camera", exact=True).and_(page.locator("select")).select_option(index=2)
        await expect(page.locator("#badge")).to_have_text("Last picture")
        during = await seen(page)
        await page.evaluate("() => { letCameraOpen(); }")
        await expect(page.locator("#badge")).to_be_hidden()
        await state(page, "streaming")

        await page.get_by_role("radio", name="Video file").check()  # none is chosen: the camera goes on
        await expect(page.locator(".notice", has_text="No video file chosen")).to_be_visible()
        track = await page.evaluate("document.querySelector('#preview').srcObject.getTracks()[0].readyState")

    assert np.abs(during - red).max() < 40
    assert track == "live"
