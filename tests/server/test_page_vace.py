"""Images and control video on the built-in page."""

import io
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import Browser, expect

from tests.server.browser import drop, field, opened, start, state
from tests.server.case_runner import png_of
from tests.server.double_process import DoubleProcess
from tests.server.peer import until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")

_LIMIT_S = 30.0


def given(double: DoubleProcess, key: str) -> list[Any]:
    """The chunks' values of a one-shot parameter."""
    return [(c["parameters"][key], c["init_cache"]) for c in double.chunks() if key in c["parameters"]]


async def test_a_picture_dropped_on_the_video_guides_the_stream(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        await expect(page.locator("#vace-now")).to_have_text(
            "VACE is loaded, and nothing guides the pictures."
        )

        await drop(page, "#output", "dropped fox.png", png_of("dropped fox.png"))

        thumbnail = page.get_by_role("button", name="dropped fox", exact=True)
        await expect(thumbnail).to_have_attribute("aria-pressed", "true")
        await until(lambda: given(double, "vace_ref_images"), _LIMIT_S, "the image in a chunk")
        assert given(double, "vace_ref_images") == [(["dropped fox.png"], True)]
        await expect(page.locator("#vace-now")).to_have_text(
            "In force: dropped fox as reference; strength 1.00."
        )


async def test_a_picture_is_a_frame_and_comes_again_when_the_scene_starts_anew(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        await field(page, "The chosen picture is").select_option("last_frame_image")
        await drop(page, "#image-drop", "harbour view.png", png_of("harbour view.png"))
        await until(lambda: given(double, "last_frame_image"), _LIMIT_S, "the frame in a chunk")

        await page.get_by_role("button", name="Reset cache").click()

        await until(lambda: len(given(double, "last_frame_image")) == 2, _LIMIT_S, "the frame once more")
        assert given(double, "last_frame_image") == [("harbour view.png", False), ("harbour view.png", True)]


async def test_a_photograph_is_sent_upright(browser: Browser, double: DoubleProcess) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.new("RGB", (64, 32), "green").save(stored, "JPEG", exif=exif)
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()

        await drop(page, "#image-drop", "phone photo.jpg", stored.getvalue(), "image/jpeg")

        await expect(page.get_by_role("button", name="phone photo", exact=True)).to_be_visible()
        with Image.open(double.assets / "phone photo.jpg") as sent:
            assert (sent.size, sent.getexif().get(0x0112)) == ((32, 64), None)


async def test_a_file_that_is_no_picture_is_refused_in_words(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await drop(page, "#output", "letter.txt", b"hello", "text/plain")

        await expect(page.locator("#image-error")).to_contain_text("Invalid file type")
        assert await state(page, "streaming")
        assert given(double, "vace_ref_images") == []


async def test_the_camera_is_control_and_what_vace_sees_is_shown(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await page.get_by_role("radio", name="Video", exact=True).check()
        await expect(field(page, "VACE sees")).to_be_hidden()
        await field(page, "Load VACE").check()
        await field(page, "VACE sees").select_option("gray")
        await page.get_by_role("button", name="Start").click()
        await state(page, "streaming")

        await expect(page.locator("#control-tile")).to_be_visible()
        await expect(page.locator("#vace-now")).to_contain_text("control by the input's grey")
        colourless = """() => {
            const canvas = new OffscreenCanvas(32, 32);
            const context = canvas.getContext("2d");
            context.drawImage(document.querySelector("#control-picture"), 0, 0, 32, 32);
            const [...data] = context.getImageData(0, 0, 32, 32).data;
            return data.every((v, i) => i % 4 === 3 || Math.abs(v - data[i - (i % 4)]) < 4);
        }"""
        assert await page.evaluate(colourless)
        await field(page, "VACE sees").select_option("none")
        await page.wait_for_function(f"() => !({colourless})()")

        await page.get_by_role("radio", name="Image to image", exact=True).check()

        await expect(page.locator("#control-tile")).to_be_hidden()
        await until(
            lambda: double.chunks()[-1]["parameters"]["vace_use_input_video"] is False, _LIMIT_S, "a chunk"
        )
