"""Every pipeline in real Chromium on demonstration engines, and one taking another's place under a stream."""

import pytest
from playwright.async_api import Browser, Page, expect

from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.specs import PASSTHROUGH, SPECS, PipelineSpec
from tests.engines import BROKEN_VAE, SIZE
from tests.server.browser import field, notice, opened, sessions_end, start, state
from tests.server.gateway_calls import pipeline_status, session_parameters, sessions
from tests.server.processes import ServerProcess
from tests.server.recording import Pictures, begins_again, more, position

HEIGHT, WIDTH = SIZE
GENERATING = [spec for spec in SPECS.values() if spec.id in TRANSFORMER_FILES]
PIPELINES = [*GENERATING, PASSTHROUGH]
SWITCHED = GENERATING[:3]  # a load takes seconds
MODES = {"text": "Text only", "video": "Video"}
PROMPT = "a red ball"

pytest_plugins = "tests.server.page_fixtures"
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def choose(page: Page, spec: PipelineSpec, mode: str) -> None:
    """Choose a pipeline, its input, and a prompt where it takes one."""
    await state(page, "idle", "streaming")
    await page.get_by_role("radio", name=spec.name, exact=True).check()
    if len(spec.modes) > 1:
        await page.get_by_role("radio", name=MODES[mode], exact=True).check()
    if spec.supports_prompts:
        await field(page, "Prompt 1").fill(PROMPT)


def sizes_of(spec: PipelineSpec) -> set[tuple[int, int]]:
    """(width, height) of its pictures here: passthrough returns the camera's."""
    return {(640, 480)} if spec is PASSTHROUGH else {(WIDTH, HEIGHT)}


@pytest.mark.parametrize(
    ("spec", "mode"), [pytest.param(s, m, id=f"{s.id}-{m}") for s in PIPELINES for m in s.modes]
)
async def test_every_pipeline_streams_in_each_of_its_modes(
    spec: PipelineSpec, mode: str, browser: Browser, demo_server: ServerProcess
) -> None:
    async with opened(browser, demo_server.url, record=True) as page:
        await choose(page, spec, mode)
        await start(page, spec.name, within_s=300)

        pictures = await more(page, 30, since=0)
        session_id = await page.evaluate("wanstream.sessionId")
        numbers = (await sessions(demo_server.client))[session_id]
        parameters = await session_parameters(demo_server.client)

        assert parameters["input_mode"] == mode
        assert pictures.sizes == sizes_of(spec)
        assert pictures.thumbnails.std(axis=(1, 2, 3)).min() > 5
        assert numbers["failed_chunks"] == 0
        await expect(page.locator(".notice")).to_have_count(0)
    await sessions_end(demo_server)


async def test_pipelines_take_each_others_place_under_a_stream(
    browser: Browser, demo_server: ServerProcess
) -> None:
    """Each begins with clean caches and the session's own prompt: as a stream of its own would begin."""
    async with opened(browser, demo_server.url, record=True) as page:
        beginnings: dict[str, Pictures] = {}
        for spec in SWITCHED:
            await choose(page, spec, "text")
            await start(page, spec.name, within_s=300)
            beginnings[spec.id] = await more(page, 8, since=0)
            await page.get_by_role("button", name="Stop").click()
        first, *others = SWITCHED
        await choose(page, first, "text")
        await start(page, first.name, within_s=300)
        session_id = await page.evaluate("wanstream.sessionId")

        for spec in (*others, first):
            since = await position(page)
            await choose(page, spec, "text")
            await page.get_by_role("button", name="Switch").click()
            await expect(page.get_by_text(f"Loaded: {spec.name}")).to_be_visible(timeout=300_000)
            await state(page, "streaming", within_s=300)
            await begins_again(page, beginnings[spec.id], since)

            assert await page.evaluate("wanstream.sessionId") == session_id
            assert (await session_parameters(demo_server.client))["prompts"][0]["text"] == PROMPT
        await expect(page.locator(".notice")).to_have_count(0)
    await sessions_end(demo_server)


async def test_a_load_that_fails_under_a_stream_ends_it_with_the_reason(
    browser: Browser, demo_server: ServerProcess
) -> None:
    async with opened(browser, demo_server.url) as page:
        await choose(page, GENERATING[0], "text")
        await start(page, GENERATING[0].name, within_s=300)

        body = {"pipeline_id": "longlive", "load_params": {"vae_type": BROKEN_VAE}}
        answer = await demo_server.client.call("POST", "/api/v1/pipeline/load", json_body=body)

        assert answer.status == 200, answer.text
        await state(page, "error", within_s=120)
        await expect(notice(page, "The stream stopped")).to_contain_text("longlive")
        assert (await pipeline_status(demo_server.client))["status"] == "error"

        await page.get_by_role("button", name="Start again").click()
        await state(page, "streaming", within_s=300)
    await sessions_end(demo_server)


async def test_a_refused_load_leaves_the_stream_as_it_is(
    browser: Browser, demo_server: ServerProcess
) -> None:
    async with opened(browser, demo_server.url, record=True) as page:
        await choose(page, GENERATING[0], "text")
        await start(page, GENERATING[0].name, within_s=300)
        before = await pipeline_status(demo_server.client)

        body = {"pipeline_id": "longlive", "load_params": {"height": HEIGHT, "width": 2 * WIDTH}}
        answer = await demo_server.client.call("POST", "/api/v1/pipeline/load", json_body=body)
        await more(page, 30)

        assert answer.status == 400
        assert await pipeline_status(demo_server.client) == before
    await sessions_end(demo_server)
