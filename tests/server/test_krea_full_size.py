"""krea's engines of the released size on the product's own server: 24 GB are too little, and it says so."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.onnx.jobs import Request
from export.onnx.outline import Outline, outline
from export.onnx.repository import write_onnxruntime_model
from export.onnx.store import EngineStore
from streaming.engines.engine_set import SET
from streaming.engines.manifest import MANIFEST
from streaming.specs import KREA_REALTIME_VIDEO
from tests.server.gateway_calls import pipeline_status
from tests.server.peer import until
from tests.server.processes import ServerProcess

SIZES = ((512, 512), (320, 576))


def write_hollow(real: Outline, root: Path) -> None:
    """Engines whose files have the right sizes and no content: they take no room on the disk."""
    store = EngineStore(root)
    for name, manifest in real.manifests.items():
        version = store.models / name / "1"
        version.mkdir(parents=True)
        (version / MANIFEST).write_text(manifest.model_dump_json())
        for info in manifest.files:
            with (version / info.file).open("wb") as file:
                file.truncate(info.bytes)
        write_onnxruntime_model(version.parent, version, manifest)
    (store.sets / real.engines.name).mkdir(parents=True)
    (store.sets / real.engines.name / SET).write_text(real.engines.model_dump_json())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    real = outline(Request(KREA_REALTIME_VIDEO.id, tmp_path, SIZES, precision="fp16"))
    write_hollow(real, tmp_path / "engines")
    env = {"WANSTREAM_ENGINES_DIR": str(tmp_path / "engines"), "WANSTREAM_MEMORY_LIMIT_MB": "24000"}
    process = ServerProcess("gateway", tmp_path / "home", env, ["-N"])
    yield process
    process.stop()


async def test_a_load_that_cannot_fit_is_refused_with_the_numbers_of_its_size(server: ServerProcess) -> None:
    needed = {}
    for height, width in SIZES:
        params = {"height": height, "width": width, "quantization": None}
        body = {"pipeline_id": KREA_REALTIME_VIDEO.id, "load_params": params}
        answer = await server.client.call("POST", "/api/v1/pipeline/load", json_body=body)
        text = await error_of(server)

        found = re.search(rf"at {height}x{width} .* needs about ([\d.]+) GB of memory for one session", text)
        assert answer.status == 400
        assert found is not None, text
        assert "weights 29.1 GB" in text  # without the text encoder, which could take turns
        needed[height, width] = float(found[1])

    assert needed[512, 512] > needed[320, 576] > 29


async def error_of(server: ServerProcess) -> str:
    """Wait until the load has failed; why."""

    async def failed() -> bool:
        return bool((await pipeline_status(server.client))["status"] == "error")

    await until(failed, 30, "an error")
    return str((await pipeline_status(server.client))["error"])
