"""Every pipeline in real Chromium, on demonstration engines."""

import pytest
from playwright.async_api import Browser, Page, expect

from export.jobs import TRANSFORMER_FILES
from streaming.specs import PASSTHROUGH, SPECS, PipelineSpec
from tests.engines import SIZE
from tests.server.browser import field, opened, sessions_end, start, state
from tests.server.gateway_calls import session_parameters, sessions
from tests.server.processes import ServerProcess
from tests.server.recording import more

HEIGHT, WIDTH = SIZE
GENERATING = [spec for spec in SPECS.values() if spec.id in TRANSFORMER_FILES]
PIPELINES = [*GENERATING, PASSTHROUGH]
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
