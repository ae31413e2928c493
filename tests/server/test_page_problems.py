"""What the built-in page says and does when something is wrong."""

import signal
from collections.abc import Iterator

import psutil
import pytest
from playwright.async_api import Browser, expect

from tests.server.browser import (
    ALLOW_CAMERA,
    DENY_CAMERA,
    FAKE_CAMERA,
    chromium,
    field,
    notice,
    opened,
    sessions_end,
    start,
    state,
)
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import sessions
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

PROMPTS = {"prompts": [{"text": "a", "weight": 1.0}]}

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def one_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    """A server with room for one session, which may be called studio.test."""
    env = {"WANSTREAM_MAX_SESSIONS": "1", "WANSTREAM_CORS_ORIGINS": "http://studio.test"}
    process = DoubleProcess(tmp_path_factory.mktemp("one"), env)
    yield process
    process.stop()


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ([FAKE_CAMERA, DENY_CAMERA], "Camera access was denied"),
        ([ALLOW_CAMERA], "No camera found"),
    ],
    ids=["denied", "missing"],
)
async def test_camera_that_cannot_be_used_is_explained(
    arguments: list[str], title: str, server: ServerProcess
) -> None:
    async with chromium(*arguments) as browser, opened(browser, server.url) as page:
        await state(page, "idle")

        await page.get_by_role("button", name="Start").click()

        await expect(notice(page, title)).to_contain_text("Start again")
        await expect(notice(page, title)).to_contain_text("A video file works too")
        assert await state(page, "idle") == "idle"
        assert await sessions(server.client) == {}


async def test_plain_http_address_is_explained(one_place: DoubleProcess) -> None:
    resolver = "--host-resolver-rules=MAP studio.test 127.0.0.1"

    async with (
        chromium(FAKE_CAMERA, ALLOW_CAMERA, resolver) as browser,
        opened(browser, f"http://studio.test:{one_place.port}") as page,
    ):
        await state(page, "idle")
        await page.get_by_role("radio", name="Passthrough", exact=True).check()
        await page.get_by_role("button", name="Start").click()

        advice = notice(page, "The browser blocks the camera")
        await expect(advice).to_contain_text(f"http://localhost:{one_place.port}")


async def test_unreachable_server_is_told_and_found_again(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await state(page, "idle")

        await page.context.set_offline(True)
        await state(page, "offline")
        told = await notice(page, "Server unreachable").inner_text()
        await page.context.set_offline(False)
        await state(page, "idle")

        assert double.url in told
        await expect(notice(page, "Server unreachable")).to_have_count(0)


async def test_failed_load_shows_its_text(browser: Browser, double: DoubleProcess) -> None:
    double.set_faults(load_error="The text encoder's file is damaged. Download it again.")
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()

        await page.get_by_role("button", name="Start").click()
        await state(page, "error")

        await expect(notice(page, "Loading failed")).to_contain_text("The text encoder's file is damaged.")
        await expect(notice(page, "Loading failed").get_by_role("button", name="Try again")).to_be_visible()


async def test_load_shows_its_stage_and_can_be_cancelled(browser: Browser, double: DoubleProcess) -> None:
    double.set_faults(load_delay_s=60)
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()

        await page.get_by_role("button", name="Start").click()
        await expect(page.locator("#progress-stage")).to_have_text("Loading plain pictures...")
        await page.get_by_role("button", name="Cancel").click()
        await state(page, "idle")

        async def cancelled() -> bool:
            status = await double.client.call("GET", "/api/v1/pipeline/status")
            return bool(status.json()["status"] == "not_loaded")

        await until(cancelled, 30, "status not_loaded")


async def test_pipeline_that_dies_is_told(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        double.lose("The pipeline's process was killed. Load it again.")
        await state(page, "error")

        await expect(notice(page, "The stream stopped")).to_contain_text("process was killed")
        await notice(page, "The stream stopped").get_by_role("button", name="Start again").click()
        await state(page, "streaming")


async def test_full_server_is_waited_for(browser: Browser, one_place: DoubleProcess) -> None:
    async with opened(browser, one_place.url) as page, Peer(one_place.client) as other:
        await start(page, "LongLive")
        await page.get_by_role("button", name="Stop").click()
        await sessions_end(one_place)
        await other.connect(PROMPTS)

        await page.get_by_role("button", name="Start").click()
        await state(page, "waiting")
        told = await notice(page, "The server is full").inner_text()
        await other.delete()
        await notice(page, "The server is full").get_by_role("button", name="Try now").click()
        await state(page, "streaming")

        assert "Maximum number of concurrent sessions (1) reached" in told


async def test_lost_connection_is_told_and_comes_back(browser: Browser, one_place: DoubleProcess) -> None:
    async with opened(browser, one_place.url) as page:
        await start(page, "LongLive")
        first = await page.evaluate("wanstream.sessionId")
        unanswered: list[str] = []
        page.on("requestfailed", lambda request: unanswered.append(request.url))
        await page.evaluate("window.seen = new Set(); setInterval(() => seen.add(wanstream.state), 50)")

        process = psutil.Process(one_place.pid)
        process.send_signal(signal.SIGSTOP)
        try:
            await state(page, "interrupted", within_s=30)
            told = await page.locator("#status-text").inner_text()
            await state(page, "reconnecting", within_s=30)
            await until(lambda: len(unanswered) >= 2, 30, "two questions without an answer")
            seen = await page.evaluate("[...seen, wanstream.state]")
        finally:
            process.send_signal(signal.SIGCONT)
        await state(page, "streaming", within_s=30)

        assert told == "Nothing comes from the server"
        assert set(seen) == {
            "streaming",
            "interrupted",
            "reconnecting",
        }  # and never a loading that nobody does
        assert await page.evaluate("wanstream.sessionId") != first


async def test_a_session_that_is_gone_is_noticed_before_its_connection_is(
    browser: Browser, one_place: DoubleProcess
) -> None:
    async with opened(browser, one_place.url) as page:
        await start(page, "LongLive")
        first = await page.evaluate("wanstream.sessionId")
        await page.evaluate("window.seen = new Set(); setInterval(() => seen.add(wanstream.state), 20)")

        gone = {"status": 404, "json": {"detail": "Session not found: its server does not answer"}}
        await page.route(f"**/api/v1/session/{first}/metrics", lambda route: route.fulfill(**gone))
        one_place.set_faults(chunk_delay_s=3600)  # no pictures, and a connection that is well
        async with page.expect_request(f"**/api/v1/webrtc/offer/{first}"):  # it leaves
            pass
        one_place.reset_faults()
        await page.wait_for_function(
            "first => wanstream.state === 'streaming' && wanstream.sessionId !== first",
            arg=first,
            timeout=30_000,
        )
        seen = await page.evaluate("[...seen]")

        assert "reconnecting" in seen
        assert "interrupted" not in seen


@pytest.mark.parametrize("path", ["pipeline/load", "webrtc/offer"])
async def test_a_router_that_finds_no_server_for_a_moment_is_asked_again(
    browser: Browser, one_place: DoubleProcess, path: str
) -> None:
    """Its 503 is not that of a server that is full, and nothing that a person has to deal with."""
    async with opened(browser, one_place.url) as page:
        await start(page, "LongLive")
        first = await page.evaluate("wanstream.sessionId")
        await page.evaluate("window.seen = new Set(); setInterval(() => seen.add(wanstream.state), 20)")

        nothing = {"status": 503, "content_type": "text/plain", "body": "no healthy upstream"}
        await page.route(f"**/api/v1/{path}", lambda route: route.fulfill(**nothing), times=2)
        await one_place.client.call("DELETE", f"/api/v1/webrtc/offer/{first}")
        await page.wait_for_function(
            "first => wanstream.state === 'streaming' && wanstream.sessionId !== first",
            arg=first,
            timeout=60_000,
        )
        seen = await page.evaluate("[...seen]")

        assert "reconnecting" in seen
        assert not {"waiting", "error"} & set(seen)


async def test_too_many_connections_at_once_are_waited_for(
    browser: Browser, one_place: DoubleProcess
) -> None:
    async with opened(browser, one_place.url) as page:
        often = {"status": 429, "json": {"detail": "More than 10"}, "headers": {"Retry-After": "1"}}
        await page.route("**/api/v1/webrtc/offer", lambda route: route.fulfill(**often), times=1)

        async with page.expect_response("**/api/v1/webrtc/offer") as refused:
            await start(page, "LongLive")

        assert (await refused.value).status == 429


async def test_a_load_survives_a_network_that_is_gone_for_a_while(
    browser: Browser, double: DoubleProcess
) -> None:
    double.set_faults(load_delay_s=60)
    async with opened(browser, double.url) as page:
        await state(page, "idle")
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        await page.get_by_role("button", name="Start").click()
        await expect(page.locator("#progress-stage")).to_have_text("Loading plain pictures...")

        await page.route("**/api/**", lambda route: None)  # as in a network that swallows everything
        await state(page, "reconnecting")
        told = await notice(page, "Connection lost").inner_text()
        await page.unroute("**/api/**")
        await state(page, "loading")

        assert "The server does not answer." in told
        await expect(page.locator("#progress-stage")).to_have_text("Loading plain pictures...")


async def test_refused_change_is_told(browser: Browser, double: DoubleProcess) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await field(page, "Prompt 1").evaluate("field => field.removeAttribute('maxlength')")
        await field(page, "Prompt 1").fill("x" * 9000)
        await field(page, "Prompt 1").press("Enter")

        await expect(notice(page, "The server refused a change")).to_contain_text("prompts")
        assert await state(page, "streaming", "error") == "streaming"


async def test_a_notation_of_other_programs_is_a_hint_on_the_page(
    browser: Browser, double: DoubleProcess
) -> None:
    async with opened(browser, double.url) as page:
        await start(page, "LongLive")

        await field(page, "Prompt 1").fill("a (red:1.3) ball")
        await field(page, "Prompt 1").press("Enter")

        await expect(notice(page, "About your prompt")).to_contain_text("'(red:1.3)' is read as plain words")
        await expect(notice(page, "The server refused a change")).to_have_count(0)
