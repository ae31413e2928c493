"""From a fresh home to pictures, with files as they are released: download, load without export, stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from streaming.checkpoints.files import TRANSFORMER_FILES
from tests.checkpoints import publish, write_released_layout
from tests.engines import SIZE
from tests.hub_double import HubDouble
from tests.server.browser import field, opened, sessions_end, start
from tests.server.gateway_calls import load, pipeline_status, wait_status
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess
from tests.server.recording import more

LONGLIVE = "longlive"
OTHERS = sorted(TRANSFORMER_FILES.keys() - {LONGLIVE})
SMALL: dict[str, Any] = {"height": SIZE[0], "width": SIZE[1]}

pytest_plugins = "tests.server.page_fixtures"
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerProcess]:
    """The product with an empty home, in front of a hub that has the released layouts."""
    released = write_released_layout(tmp_path_factory.mktemp("released"))
    async with HubDouble() as hub:
        for pipeline in TRANSFORMER_FILES:
            publish(hub, released, pipeline)
        home = tmp_path_factory.mktemp("fresh")
        process = await asyncio.to_thread(ServerProcess, "gateway", home, {"HF_ENDPOINT": hub.url}, ["-N"])
        yield process
        await asyncio.to_thread(process.stop, within_s=30.0)


async def schema(server: ServerProcess, pipeline: str) -> dict[str, Any]:
    answer = await server.client.call("GET", "/api/v1/pipelines/schemas")
    return dict(answer.json()["pipelines"][pipeline])


async def download(server: ServerProcess, pipeline: str) -> None:
    answer = await server.client.call("POST", "/api/v1/models/download", json_body={"pipeline_id": pipeline})
    assert answer.status == 200, answer.text

    async def complete() -> bool:
        status = await server.client.call("GET", f"/api/v1/models/status?pipeline_id={pipeline}")
        return bool(status.json()["downloaded"])

    await until(complete, 30, f"the files of {pipeline}")


async def test_the_page_downloads_loads_and_shows_a_pipeline_that_was_never_exported(
    browser: Browser, server: ServerProcess
) -> None:
    before = await schema(server, LONGLIVE)
    async with opened(browser, server.url, record=True) as page:
        await page.locator("#unavailable-summary").click()
        panel = page.get_by_role("group", name="Model files of LongLive")
        await expect(panel).to_contain_text("MB to download. This machine (", timeout=30_000)
        await panel.get_by_role("button", name="Download models").click()
        await expect(page.locator("#unavailable-list")).not_to_contain_text("LongLive", timeout=20_000)
        await page.get_by_role("radio", name="LongLive", exact=True).check()
        for name, side in zip(("Height", "Width"), SIZE, strict=True):
            await field(page, name).fill(str(side))
        await start(page, "LongLive", within_s=120)
        pictures = await more(page, 12, since=0)
        await expect(page.locator("#loaded")).to_contain_text("(PyTorch on the CPU, ")
        await expect(page.locator("#loaded")).to_have_attribute(
            "title", "Chosen because the weights are here, and no engines."
        )
    await sessions_end(server)

    assert not before["available"]
    assert before["supported_resolutions"] is None
    assert pictures.sizes == {(SIZE[1], SIZE[0])}
    assert pictures.thumbnails.std(axis=(1, 2, 3)).min() > 5  # never one colour


async def test_engines_are_prepared_while_the_weights_stream_and_the_server_says_when_they_are_ready(
    server: ServerProcess,
) -> None:
    """Download, export and load of files in the released layout; only their size is a stand-in."""
    await download(server, LONGLIVE)
    wish = {"pipeline_id": LONGLIVE, "backend": "onnxruntime", "height": SIZE[0], "width": SIZE[1]}
    await load(server.client, LONGLIVE, SMALL | {"backend": "pytorch"}, within_s=60)
    begun = await server.client.call("POST", "/api/v1/pipeline/prepare", json_body=wish)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "a red ball"})
        await peer.wait_frames(12, within_s=60)
    await sessions_end(server)  # else the stream would take the processors from the export

    async def prepared() -> bool:
        preparation = (await progress(server))["preparation"]
        assert preparation["state"] in ("running", "done"), preparation["error"]
        return bool(preparation["state"] == "done")

    await until(prepared, 240, "the preparation")
    said = await progress(server)
    await load(server.client, LONGLIVE, SMALL, within_s=60)
    status = await pipeline_status(server.client)

    assert begun.status == 200, begun.text
    assert "onnxruntime is ready now" in said["note"]
    assert said["download"]["missing_bytes"] == 0
    assert status["load_plan"]["engines"][0]["backend"] == "onnxruntime"
    assert (await progress(server))["note"] == ""


async def progress(server: ServerProcess) -> dict[str, Any]:
    answer = await server.client.call("GET", f"/api/v1/pipeline/prepare?pipeline_id={LONGLIVE}")
    assert answer.status == 200, answer.text
    return dict(answer.json())


async def test_a_model_process_that_is_killed_is_told_and_a_new_load_heals(server: ServerProcess) -> None:
    await load(server.client, LONGLIVE, SMALL, within_s=60)
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "a red ball"})
        await peer.wait_frames(12, within_s=60)
        server.child("triton_python_backend_stub").kill()
        message = await peer.wait_message("stream_stopped", 60)
        await wait_status(server.client, "error", 60)
    await load(server.client, LONGLIVE, SMALL, within_s=60)
    async with Peer(server.client) as again:
        await again.connect({"prompts": "a red ball"})
        frames = await again.wait_frames(12, within_s=60)

    assert "died" in message["error_message"]
    assert {(f.height, f.width) for f in frames} == {SIZE}


@pytest.mark.parametrize("pipeline", OTHERS)
async def test_every_other_pipeline_streams_from_its_released_files(
    pipeline: str, server: ServerProcess
) -> None:
    """The second time there is nothing to fetch but what is its own."""
    size = (80, 64)  # portrait; nothing was built for it
    before = await schema(server, pipeline)
    await download(server, pipeline)
    await load(server.client, pipeline, {"height": size[0], "width": size[1]}, within_s=60)
    plan = (await pipeline_status(server.client))["load_plan"]
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "a red ball", "input_mode": "text"})
        frames = await peer.wait_frames(12, within_s=60)

    assert not before["available"]
    assert (plan["checkpoint"], plan["precision"]) == (TRANSFORMER_FILES[pipeline].weights, "fp32")
    assert {(f.height, f.width) for f in frames} == {size}
