"""The first `docker compose up` exports the demonstration in a container. Part of `make test-containers`."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.containers.conftest import Start
from tests.containers.test_containers import client, healthy, ports
from tests.server.gateway_calls import wait_status
from tests.server.peer import Peer

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A new volume."""
    home = tmp_path / "data"
    home.mkdir()
    os.chown(home, 1000, 1000)
    return home


async def test_a_new_volume_gets_the_demonstration_which_is_shown(start: Start) -> None:
    settings = ports()
    demonstration = start("demonstration", settings)
    triton = start("triton", settings)
    await healthy(triton)
    code = await asyncio.to_thread(demonstration.wait, 600)

    gateway = start("gateway", settings)
    await healthy(gateway)
    await wait_status(client(settings), "loaded", 120)
    async with Peer(client(settings)) as peer:
        await peer.connect({"prompts": "a red circle stays still on a white background"})
        frames = await peer.wait_frames(12, within_s=120)

    assert code == 0
    assert "is complete" in demonstration.log
    assert frames[-1].width == 96
