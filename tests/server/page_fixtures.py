"""Fixtures for tests of the page; a test module names this one in `pytest_plugins`."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.server.browser import ALLOW_CAMERA, FAKE_CAMERA, chromium
from tests.server.double_process import DoubleProcess


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium with a fake camera that every page may use."""
    async with chromium(FAKE_CAMERA, ALLOW_CAMERA) as browser:
        yield browser


@pytest.fixture
def double(double_server: DoubleProcess) -> DoubleProcess:
    """The server with six pipelines of the double, healthy and with nothing loaded."""
    double_server.reset_faults()
    double_server.client.request("POST", "/api/v1/pipeline/unload")
    return double_server
