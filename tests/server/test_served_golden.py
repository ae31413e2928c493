"""The reference's numbers, from exported files that the embedded Triton serves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from export.graphs.signature import Signature
from export.onnx.repository import write_onnxruntime_model
from gateway.embedded.server import EmbeddedTriton
from streaming.engines.engine import Engine, TritonEngine
from streaming.engines.manifest import MANIFEST, EngineManifest, TensorInfo, file_info
from streaming.network.inputs import TensorSpec
from tests.golden.case import GoldenCase, discover, golden_directory
from tests.golden.exported_cases import REPLAYS, exported_cases
from tests.golden.place import Exported, Place
from tests.golden.replays.exported_stream import ExportedStreams
from tests.golden.replays.stream import replay_stream
from tests.golden.replays.vae import CpuForm
from tests.server.grpc_models import GrpcModels
from tests.server.triton_fixtures import running_triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

# One stream of each pipeline, through its whole loop; longlive's rollover and camera too.
STREAMS = {
    "krea/v2v",
    "longlive/prompt_switch",
    "longlive/t2v_rollover",
    "longlive/v2v",
    "memflow/prompt_switch_memory_bank",
    "reward_forcing/v2v_first_chunk",
    "streamdiffusionv2/v2v_noise_controller",
}
SERVED_STREAMS = [case for case in discover(golden_directory()) if str(case) in STREAMS]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models are added to it while the server runs."""
    return tmp_path_factory.mktemp("golden")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(repository: Path) -> AsyncIterator[EmbeddedTriton]:
    async with running_triton(repository) as server:
        yield server


def tensor_info(spec: TensorSpec) -> TensorInfo:
    return TensorInfo(name=spec.name, shape=spec.shape, dtype="int64" if spec.integer else "float32")


def manifest_of(name: str, path: Path, signature: Signature) -> EngineManifest:
    return EngineManifest(
        name=name,
        kind="transformer",
        precision="fp32",
        fingerprint="",
        inputs=tuple(map(tensor_info, signature.inputs)),
        outputs=tuple(map(tensor_info, signature.outputs)),
        profiles=(),
        opset=20,
        files=tuple(file_info(file) for file in sorted(path.parent.glob("model.onnx*"))),
        source_checkpoints=(),
        exporter_version="",
        parity=None,
    )


Serve = Callable[[Path, Signature], Engine]


@pytest.fixture
def serve(repository: Path, triton: EmbeddedTriton, request: pytest.FixtureRequest) -> Serve:
    """From an exported file to an engine on the server; the file moves."""
    models = GrpcModels(triton.grpc_url)
    case = request.getfixturevalue("served_case")

    def load(path: Path, signature: Signature) -> Engine:
        name = f"{str(case).replace('/', '_')}_{path.parent.name}"
        version = repository / name / "1"
        version.parent.mkdir()
        path.parent.rename(version)
        manifest = manifest_of(name, version / path.name, signature)
        (version / MANIFEST).write_text(manifest.model_dump_json())
        write_onnxruntime_model(version.parent, version, manifest)
        models.client.load_model(name)
        return TritonEngine(manifest, models)

    return load


@pytest.mark.parametrize("served_case", exported_cases(), ids=str)
async def test_a_served_engine_reproduces_the_reference(
    served_case: GoldenCase, tmp_path: Path, serve: Serve, traced_graphs: Path
) -> None:
    def replay() -> None:
        with torch.inference_mode():
            place: Place = Exported(tmp_path, traced_graphs, serve)
            if served_case.kind.startswith("wan.vae_"):  # as they are served on the CPU
                place = CpuForm(Exported(tmp_path, traced_graphs, serve, form="cpu"))
            REPLAYS[served_case.kind](served_case, place)

    await asyncio.to_thread(replay)

    assert served_case.compared >= set(served_case.expected())


@pytest.mark.timeout(600)  # the first of a shape is traced
@pytest.mark.parametrize("served_case", SERVED_STREAMS, ids=str)
async def test_a_stream_on_served_engines_reproduces_the_reference(
    served_case: GoldenCase, tmp_path: Path, serve: Serve, traced_graphs: Path
) -> None:
    def replay() -> None:
        with torch.no_grad():
            replay_stream(served_case, ExportedStreams(tmp_path, traced_graphs, serve))

    await asyncio.to_thread(replay)

    assert served_case.compared >= set(served_case.expected())
