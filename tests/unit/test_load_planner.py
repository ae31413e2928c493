"""Engines or a checkpoint: what a load takes of what is there, and what it may ask for then."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from export.onnx.store import EngineStore
from gateway.config import Config
from gateway.serving import checkpoints as checkpoints_module
from gateway.serving.checkpoints import Checkpoints
from gateway.serving.engine_sets import EngineSets
from gateway.serving.interface import ServingError
from gateway.serving.load_plans import CheckpointLoad, EngineLoad, LoadPlanner
from streaming.checkpoints.files import TEXT_ENCODER, TRANSFORMER_FILES, VAE_FILES
from streaming.engines.engine_set import SET, EngineSet, read_engine_set
from streaming.engines.load_plan import BackendChoice, TorchSettings, TorchSwitches
from streaming.errors import WanstreamError
from streaming.specs import LONGLIVE
from tests.checkpoints import write_small
from tests.engines import SIZE

GB = 1_000_000_000
PARAMS: dict[str, Any] = {"height": SIZE[0], "width": SIZE[1], "vae_type": "wan", "base_seed": 42}
OTHER_SIZE = PARAMS | {"height": 112, "width": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("checkpoints") / "models")


@pytest.fixture
def engines(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Path:
    """A copy of the small engine set."""
    shutil.copytree(exported_engines[0] / "engines", tmp_path / "engines")
    return tmp_path / "engines"


def change_set(engines: Path, **changes: Any) -> None:
    path = next(EngineStore(engines).sets.glob(f"*/{SET}"))
    path.write_text(read_engine_set(path.parent).model_copy(update=changes).model_dump_json())


def planner(models: Path, engines: Path, *, gpu: bool = False, external: bool = False) -> LoadPlanner:
    sets = EngineSets(engines, on_cpu=not external)
    return LoadPlanner(sets, Checkpoints(models, sets.models, TorchSettings(), gpu, not external))


def backend_of(chosen: LoadPlanner, **params: Any) -> str:
    return chosen.decide(LONGLIVE, PARAMS | params).plan.backend


def test_the_demonstration_stays_what_a_cpu_streams_and_a_gpu_takes_the_weights(
    models: Path, engines: Path
) -> None:
    on_cpu, on_gpu = planner(models, engines), planner(models, engines, gpu=True)

    assert backend_of(on_cpu) == "onnxruntime"
    assert on_cpu.availability(LONGLIVE).supported_resolutions == [SIZE]
    assert backend_of(on_gpu) == "pytorch"
    assert "on the GPU" in on_gpu.decide(LONGLIVE, PARAMS).reason
    assert "demonstration" in on_cpu.decide(LONGLIVE, PARAMS).reason
    assert on_gpu.availability(LONGLIVE).supported_resolutions is None
    for asked in ("onnxruntime", "triton", "pytorch"):
        assert backend_of(on_cpu, backend=asked) == backend_of(on_gpu, backend=asked) == asked


def test_engines_come_first_and_the_weights_take_every_other_size(models: Path, engines: Path) -> None:
    change_set(engines, demo=False)
    chosen = planner(models, engines)

    fits, other = chosen.decide(LONGLIVE, PARAMS), chosen.decide(LONGLIVE, OTHER_SIZE)

    assert (fits.reason, other.reason) == (
        "engines for the CPU are here",
        "the engines are built for other parameters",
    )
    assert isinstance(fits, EngineLoad)
    assert isinstance(other, CheckpointLoad)
    assert (other.plan.size, other.plan.pytorch and other.plan.pytorch.device) == ((112, 64), "cpu")
    assert chosen.availability(LONGLIVE).supported_resolutions is None
    assert chosen.availability(LONGLIVE, "onnxruntime").supported_resolutions == [SIZE]
    with pytest.raises(ServingError, match="There are no engines"):
        chosen.decide(LONGLIVE, OTHER_SIZE | {"backend": "onnxruntime"})
    with pytest.raises(ServingError, match="fp8"):
        chosen.decide(LONGLIVE, OTHER_SIZE | {"quantization": "fp8_e4m3fn"})


def test_plans_come_before_weights(models: Path, engines: Path) -> None:
    change_set(engines, demo=False, serve_with="tensorrt")
    chosen = planner(models, engines, gpu=True, external=True)

    assert chosen.sets.has_plans(LONGLIVE)
    with pytest.raises(ServingError, match="TensorRT plan"):  # it takes them: none was built
        chosen.decide(LONGLIVE, PARAMS)
    assert backend_of(chosen, height=112, width=64) == "pytorch"


def test_weights_alone_are_enough(models: Path, tmp_path: Path) -> None:
    chosen = planner(models, tmp_path)
    available = chosen.availability(LONGLIVE)

    assert (available.available, available.vae_types, available.needs_models) == (True, ("wan",), False)
    assert backend_of(chosen) == "pytorch"
    assert not chosen.availability(LONGLIVE, "onnxruntime").available
    assert chosen.opening() is None


@pytest.mark.parametrize("name", [TRANSFORMER_FILES["longlive"].weights, TEXT_ENCODER, VAE_FILES["wan"]])
def test_weights_that_are_not_complete_are_not_there(name: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    (tmp_path / "models" / name).unlink()
    chosen = planner(tmp_path / "models", tmp_path / "engines")

    assert not chosen.availability(LONGLIVE).available
    refused = chosen.availability(LONGLIVE, "pytorch")
    assert not refused.available
    assert name in (refused.reason or "")
    assert "download_models --pipeline longlive" in (refused.reason or "")


def test_a_pointer_in_place_of_the_weights_is_refused_before_anything_is_loaded(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models")
    (tmp_path / "models" / TEXT_ENCODER).write_text("version https://git-lfs.github.com/spec/v1\n")

    with pytest.raises(ServingError, match="git-lfs"):
        planner(tmp_path / "models", tmp_path / "engines").decide(LONGLIVE, PARAMS)


@pytest.mark.parametrize("backend", ["auto", "pytorch"])
def test_packages_that_are_missing_are_named(
    backend: BackendChoice, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "_PACKAGES", ("torch", "no_such_package"))
    chosen = planner(models, tmp_path)

    available = chosen.availability(LONGLIVE, "pytorch")

    assert not available.available
    assert "not installed: no_such_package. Run: pip install" in (available.reason or "")
    assert not chosen.availability(LONGLIVE, backend).available


def test_the_status_shows_the_checkpoint_its_precision_and_every_network_with_its_place(
    models: Path, tmp_path: Path
) -> None:
    load = planner(models, tmp_path, gpu=True).decide(LONGLIVE, PARAMS)
    chosen = load.fit(2 * GB, 8 * GB)

    shown = load.served(chosen)

    assert (shown.engine_set, shown.precision) == (None, "bf16")
    assert shown.reason == "the weights are here, and no engines"
    assert shown.checkpoint == "LongLive-1.3B/models/longlive_base.pt"
    assert {(e.backend, e.runtime) for e in shown.engines} == {("pytorch", "pytorch")}
    assert {e.name: e.device for e in shown.engines} == dict.fromkeys(
        ("transformer", "text_kv", "vae", "text_encoder"), "cuda:0"
    )
    assert shown.memory.kind == "GPU memory"
    assert sum(shown.memory.parts.values()) == shown.memory.total_bytes
    smallest = load.fit(chosen.plan.total() - 1, 8 * GB)
    assert {e.name: e.device for e in load.served(smallest).engines}["text_encoder"] == "cpu"


def test_settings_of_pytorch_are_read_from_the_environment() -> None:
    assert Config.from_env({}).pytorch == TorchSettings()
    changed = {"WANSTREAM_PYTORCH_DEVICE": "cuda", "WANSTREAM_PYTORCH_PRECISION": "FP32"}
    changed |= {f"WANSTREAM_PYTORCH_{name.upper()}": "off" for name in TorchSwitches.model_fields}

    read = Config.from_env(changed).pytorch

    assert (read.device, read.precision) == ("cuda", "fp32")
    assert set(read.switches.model_dump().values()) == {False}
    with pytest.raises(WanstreamError, match="WANSTREAM_PYTORCH_FUSED must be one of on, off"):
        Config.from_env({"WANSTREAM_PYTORCH_FUSED": "maybe"})
