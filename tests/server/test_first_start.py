"""What a newcomer sees: a server without engines makes those of the demonstration and opens with them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming.engines.demo import DEMO, DEMO_MODELS
from streaming.engines.engine_set import EngineSet
from streaming.specs import PASSTHROUGH
from tests.engines import SIZE
from tests.odd_paths import ODD, install_checkout
from tests.server.gateway_calls import load, pipeline_status, wait_status
from tests.server.peer import Peer, until
from tests.server.processes import ServerProcess

DEMO_ON = {"WANSTREAM_DEMO": "on"}


@pytest.fixture
def home(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Path:
    """A home directory with a small checkpoint and its engines, but a transformer for another window.

    So the export has to make one engine, not all. Its name has every character that names can have.
    """
    root, _ = exported_engines
    home = tmp_path / ODD / "home"
    shutil.copytree(root / "models", home / DEMO_MODELS, copy_function=os.link)
    shutil.copytree(root / "engines" / "models", home / "engines" / "models", copy_function=os.link)
    return home


@pytest.fixture
def server(home: Path) -> Iterator[ServerProcess]:
    """Installed in a place with an odd name, too, and with an odd one for temporary files."""
    checkout, temporary = home.with_name("checkout"), home.with_name("temporary")
    temporary.mkdir()
    env = DEMO_ON | {"TMPDIR": str(temporary)}
    process = ServerProcess("gateway", home, env, ["-N"], checkout, install_checkout(checkout))
    yield process
    process.stop(within_s=30)  # of eight model processes


@pytest.mark.timeout(400)
async def test_a_new_server_makes_its_engines_and_is_ready_to_start_whatever_its_directories_are_called(
    server: ServerProcess,
) -> None:
    first = await pipeline_status(server.client)
    stages = set()

    async def loaded() -> bool:
        status = await pipeline_status(server.client)
        stages.add(status["loading_stage"])
        return bool(status["status"] in ("loaded", "error"))

    await until(loaded, 300, "the demonstration is loaded")
    async with Peer(server.client) as peer:
        await peer.connect({"prompts": "a red ball"})
        frames = await peer.wait_frames(12, within_s=60)
    body = {"pipeline_id": "longlive", "load_params": None}
    again = await server.client.call("POST", "/api/v1/pipeline/load", json_body=body)
    await load(server.client, "passthrough", within_s=60)

    assert (first["status"], first["loading_pipeline_id"]) == ("loading", "longlive")
    assert any("Preparing the demonstration model" in str(stage) for stage in stages)
    assert {(f.height, f.width) for f in frames} == {SIZE}
    assert again.json()["status"] == "loaded"  # the page's Start loads nothing anew


@pytest.mark.timeout(200)
async def test_a_server_that_cannot_make_them_says_why_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / DEMO_MODELS).mkdir()
    (tmp_path / DEMO_MODELS / DEMO).write_text("{}")
    server = ServerProcess("gateway", tmp_path, DEMO_ON, ["-N"])
    try:
        status = await wait_status(server.client, "error", 120)
        await server.client.call("POST", "/api/v1/pipeline/load", json_body={"pipeline_id": "passthrough"})
        await wait_status(server.client, "loaded")
    finally:
        server.stop(within_s=30)

    assert "demonstration engines could not be made: " in status["error"]
    assert "is damaged" in status["error"]
    assert "wanstream-export longlive --demo" in status["error"]


async def test_a_load_that_cuts_the_demonstration_short_works_at_once(tmp_path: Path) -> None:
    """The home is empty: the demonstration is being exported when somebody wants another pipeline."""
    server = ServerProcess("gateway", tmp_path, DEMO_ON, ["-N"])
    try:

        async def preparing() -> bool:
            stage = str((await pipeline_status(server.client))["loading_stage"])
            return stage.startswith("Preparing the demonstration")

        await until(preparing, 60, "the demonstration is being prepared")
        body = {"pipeline_ids": [PASSTHROUGH.id]}
        answer = await server.client.call("POST", "/api/v1/pipeline/load", json_body=body)
        status = await wait_status(server.client, "loaded", 60)
    finally:
        server.stop(within_s=30)

    assert answer.status == 200
    assert status["pipeline_id"] == PASSTHROUGH.id
