"""LongLive in real Chromium, from the page to the engines and back: what the browser decodes is compared."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.engines import SIZE
from tests.server.browser import QUICKSTART, field, opened, sessions_end, start, state
from tests.server.gateway_calls import pipeline_status, session_parameters, sessions
from tests.server.peer import until
from tests.server.processes import ServerProcess
from tests.server.recording import (
    SAME,
    Pictures,
    begins_again,
    more,
    nearest,
    position,
    recorded,
    unlike,
)

HEIGHT, WIDTH = SIZE
BALL, CUBE = "a red ball", "a blue cube in the snow"
CHUNK = 12  # pictures

pytest_plugins = "tests.server.page_fixtures"
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@asynccontextmanager
async def streaming(browser: Browser, server: ServerProcess, prompt: str) -> AsyncIterator[Page]:
    """The page while it shows LongLive with this prompt, everything else as it comes."""
    async with opened(browser, server.url, record=True) as page:
        await choose(page, prompt)
        await start(page, "LongLive", within_s=300)
        yield page
    await sessions_end(server)


async def choose(page: Page, prompt: str) -> None:
    await state(page, "idle")
    await page.get_by_role("radio", name="LongLive", exact=True).check()
    await field(page, "Prompt 1").fill(prompt)


async def again(page: Page) -> None:
    """Stop, and start with the settings as they are now."""
    await page.get_by_role("button", name="Stop").click()
    await state(page, "idle")
    await page.get_by_role("button", name="Start").click()
    await state(page, "streaming", within_s=120)


async def beginning(page: Page) -> Pictures:
    """The first pictures of the newest stream."""
    return await more(page, 2 * CHUNK, since=0)


async def change_prompt(page: Page, prompt: str) -> None:
    await field(page, "Prompt 1").fill(prompt)
    await field(page, "Prompt 1").press("Enter")


async def prompt_is(server: ServerProcess, *texts: str) -> None:
    """Wait until the stream has arrived at these prompts."""

    async def arrived() -> bool:
        parameters = await session_parameters(server.client)
        return parameters["transition"] is None and [p["text"] for p in parameters["prompts"]] == list(texts)

    await until(arrived, 60, f"prompts {texts}")


async def reset(page: Page) -> int:
    """Reset the cache; the number of the last picture before that."""
    since = await position(page)
    await page.get_by_role("button", name="Reset cache").click()
    return since


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def beginnings(browser: Browser, demo_server: ServerProcess) -> dict[str, Pictures]:
    """How a stream begins, by its prompt; all with the default seed."""
    found = {}
    async with streaming(browser, demo_server, BALL) as page:
        for prompt in (BALL, CUBE):
            await field(page, "Prompt 1").fill(prompt)
            await again(page)
            found[prompt] = await beginning(page)
    return found


async def test_a_prompt_becomes_video_of_the_loaded_size(
    browser: Browser, demo_server: ServerProcess
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        pictures = await more(page, 3 * CHUNK, since=0)
        await page.wait_for_function("() => wanstream.stats?.fps > 1")
        stats = await page.evaluate("wanstream.stats")
        status = await pipeline_status(demo_server.client)

        await expect(page.locator("#loaded")).to_contain_text("(ONNX Runtime on the CPU, ")
        assert (status["load_params"]["width"], status["load_params"]["height"]) == (WIDTH, HEIGHT)
        assert pictures.sizes == {(WIDTH, HEIGHT)}
        assert (stats["width"], stats["height"]) == (WIDTH, HEIGHT)
        assert pictures.thumbnails.std(axis=(1, 2, 3)).min() > 5  # never one colour
        assert unlike(pictures[1:], pictures) > SAME  # it moves


async def test_the_prompt_decides_how_a_stream_begins(
    browser: Browser, demo_server: ServerProcess, beginnings: dict[str, Pictures]
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        same = await beginning(page)

    assert unlike(same, beginnings[BALL]) < SAME
    assert unlike(beginnings[CUBE], beginnings[BALL]) > SAME


async def test_a_reset_shows_the_first_pictures_again(
    browser: Browser, demo_server: ServerProcess, beginnings: dict[str, Pictures]
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        await more(page, 3 * CHUNK)

        since = await reset(page)

        await begins_again(page, beginnings[BALL], since)


async def test_a_new_prompt_changes_the_picture_of_a_running_stream(
    browser: Browser, demo_server: ServerProcess
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        await change_prompt(page, CUBE)
        await prompt_is(demo_server, CUBE)
        await more(page, 8 * CHUNK)  # some were made before
        changed = await recorded(page)
        await field(page, "Prompt 1").fill(BALL)
        await again(page)
        unchanged = await more(page, len(changed), since=0)

    differences = nearest(changed, unchanged)
    assert np.median(differences[:9]) < SAME
    assert np.median(differences[-CHUNK:]) > SAME


@pytest.mark.parametrize("steps", [0, 3])
async def test_the_target_of_a_transition_is_reached(
    steps: int, browser: Browser, demo_server: ServerProcess, beginnings: dict[str, Pictures]
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        await page.get_by_role("spinbutton", name="Transition").fill(str(steps))
        await change_prompt(page, CUBE)
        await prompt_is(demo_server, CUBE)

        since = await reset(page)

        await begins_again(page, beginnings[CUBE], since)
        await expect(page.locator(".notice")).to_have_count(0)


async def test_a_blend_lies_between_its_prompts(
    browser: Browser, demo_server: ServerProcess, beginnings: dict[str, Pictures]
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        await page.get_by_role("button", name="Add prompt").click()
        await field(page, "Prompt 2").fill(CUBE)
        await again(page)
        blend = await beginning(page)
        await field(page, "Weight 1").fill("0")
        await prompt_is(demo_server, BALL, CUBE)

        since = await reset(page)

        await begins_again(page, beginnings[CUBE], since)
    apart = unlike(beginnings[BALL], beginnings[CUBE])
    assert 0 < unlike(blend, beginnings[BALL]) < apart
    assert 0 < unlike(blend, beginnings[CUBE]) < apart


async def test_other_steps_begin_another_stream_and_the_first_ones_the_first(
    browser: Browser, demo_server: ServerProcess, beginnings: dict[str, Pictures]
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        since = await position(page)
        await field(page, "Step 4").fill("100")
        await field(page, "Step 4").press("Tab")

        async def changed() -> bool:
            return (await session_parameters(demo_server.client))["denoising_step_list"][-1] == 100

        await until(changed, 60, "the other steps")
        other = await more(page, 4 * CHUNK, since)
        since = await position(page)
        await field(page, "Step 4").fill("250")
        await field(page, "Step 4").press("Tab")

        await begins_again(page, beginnings[BALL], since)
    starts = range(len(other) - 2 * CHUNK + 1)
    assert min(unlike(other[i : i + 2 * CHUNK], beginnings[BALL]) for i in starts) > SAME


async def test_pause_freezes_the_picture_and_resume_goes_on(
    browser: Browser, demo_server: ServerProcess
) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        await page.get_by_role("button", name="Pause").click()
        await state(page, "paused")

        async def frozen() -> bool:
            pictures = await more(page, 4)
            return unlike(pictures[1:], pictures) < SAME

        await until(frozen, 60, "a picture that stays")
        still = await more(page, CHUNK)
        await page.get_by_role("button", name="Resume").click()
        await state(page, "streaming")

        async def moving() -> bool:
            pictures = await more(page, 4)
            return unlike(pictures[1:], pictures) > SAME

        await until(moving, 60, "a picture that changes")
    assert nearest(still, still[:1]).max() < SAME


async def test_the_camera_takes_over_while_it_streams(browser: Browser, demo_server: ServerProcess) -> None:
    async with streaming(browser, demo_server, BALL) as page:
        session_id = await page.evaluate("wanstream.sessionId")

        await page.get_by_role("radio", name="Video", exact=True).check()

        async def from_camera() -> bool:
            numbers = (await sessions(demo_server.client))[session_id]
            parameters = await session_parameters(demo_server.client)
            return parameters["input_mode"] == "video" and numbers["frames_in"] > 2 * CHUNK

        await until(from_camera, 60, "pictures of the camera at the pipeline")
        pictures = await more(page, 2 * CHUNK)
        numbers = (await sessions(demo_server.client))[session_id]

        assert pictures.sizes == {(WIDTH, HEIGHT)}
        assert pictures.thumbnails.std(axis=(1, 2, 3)).min() > 5
        assert numbers["failed_chunks"] == 0
        await expect(page.locator("#input-tile")).to_be_visible()


@pytest.mark.parametrize("direction", ["recvonly", "sendrecv"])
async def test_a_page_that_polls_and_only_receives(
    direction: str, browser: Browser, demo_server: ServerProcess
) -> None:
    await demo_server.client.call("POST", "/api/v1/pipeline/unload")
    url = f"{QUICKSTART}?server={demo_server.url}&pipeline=longlive&direction={direction}"
    async with opened(browser, url, record=True) as page:
        await page.wait_for_function("() => result.error || result.frames > 10", timeout=300_000)
        result = await page.evaluate("result")
        pictures = await recorded(page)
        await page.evaluate("peer.close()")

    assert "error" not in result
    assert set(result["states"]) == {"loading", "loaded"}
    assert result["messages"] == []
    assert pictures.sizes == {(WIDTH, HEIGHT)}
    await sessions_end(demo_server)
