"""`wanstream-build SET --with rtx`: the real compiler compiles a set, which a load then takes."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.tensorrt.cli import main
from gateway.serving.engine_sets import EngineSets
from gateway.serving.load_plans import LoadPlanner
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import engine_directory, read_manifest
from streaming.engines.ort import GpuProviders
from streaming.engines.rtx import RtxVersions, check_compiled
from streaming.memory.machine import Machine
from streaming.specs import LONGLIVE
from tests.engines import SIZE
from tests.rtx.compiling import Compiler

pytestmark = pytest.mark.timeout(600)  # compiles of a busy machine

PARAMS = {"height": SIZE[0], "width": SIZE[1], "vae_type": "wan", "base_seed": 42}
ADA = Machine(gpu="NVIDIA L4", compute_capability="8.9", driver="580.0")


def test_a_set_is_compiled_checked_and_chosen(
    compiler: Compiler,
    exported_engines: tuple[Path, EngineSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines, name = tmp_path / "engines", exported_engines[1].name
    shutil.copytree(exported_engines[0] / "engines", engines)
    monkeypatch.setattr(Machine, "here", lambda *_: ADA)
    monkeypatch.setenv("WANSTREAM_RTX_PYTHON", str(compiler.python("sm89", tmp_path)))

    def build(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [name, "--engines", str(engines), "--with", "rtx", *options])
        return result.exit_code, result.output

    before, (built, told), after, again = build("--check"), build(), build("--check"), build()

    assert (before[0], built, after[0]) == (1, 0, 0), told
    assert "never compiled for sm89" in before[1]
    assert "All 7 engines are compiled for sm89" in again[1]
    manifest = read_manifest(engine_directory(engines / "models", exported_engines[1].transformer))
    (record,) = manifest.rtx
    versions = RtxVersions(plugin=record.plugin, tensorrt_rtx=record.tensorrt_rtx)
    directory = engine_directory(engines / "models", manifest.name)
    assert check_compiled(directory, manifest, "sm89", versions, hashes=True).is_file()
    providers = GpuProviders("sm89", cuda=True, rtx=versions)
    planner = LoadPlanner(EngineSets(engines, on_cpu=True, gpu=providers))
    load = planner.decide(LONGLIVE, PARAMS)
    assert (load.plan.backend, load.plan.provider, load.on_gpu) == ("onnxruntime", "rtx", True)
    assert "TensorRT for RTX" in load.reason
    (directory / "rtx" / "sm89" / record.files[1].file).write_bytes(b"damaged")
    assert planner.decide(LONGLIVE, PARAMS).plan.provider == "cuda"
    assert build()[0] == 0
    assert planner.decide(LONGLIVE, PARAMS).plan.provider == "rtx"
