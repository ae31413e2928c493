"""A page whose gateway drains, or is killed, goes on at the other one behind the same router."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page

from tests.fleet.gateways import PROMPTS
from tests.routing.test_envoy import CookieClient, routed
from tests.server.browser import field, opened, start, state
from tests.server.double_process import DoubleProcess
from tests.server.peer import Peer, until

pytest_plugins = "tests.server.page_fixtures"
pytestmark = pytest.mark.asyncio(loop_scope="module")

DRAIN_S = 4  # a page that is cut off at once has moved over before


async def show(page: Page, prompt: str) -> str:
    """Stream a prompt; the session's id."""
    await state(page, "idle")
    await field(page, "Prompt 1").fill(prompt)
    await start(page, "LongLive")
    return str(await page.evaluate("window.wanstream.sessionId"))


async def moved(page: Page, before: str, within_s: float) -> str:
    """Wait until the page streams in another session; its id."""
    await page.wait_for_function(
        "before => window.wanstream.state === 'streaming' && window.wanstream.sessionId !== before",
        arg=before,
        timeout=within_s * 1000,
    )
    return str(await page.evaluate("window.wanstream.sessionId"))


async def effective(gateway: DoubleProcess, session_id: str) -> dict[str, Any]:
    answer = await gateway.client.call("GET", f"/api/v1/session/{session_id}/parameters")
    assert answer.status == 200, answer.text
    return dict(answer.json()["parameters"])


async def test_a_page_moves_over_at_the_end_of_a_drain_and_not_before(
    browser: Browser, tmp_path: Path
) -> None:
    async with (
        routed(tmp_path, WANSTREAM_DRAIN_S=str(DRAIN_S)) as place,
        opened(browser, place.envoy.url) as page,
    ):
        before = await show(page, "a glass house")
        old = await place.holder(before)
        new = place.other(old)
        async with Peer(CookieClient(place.envoy.url)) as peer:
            old.send_signal(signal.SIGTERM)
            since = time.monotonic()
            await until(
                lambda: place.envoy.healthy() == {new.port}, 30, "no new viewers for the one that ends"
            )
            await peer.offer(PROMPTS)
            newcomer = await place.holder(peer.session_id)
            after = await moved(page, before, 60)
            streamed_s = time.monotonic() - since
        parameters = await effective(new, after)
        code = old.stop(None)

    assert streamed_s >= DRAIN_S
    assert newcomer is new
    assert parameters["prompts"][0]["text"] == "a glass house"
    assert code == 0


async def test_a_page_whose_gateway_is_killed_goes_on_at_the_other_one(
    browser: Browser, tmp_path: Path
) -> None:
    async with routed(tmp_path) as place, opened(browser, place.envoy.url) as page:
        before = await show(page, "a paper boat")
        old = await place.holder(before)
        new = place.other(old)

        old.kill()
        after = await moved(page, before, 30)
        parameters = await effective(new, after)

    assert parameters["prompts"][0]["text"] == "a paper boat"
