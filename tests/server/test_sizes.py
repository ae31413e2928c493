"""One set of engines serves several sizes of picture, and a load switches between them."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from export.onnx.run import export_pipeline
from export.onnx.store import EngineStore
from streaming.engines.engine_set import SET, EngineSet
from tests.engines import small_request
from tests.server.gateway_calls import load
from tests.server.peer import Peer
from tests.server.processes import ServerProcess

SIZES = ((64, 80), (80, 96))


@pytest.fixture(scope="module")
def server(
    exported_engines: tuple[Path, EngineSet], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with engines for two sizes; those of the first are not exported again."""
    home = tmp_path_factory.mktemp("sizes")
    shutil.copytree(exported_engines[0] / "engines", home / "engines")
    shutil.rmtree(home / "engines" / "sets")
    store = EngineStore(home / "engines")
    request = replace(small_request(exported_engines[0] / "models"), sizes=SIZES)
    engines = export_pipeline(request, store, lambda line: None, workers=2)
    # As real weights: the server makes a demonstration of its own in place of another one.
    real = engines.model_copy(update={"demo": False})
    (store.sets / engines.name / SET).write_text(real.model_dump_json())
    process = ServerProcess("gateway", home, options=["-N"])
    yield process
    process.stop()


@pytest.mark.timeout(400)
async def test_a_load_of_each_covered_size_just_works(server: ServerProcess) -> None:
    for height, width in (*SIZES, SIZES[0]):
        await load(server.client, "longlive", {"height": height, "width": width}, within_s=120)
        async with Peer(server.client) as peer:
            await peer.connect({"prompts": "a red ball"})

            frames = await peer.wait_frames(6, within_s=90)
            await peer.delete()

        assert {(frame.height, frame.width) for frame in frames} == {(height, width)}


async def test_another_size_is_refused_with_those_that_are_covered(server: ServerProcess) -> None:
    body = {"pipeline_id": "longlive", "load_params": {"height": 96, "width": 96}}

    answer = await server.client.call("POST", "/api/v1/pipeline/load", json_body=body)

    assert answer.status == 400
    assert all(f"{height}x{width}" in answer.json()["detail"] for height, width in SIZES)
