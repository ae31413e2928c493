"""Model downloads and reference images on the built-in page."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Route, expect

from gateway.files.models.artifacts import ARTIFACTS
from streaming.engines.engine_set import SET, EngineSet, MergedLora
from tests.hub_double import HubDouble
from tests.server.browser import PHONE, field, opened, out_of_reach, start, state
from tests.server.case_runner import png_of
from tests.server.double_process import DoubleProcess
from tests.server.peer import until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def choose_longlive(page: Page) -> None:
    await state(page, "idle")
    await page.get_by_role("radio", name="LongLive", exact=True).check()


async def upload(page: Page, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    await field(page, "Upload a picture").set_input_files(file)  # type: ignore[arg-type]


async def test_download_shows_its_progress_until_the_models_are_there(
    browser: Browser, tmp_path: Path
) -> None:
    async with HubDouble() as hub:
        hub.add(ARTIFACTS["longlive"])
        hub.slow = 0.03
        server = await asyncio.to_thread(DoubleProcess, tmp_path / "home", {"HF_ENDPOINT": hub.url})
        async with opened(browser, server.url) as page:
            await choose_longlive(page)
            panel = page.get_by_role("group", name="Model files of LongLive")
            await expect(panel).to_contain_text("Models are not downloaded.")

            await panel.get_by_role("button", name="Download models").click()
            await expect(panel.get_by_role("progressbar", name="Download of LongLive")).to_be_visible()
            await expect(panel.get_by_role("button")).to_be_hidden()
            hub.slow = 0.0

            await expect(panel).to_contain_text("Models are downloaded.", timeout=20_000)
            await expect(panel.get_by_role("progressbar")).to_be_hidden()
        await asyncio.to_thread(server.stop)


async def test_size_of_a_download_is_asked_for_again_when_no_answer_came(
    browser: Browser, tmp_path: Path
) -> None:
    lost: list[str] = []

    async def lose_first(route: Route) -> None:
        if lost:
            await route.continue_()
        else:
            lost.append(route.request.url)
            await route.abort()

    async with HubDouble() as hub:
        hub.add(ARTIFACTS["longlive"])
        server = await asyncio.to_thread(DoubleProcess, tmp_path / "home", {"HF_ENDPOINT": hub.url})
        async with opened(browser, server.url) as page:
            await page.route("**/api/v1/pipeline/prepare?*", lose_first)
            await choose_longlive(page)
            panel = page.get_by_role("group", name="Model files of LongLive")

            await expect(panel).to_contain_text("MB to download.", timeout=30_000)
        await asyncio.to_thread(server.stop)
    assert lost


async def test_failed_download_shows_why_and_can_be_tried_again(browser: Browser, tmp_path: Path) -> None:
    async with HubDouble() as hub:  # without repositories: 401
        server = await asyncio.to_thread(DoubleProcess, tmp_path / "home", {"HF_ENDPOINT": hub.url})
        async with opened(browser, server.url) as page:
            await choose_longlive(page)
            panel = page.get_by_role("group", name="Model files of LongLive")

            await panel.get_by_role("button", name="Download models").click()

            await expect(panel.get_by_role("alert")).to_contain_text("401")
            hub.add(ARTIFACTS["longlive"])
            await panel.get_by_role("button", name="Try again").click()
            await expect(panel).to_contain_text("Models are downloaded.", timeout=20_000)
            await expect(panel.get_by_role("alert")).to_be_hidden()
        await asyncio.to_thread(server.stop)


async def test_uploaded_picture_becomes_the_reference_of_the_stream(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")
        await upload(page, "red fox.png", png_of("red fox.png"))
        thumbnail = page.get_by_role("button", name="red fox", exact=True)
        await page.wait_for_function("() => document.querySelector('#images img')?.naturalWidth > 0")

        await thumbnail.press("Enter")

        await expect(thumbnail).to_have_attribute("aria-pressed", "true")

        def arrived() -> bool:
            return ["red fox.png"] in [c["vace_ref_images"] for c in double.chunks()]

        await until(arrived, 30, "the reference image in a chunk")


async def test_reference_chosen_before_the_start_is_in_the_first_chunk(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await choose_longlive(page)
        await upload(page, "harbour.png", png_of("harbour.png"))
        await page.get_by_role("button", name="harbour", exact=True).click()

        await page.get_by_role("button", name="Start").click()
        await state(page, "streaming")

        assert double.chunks()[0]["vace_ref_images"] == ["harbour.png"]


async def test_refused_upload_shows_why(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await choose_longlive(page)

        async with page.expect_response(lambda r: "filename=" in r.url) as answer:
            await upload(page, "broken.png", b"no picture")
        detail = (await (await answer.value).json())["detail"]

        await expect(page.locator("#image-error")).to_have_text(detail)


async def test_merged_engines_are_shown_and_deleted(
    browser: Browser, double: DoubleProcess, exported_engines: tuple[Path, EngineSet]
) -> None:
    engines = exported_engines[1].model_copy(
        update={"name": "merged", "loras": (MergedLora(file="a.safetensors", sha256="0" * 64, scale=0.8),)}
    )
    directory = double.home / "engines" / "sets" / "merged"
    directory.mkdir(parents=True)
    (directory / SET).write_text(engines.model_dump_json())
    async with opened(browser, double.url) as page:
        await choose_longlive(page)
        merged = page.locator("#lora-merged")
        await expect(merged).to_contain_text("Engines with files merged in: 1, 0.0 MB.", timeout=30_000)

        await merged.get_by_role("button").click()

        await expect(merged).to_be_hidden(timeout=30_000)
    assert not directory.exists()


async def test_reference_images_fit_a_phone(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url, viewport=PHONE) as page:
        await choose_longlive(page)
        await upload(page, "phone.png", png_of("phone.png"))
        await expect(page.get_by_role("button", name="phone", exact=True)).to_be_visible()

        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert await out_of_reach(page) == []


async def test_pipeline_without_vace_offers_no_reference_images(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await choose_longlive(page)
        await expect(field(page, "Upload a picture")).to_be_visible()

        await page.get_by_role("radio", name="Krea Realtime Video", exact=True).check()

        await expect(field(page, "Upload a picture")).to_be_hidden()
