"""What TensorRT is told to build follows the manifest; nothing here runs TensorRT."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.datatype import DataType
from torch import Tensor

from export.onnx.store import EngineStore, Resources, StoreError
from export.tensorrt.build import Build, random_feeds
from export.tensorrt.cli import main
from export.tensorrt.engine_build import (
    BuildPlan,
    ShapeRange,
    build_plan,
    server_options,
    timing_cache,
    trtexec_command,
)
from export.tensorrt.tensorrt_build import (
    BuildError,
    build_with_tensorrt,
    largest_difference,
    onnx_runner,
    plan_loader,
)
from streaming.engines.engine import Engine, OrtEngine
from streaming.engines.engine_set import EngineSet, read_engine_set
from streaming.engines.manifest import (
    CONFIG,
    CPU_PRECISIONS,
    ONNX_FILE,
    PLAN_FILE,
    AxisRange,
    BuildOptions,
    read_manifest,
)
from streaming.engines.manifest import MANIFEST as ENGINE_MANIFEST
from streaming.engines.plans import check_plan
from streaming.engines.records import EngineError
from streaming.memory.machine import Machine
from streaming.memory.plan import DoesNotFitError
from tests.engines import SIZE
from tests.server.reference_engine import ReferenceEngine
from tests.unit.test_repository import MANIFEST, TWO_PROFILES

H100 = Machine("NVIDIA H100 80GB HBM3", "9.0", "570.86.15", "10.9.0.34")
MISSING = r"TensorRT is not installed here \(No module named 'tensorrt'\)"


def test_a_dynamic_input_has_its_shapes_in_every_profile(tmp_path: Path) -> None:
    other = {"T": AxisRange(min=6, opt=18, max=24)}
    manifest = TWO_PROFILES.model_copy(update={"profiles": (MANIFEST.profiles[0], other)})

    plan = build_plan(tmp_path, manifest, tmp_path / "timing.cache")

    assert plan.profiles == (
        {"tokens": ShapeRange(min=(1, 4, 64), opt=(1, 12, 64), max=(1, 16, 64))},
        {"tokens": ShapeRange(min=(1, 6, 64), opt=(1, 18, 64), max=(1, 24, 64))},
    )


def test_precision_is_left_to_the_graph(tmp_path: Path) -> None:
    options = BuildOptions(refittable=True, version_compatible=True, hardware_compatibility="ampere_plus")

    plan = build_plan(tmp_path, MANIFEST, tmp_path / "timing.cache", options)

    assert plan.flags == ("STRONGLY_TYPED", "REFIT", "VERSION_COMPATIBLE")
    command = trtexec_command(plan)
    assert {"--stronglyTyped", "--refit", "--memPoolSize=workspace:8192M", "--versionCompatible"} <= set(
        command
    )
    assert "--hardwareCompatibilityLevel=ampere+" in command
    assert not {"--fp16", "--bf16", "--fp8", "--int8", "--best"} & set(command)
    assert "--optShapes=tokens:1x12x64" in command


def test_each_gpu_and_version_of_tensorrt_has_timings_of_its_own(tmp_path: Path) -> None:
    other = replace(H100, tensorrt="10.13.2")

    path = timing_cache(tmp_path, H100)

    assert path == tmp_path / "timing" / "NVIDIA_H100_80GB_HBM3-10.9.0.34.cache"
    assert timing_cache(tmp_path, other) != path


def test_triton_gets_a_pool_on_each_gpu() -> None:
    assert server_options({2: 1000, 0: 1000}, version_compatible=True) == [
        "--cuda-memory-pool-byte-size=0:1000",
        "--cuda-memory-pool-byte-size=2:1000",
        "--backend-config=tensorrt,version-compatible=true",
    ]


def test_the_chain_of_loaders_needs_tensorrt_only_when_it_is_called(
    exported_engines: tuple[Path, EngineSet], tmp_path: Path
) -> None:
    """As far as this goes without a GPU: polygraphy's own words, and ours."""
    store = EngineStore(exported_engines[0] / "engines")
    name = exported_engines[1].transformer
    plan = build_plan(store.engine(name), store.verified(name), tmp_path / "timing.cache")

    load = plan_loader(plan)

    with pytest.raises(Exception, match="'tensorrt' is required but could not be imported"):
        load()
    with pytest.raises(BuildError, match=MISSING + r".*nvcr\.io/nvidia/tensorrt"):
        build_with_tensorrt(plan)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def graph(
    exported_engines: tuple[Path, EngineSet], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Tensor]]]:
    """The file of an engine, and inputs; a copy, because onnx refuses files that others have linked."""
    store = EngineStore(exported_engines[0] / "engines")
    source = store.engine(exported_engines[1].text_kv)
    directory = tmp_path_factory.mktemp("graph") / source.parent.name / source.name
    shutil.copytree(source, directory)
    return directory / ONNX_FILE, random_feeds(read_manifest(directory))


def test_a_plan_is_compared_with_its_graph_through_polygraphy(
    graph: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path
) -> None:
    """Two runners of ONNX Runtime: equal files agree; other weights, or no numbers, do not."""
    path, feeds = graph
    worst = []
    for name, factor in (("same", 1.0), ("other", 1.5), ("broken", np.nan)):
        model = onnx.load(str(path))
        weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("bias"))
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name)
        )
        onnx.save(model, str(tmp_path / f"{name}.onnx"))
        runner = onnx_runner(str(tmp_path / f"{name}.onnx"))
        worst.append(largest_difference(runner, onnx_runner(str(path)), feeds))

    assert worst[0] == 0
    assert worst[1] > 1e-3
    assert worst[2] == float("inf")


class GraphRunner(BaseRunner):  # type: ignore[misc]
    """In place of polygraphy's runner of a plan: takes and gives torch tensors of the engine's types, as that
    does, and runs the graph in ONNX Runtime or, where that cannot, in ONNX's reference implementation."""

    def __init__(self, directory: Path, factor: float) -> None:
        super().__init__("plan")
        self.directory, self.factor = directory, factor

    def activate_impl(self) -> None:
        on_cpu = read_manifest(self.directory).precision in CPU_PRECISIONS
        path = self.directory / ONNX_FILE
        self.engine: Engine = OrtEngine(path) if on_cpu else ReferenceEngine(self.directory)

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for tensor in read_manifest(self.directory).inputs:
            metadata.add(tensor.name, DataType.from_dtype(getattr(torch, tensor.dtype)), tensor.shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.inference_time = 0.0
        results = self.engine.run(feed_dict, self.engine.outputs)
        return {name: tensor * self.factor for name, tensor in results.items()}


@dataclass
class Gpu:
    """In place of the GPU's builder, which this machine cannot have.

    factor: of the results of its plans
    """

    factor: float = 1.0
    built: list[BuildPlan] = field(default_factory=list)

    def check(self) -> None:
        pass

    def build(self, plan: BuildPlan) -> bytes:
        self.built.append(plan)
        return b"plan of " + plan.engine.encode()

    def activation_bytes(self, content: bytes) -> int | None:
        return 1000

    def runner(self, content: bytes) -> GraphRunner:
        (plan,) = [plan for plan in self.built if content.endswith(plan.engine.encode())]
        return GraphRunner(Path(plan.onnx).parent, self.factor)


@pytest.fixture
def build(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Build:
    """Of a copy of the small set, on a machine with a GPU."""
    root, engines = exported_engines
    shutil.copytree(root / "engines", tmp_path / "engines")
    store = EngineStore(tmp_path / "engines")
    return Build(engines.name, store, lambda line: None, machine=H100, builder=Gpu(), compare=False)


def test_graphs_for_the_cpu_are_not_built(build: Build) -> None:
    directory = build.store.engine(build.manifests(hashes=False)[0].name)
    manifest = read_manifest(directory).model_copy(update={"form": "cpu"})
    (directory / ENGINE_MANIFEST).unlink()  # others have linked it
    (directory / ENGINE_MANIFEST).write_text(manifest.model_dump_json())

    with pytest.raises(BuildError, match=r"for ONNX Runtime on the CPU. Export the set again .* portable"):
        build.plans()


def serves(build: Build) -> str:
    """What the set is served with."""
    return read_engine_set(build.store.sets / build.engine_set).serve_with


def built(build: Build) -> list[str]:
    """Names of the engines whose plans a run builds."""
    gpu = Gpu()
    replace(build, builder=gpu).run()
    return [plan.engine for plan in gpu.built]


def test_what_has_no_room_on_the_gpu_is_not_built(build: Build) -> None:
    gpu = Gpu()

    with pytest.raises(DoesNotFitError, match=r"for one session, 10.0 MB are free: .*--gpu-memory GB"):
        replace(build, builder=gpu, gpu_memory=10_000_000).run()

    assert gpu.built == []
    assert serves(build) == "onnxruntime"


def test_a_build_says_how_the_set_goes_into_the_gpu(build: Build) -> None:
    said: list[str] = []

    replace(build, say=said.append, gpu_memory=80 * 10**9).run()

    assert re.search(r"\d+x\d+: Needs .* of GPU memory, .*; 80.0 GB are free: room for \d+ ", "\n".join(said))


def test_a_build_records_each_plan_and_serves_it(build: Build) -> None:
    replace(build, compare=True).run()

    manifests = build.manifests(hashes=True)
    assert len(manifests) == 7
    assert serves(build) == "tensorrt"
    for manifest in manifests:
        directory = build.store.engine(manifest.name)
        check_plan(directory, manifest, H100, hashes=True)
        record = manifest.tensorrt
        assert record is not None
        assert (record.engine_set, record.gpu, record.driver) == (build.engine_set, H100.gpu, H100.driver)
        assert (record.version, record.options) == (H100.tensorrt, BuildOptions())
        assert record.parity is not None
        assert record.parity < 1e-5
        assert record.activation_bytes == 1000


def test_plans_that_are_there_are_kept_until_something_changes(build: Build) -> None:
    build.run()

    assert built(build) == []
    name = build.manifests(hashes=False)[0].name
    (build.store.engine(name) / PLAN_FILE).write_bytes(b"cut")
    assert built(build) == [name]
    assert len(built(replace(build, options=BuildOptions(level=5)))) == 7
    assert len(built(replace(build, machine=replace(H100, tensorrt="10.13.0")))) == 7


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (
            replace(H100, gpu="NVIDIA L40S", compute_capability="8.9"),
            "it was built for NVIDIA H100 80GB HBM3",
        ),
        (replace(H100, tensorrt="10.13.2"), r"it was built by TensorRT 10\.9\.0\.34, and here is 10\.13\.2"),
    ],
)
def test_a_foreign_plan_is_refused_with_the_command_that_builds_it(
    build: Build, machine: Machine, reason: str
) -> None:
    build.run()
    name = build.manifests(hashes=False)[0].name
    directory = build.store.engine(name)

    with pytest.raises(EngineError, match=f"{reason}.*: wanstream-build {build.engine_set}"):
        check_plan(directory, read_manifest(directory), machine)

    check_plan(directory, read_manifest(directory), replace(H100, driver="600.1", tensorrt="10.9.0"))
    check_plan(directory, read_manifest(directory), Machine())  # a gateway without a GPU


@pytest.mark.parametrize(
    ("options", "machine", "fits"),
    [
        (BuildOptions(version_compatible=True), replace(H100, tensorrt="10.13.2"), True),
        (BuildOptions(version_compatible=True), replace(H100, tensorrt="11.4.0"), False),
        (
            BuildOptions(hardware_compatibility="ampere_plus"),
            replace(H100, gpu="NVIDIA L40S", compute_capability="8.9"),
            True,
        ),
        (
            BuildOptions(hardware_compatibility="same_compute_capability"),
            replace(H100, gpu="NVIDIA L40S", compute_capability="8.9"),
            False,
        ),
        (
            BuildOptions(hardware_compatibility="same_compute_capability"),
            replace(H100, gpu="NVIDIA H200"),
            True,
        ),
    ],
)
def test_compatible_plans_run_where_they_say(
    build: Build, options: BuildOptions, machine: Machine, fits: bool
) -> None:
    replace(build, options=options).run()
    directory = build.store.engine(build.manifests(hashes=False)[0].name)

    if fits:
        check_plan(directory, read_manifest(directory), machine)
    else:
        with pytest.raises(EngineError, match="it was built"):
            check_plan(directory, read_manifest(directory), machine)


def test_a_plan_that_computes_something_else_is_not_used(build: Build) -> None:
    with pytest.raises(BuildError, match=r"differs by 0\.\d+ of the largest element, and 0\.001 is allowed"):
        replace(build, builder=Gpu(factor=1.5), compare=True).run()

    assert serves(build) == "onnxruntime"
    assert not any(m.tensorrt for m in build.manifests(hashes=False))


def test_a_build_that_stops_half_way_goes_on_later(build: Build) -> None:
    class Tired(Gpu):
        def build(self, plan: BuildPlan) -> bytes:
            if len(self.built) == 3:
                raise BuildError("out of memory")
            return super().build(plan)

    with pytest.raises(BuildError, match="out of memory"):
        replace(build, builder=Tired()).run()

    assert serves(build) == "onnxruntime"
    assert len(built(build)) == 4


def test_a_build_that_does_not_fit_on_the_disk_does_not_start(build: Build) -> None:
    gpu = Gpu()
    small = replace(build, builder=gpu, resources=lambda path: Resources(disk=1000, memory=None))

    with pytest.raises(StoreError, match=r"of disk; 1\.0 kB are free"):
        small.run()

    assert gpu.built == []


def test_what_does_not_fit_into_memory_is_said_of_the_build(build: Build) -> None:
    small = replace(build, compare=True, resources=lambda path: Resources(disk=10**12, memory=1000))

    with pytest.raises(
        StoreError, match=r"The build of engine '\S+' needs about .* of memory; 1\.0 kB are free"
    ):
        small.run()


def test_a_plan_is_not_compared_where_that_does_not_fit(build: Build) -> None:
    """Engines of full precision are compared in three times their size, and built in as much."""
    said: list[str] = []
    largest = max(build.manifests(hashes=False), key=lambda manifest: manifest.bytes)
    directory = build.store.engine(largest.name)
    changed = largest.model_copy(update={"precision": "bf16"})
    (directory / ENGINE_MANIFEST).unlink()  # others have linked it
    (directory / ENGINE_MANIFEST).write_text(changed.model_dump_json())
    enough = Resources(disk=10**12, memory=4 * largest.bytes)

    replace(build, compare=True, say=said.append, resources=lambda path: enough).run()

    compared = {m.name: m.tensorrt is not None and m.tensorrt.parity for m in build.manifests(hashes=False)}
    assert [name for name, parity in compared.items() if parity is None] == [largest.name]
    assert [
        line for line in said if line.startswith(f"{largest.name} is not compared with ONNX Runtime: that")
    ]


def test_triton_s_options_are_noted_for_all_sets_that_plans_serve(build: Build) -> None:
    noted = build.store.root / "server_options"
    other = replace(build, engine_set="other", gpus=(0, 1))
    shutil.copytree(build.store.sets / build.engine_set, build.store.sets / other.engine_set)
    (build.store.sets / "of_another_release").mkdir()
    pool = max(memory.pool for memory in build.memory())

    build.run()
    one = noted.read_text()
    replace(other, options=BuildOptions(version_compatible=True)).run()
    both = noted.read_text()
    for each in (build, other):
        each.serve_with("onnxruntime")

    assert one == f"--cuda-memory-pool-byte-size=0:{pool}\n"
    assert both == (
        f"--cuda-memory-pool-byte-size=0:{pool}\n--cuda-memory-pool-byte-size=1:{pool}\n"
        "--backend-config=tensorrt,version-compatible=true\n"
    )
    assert noted.read_text() == ""


def test_a_check_builds_nothing_and_names_every_plan_that_cannot_be_served(build: Build) -> None:
    said: list[str] = []
    gpu = Gpu()
    checking = replace(build, builder=gpu, say=said.append)
    with pytest.raises(EngineError) as nothing_there:
        checking.check()
    build.run()

    checking.check()
    first, second = build.manifests(hashes=False)[:2]
    (build.store.engine(first.name) / PLAN_FILE).write_bytes(b"cut")
    (build.store.engine(second.name) / PLAN_FILE).unlink()
    with pytest.raises(EngineError) as two_wrong:
        checking.check()

    assert str(nothing_there.value).count("it was never built") == 7
    assert len([line for line in said if line.endswith(": the plan can be served here.")]) == 7 + 5
    lines = str(two_wrong.value).splitlines()
    assert [name in line for name, line in zip((first.name, second.name), lines, strict=True)] == [True, True]
    assert gpu.built == []


def test_the_command_says_by_its_exit_code_whether_plans_are_there(
    exported_engines: tuple[Path, EngineSet],
) -> None:
    result = run(exported_engines, "--check")

    assert result.exit_code == 1
    assert result.stderr.count("it was never built. Run where Triton runs: wanstream-build") == 7


def test_a_set_is_served_as_it_is_told(build: Build) -> None:
    with pytest.raises(EngineError, match="it was never built"):
        build.serve_with("tensorrt")
    build.run()
    engines = {
        m.name: (build.store.models / m.name / CONFIG).read_text() for m in build.manifests(hashes=False)
    }

    build.serve_with("onnxruntime")
    assert serves(build) == "onnxruntime"
    replace(build, gpus=(0, 1)).serve_with("tensorrt")
    assert serves(build) == "tensorrt"
    assert read_engine_set(build.store.sets / build.engine_set).gpus == (0, 1)
    assert all((build.store.models / name / CONFIG).read_text() == text for name, text in engines.items())


def test_plans_of_trtexec_are_recorded(build: Build) -> None:
    with pytest.raises(BuildError, match=r"model\.plan' does not exist. Run the commands of --trtexec"):
        build.record()
    for manifest in build.manifests(hashes=False):
        (build.store.engine(manifest.name) / PLAN_FILE).write_bytes(b"made by trtexec")

    build.record()

    assert built(build) == []


def run(exported_engines: tuple[Path, EngineSet], *options: str) -> Result:
    root, engines = exported_engines
    return CliRunner().invoke(main, [engines.name, "--engines", str(root / "engines"), *options])


def test_a_dry_run_tells_everything_without_tensorrt(exported_engines: tuple[Path, EngineSet]) -> None:
    result = run(exported_engines, "--dry-run", "--level", "5", "--workspace", "2", "--gpu", "1")

    assert result.exit_code == 0, result.stderr
    description = json.loads(result.stdout)
    store = EngineStore(exported_engines[0] / "engines")
    plans = description["engines"]
    assert [plan["engine"] for plan in plans] == list(exported_engines[1].engines())
    assert all(Path(plan["onnx"]).is_file() for plan in plans)
    assert {plan["options"]["level"] for plan in plans} == {5}
    assert {plan["options"]["workspace_bytes"] for plan in plans} == {2 << 30}
    manifest = store.verified(plans[-1]["engine"])
    assert plans[-1]["estimated_plan_bytes"] == manifest.bytes
    assert [tensor["name"] for tensor in plans[-1]["inputs"]] == [tensor.name for tensor in manifest.inputs]
    assert plans[-1]["profiles"][0]["tokens"]["max"] == [1, 140, 64]
    memory = description["memory"][0]
    assert (memory["height"], memory["width"]) == SIZE
    pool = memory["parts"]["copies under way"]
    assert description["server_options"] == [f"--cuda-memory-pool-byte-size=1:{pool}"]
    assert "tensorrt" not in sys.modules


def test_one_command_per_engine_is_printed(exported_engines: tuple[Path, EngineSet]) -> None:
    result = run(exported_engines, "--trtexec")

    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    assert len(commands) == 7
    assert all(command[0] == "trtexec" for command in commands)


def test_a_build_without_tensorrt_says_where_there_is_one(exported_engines: tuple[Path, EngineSet]) -> None:
    result = run(exported_engines)

    assert result.exit_code == 1
    assert "TensorRT is not installed here (No module named 'tensorrt')." in result.stderr
    assert "nvcr.io/nvidia/tensorrt:<yy.mm>-py3" in result.stderr


def test_an_absent_set_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["nothing", "--dry-run", "--home", str(tmp_path)])

    assert result.exit_code == 1
    assert f"There are no engines in '{tmp_path}/engines/sets/nothing'" in result.stderr
