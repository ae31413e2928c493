"""LoRA files merged into engines that Triton runs: sets of their own by the real export, found again."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from export.onnx.store import EngineStore
from gateway.embedded.server import EmbeddedTriton, model_repository
from gateway.routes.merged_sets import merged_sets_blueprint
from gateway.serving import merged_sets as module
from gateway.serving.adapters import Adapters
from gateway.serving.engine_sets import EngineSets, FoundSet
from gateway.serving.interface import Serving, ServingError
from gateway.serving.load_plans import EngineLoad, LoadPlanner
from gateway.serving.merged_sets import MergedSets, SetMerger, loras_of
from gateway.triton.serving import TritonServing
from streaming.engines.demo import DEMO_MODELS
from streaming.engines.engine_set import SET, EngineSet, read_engine_set
from streaming.engines.load_plan import LoadPlan, PlannedAdapter
from streaming.engines.served import served_pipeline
from streaming.specs import LONGLIVE
from streaming.triton.sessions import Images, LoadContext
from tests.engines import SIZE, load_plan
from tests.serve_app import make_app

CHUNK: dict[str, Any] = {"prompts": [{"text": "a boat", "weight": 1.0}], "denoising_step_list": [500]}
WEIGHT = "blocks.0.ffn.0"
ADDRESS = "/api/v1/pipeline/merged-sets"


def write_lora(path: Path, value: float) -> Path:
    torch.manual_seed(0)
    down, up = torch.randn(4, 16), torch.randn(24, 4) * value
    save_file({f"{WEIGHT}.lora_A.weight": down, f"{WEIGHT}.lora_B.weight": up}, path)
    return path


@pytest.fixture(scope="module")
def home(exported_engines: tuple[Path, EngineSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home directory with the small set, its weights and two LoRA files."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(exported_engines[0] / "engines", home / "engines", copy_function=os.link)
    (home / DEMO_MODELS).symlink_to(exported_engines[0] / "models")
    (home / "loras").mkdir()
    for name, value in (("strong", 3.0), ("weak", 0.1)):
        write_lora(home / "loras" / f"{name}.safetensors", value)
    return home


@pytest.fixture
def planner(home: Path) -> LoadPlanner:
    sets = EngineSets(home / "engines", on_cpu=True)
    merger = SetMerger(MergedSets(sets, limit=2), home, home / "models", has_tensorrt=False)
    adapters = Adapters(lambda name: home / "loras" / name, home / "engines" / "adapters")
    return LoadPlanner(sets, adapters=adapters, merger=merger)


def load_params(scale: float = 0.8, name: str = "strong", backend: str = "triton") -> dict[str, Any]:
    lora = {"path": f"{name}.safetensors", "scale": scale, "merge_mode": "permanent_merge"}
    return {
        "height": SIZE[0],
        "width": SIZE[1],
        "vae_type": "wan",
        "base_seed": 42,
        "backend": backend,
        "loras": [lora],
    }


def decided(planner: LoadPlanner, **params: Any) -> EngineLoad:
    load = planner.decide(LONGLIVE, load_params(**params))
    assert isinstance(load, EngineLoad)
    return load


async def make(planner: LoadPlanner, load: EngineLoad, stages: list[str] | None = None) -> None:
    """Make what a load waits for; all tests share what one has made, for an export takes seconds."""
    if not load.waits_for_merge:
        return
    assert planner.adapters is not None
    assert planner.merger is not None
    base = FoundSet(load.plan.set_directory, load.engines)
    on_stage = (stages if stages is not None else []).append
    await planner.merger.make(base, planner.adapters.copied(load.plan.merged), on_stage, lambda: None)


def first_chunk(plan: LoadPlan) -> Images:
    context = LoadContext(plan.as_parameters(), models=None, directory=Path())  # type: ignore[arg-type]
    stream = served_pipeline(LONGLIVE)(context).open_stream()
    return np.concatenate([images for images, _ in stream.next_chunk(CHUNK, None, lambda: False)])


async def test_a_merged_set_is_made_once_and_makes_the_pictures_of_a_merge(
    planner: LoadPlanner, home: Path
) -> None:
    stages: list[str] = []
    before = decided(planner)
    assert before.waits_for_merge

    await make(planner, before, stages)

    after, other_scale, other_file = (
        decided(planner),
        decided(planner, scale=0.5),
        decided(planner, name="weak"),
    )
    assert (after.waits_for_merge, after.plan.adapters) == (False, ())
    assert other_scale.waits_for_merge
    assert other_file.waits_for_merge
    assert after.engines.text_encoder == before.engines.text_encoder  # and whatever else does not change
    assert after.engines.transformer != before.engines.transformer
    assert any("of" in stage for stage in stages[1:])  # it tells how far it is
    store = EngineStore(home / "engines")
    adapter = decided(planner, backend="onnxruntime").plan.adapters
    in_memory = first_chunk(load_plan(store, before.engines, adapters=adapter))
    in_files = first_chunk(load_plan(store, after.engines))
    plain = first_chunk(load_plan(store, before.engines))
    assert np.abs(in_files.astype(int) - in_memory.astype(int)).max() <= 1
    assert np.abs(in_files.astype(int) - plain.astype(int)).max() > 8


async def test_triton_runs_a_merged_set(planner: LoadPlanner, home: Path) -> None:
    repository = model_repository()
    serving = TritonServing(
        repository,
        embedded=EmbeddedTriton([repository, planner.sets.models]),
        engines=planner.sets,
        adapters=planner.adapters,
        merger=planner.merger,
    )
    stages: list[str] = []
    await serving.start(lambda text: None)
    try:
        await serving.prepare(LONGLIVE, load_params(), stages.append)
        await serving.load(LONGLIVE, load_params(), stages.append)
        served = serving.load_plan
        session = serving.open_session()
        chunk = CHUNK | {"input_mode": "text", "init_cache": True}
        parts = [part.frames async for part in session.generate(chunk, None)]
        await session.close()
    finally:
        await serving.close()

    merged = decided(planner).engines
    assert served is not None
    assert served.engine_set == merged.name
    assert {engine.backend for engine in served.engines} == {"triton"}
    in_process = first_chunk(load_plan(EngineStore(home / "engines"), merged))
    difference = np.abs(np.concatenate(parts).astype(int) - in_process.astype(int))
    assert difference.max() <= 1


async def test_no_other_load_takes_a_merged_set(planner: LoadPlanner) -> None:
    await make(planner, decided(planner))

    plain = planner.decide(LONGLIVE, load_params() | {"loras": None})

    assert isinstance(plain, EngineLoad)
    assert plain.engines.loras == ()


async def test_the_set_that_is_not_used_longest_goes_with_its_engines_only(
    planner: LoadPlanner, home: Path
) -> None:
    assert planner.merger is not None
    merged = planner.merger.merged
    await make(planner, decided(planner))
    first = decided(planner).engines
    others = copies(planner, first, "older", "newer")
    os.utime(merged.sets.root / "sets" / "older" / SET, (1, 1))

    merged.evict({first.name})

    names = {one.name for one in merged.found()}
    assert names == {first.name, "newer"}
    for name in (*others["newer"].engines(), *first.engines()):
        assert (home / "engines" / "models" / name).is_dir()
    assert not (home / "engines" / "models" / others["older"].transformer).exists()
    merged.remove(["newer"])


def copies(planner: LoadPlanner, engines: EngineSet, *names: str) -> dict[str, EngineSet]:
    """Further merged sets, with a transformer of their own."""
    root, found = planner.sets.root, {}
    for name in names:
        other = f"{name}_transformer"
        shutil.copytree(root / "models" / engines.transformer, root / "models" / other, copy_function=os.link)
        shutil.copytree(root / "sets" / engines.name, root / "sets" / name)
        (root / "sets" / name / "used").unlink(missing_ok=True)
        found[name] = engines.model_copy(update={"name": name, "transformer": other})
        (root / "sets" / name / SET).write_text(found[name].model_dump_json())
    return found


async def test_a_merge_that_fails_leaves_nothing_and_says_what_to_do(
    planner: LoadPlanner, home: Path
) -> None:
    assert planner.merger is not None
    load = decided(planner, scale=0.25)
    before = sorted(path.name for path in (home / "engines" / "models").iterdir())
    full = replace(planner.merger, export=("sh", "-c", "echo 'Error: 2 GB of disk, 1 MB are free.'; exit 1"))

    with pytest.raises(ServingError, match=r"export has failed: 2 GB of disk.* runtime_peft"):
        await make(replace(planner, merger=full), load)

    assert sorted(path.name for path in (home / "engines" / "models").iterdir()) == before
    assert decided(planner, scale=0.25).waits_for_merge


async def test_files_of_other_weights_are_not_taken_for_the_same_engines(
    planner: LoadPlanner, home: Path
) -> None:
    assert planner.merger is not None
    await make(planner, decided(planner))
    load, base = decided(planner), decided(planner, scale=0.1)  # merged, and still plain
    changed = base.engines.model_copy(update={"text_encoder": "another"})
    found = FoundSet(base.plan.set_directory, changed)

    assert planner.merger.merged.find(found, load.engines.loras) is None
    assert planner.merger.merged.find(FoundSet(found.directory, base.engines), load.engines.loras) is not None


def test_plans_are_refused_where_nothing_builds_them(planner: LoadPlanner) -> None:
    merger, load = planner.merger, decided(planner, scale=0.3)
    assert merger is not None
    plans = FoundSet(load.plan.set_directory, load.engines.model_copy(update={"serve_with": "tensorrt"}))

    with pytest.raises(ServingError, match=r"wanstream-export longlive .*--lora.*wanstream-build.*pytorch"):
        merger.require_tools(plans)

    replace(merger, has_tensorrt=True).require_tools(plans)


def test_engines_are_refused_where_nothing_exports(
    planner: LoadPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("a_package_that_nobody_has",))

    with pytest.raises(ServingError, match=r"a_package_that_nobody_has is not installed.*--lora FILE=SCALE"):
        decided(planner, scale=0.3)


async def test_plans_are_built_as_those_of_the_set_were(planner: LoadPlanner, tmp_path: Path) -> None:
    """Up to TensorRT's own work: the builder is one that writes down what it was told."""
    assert planner.merger is not None
    load = decided(planner, scale=0.3)
    said = tmp_path / "said"
    echo = ("sh", "-c", f'echo "$@" >> {said}; echo "Engine set \'merged\' is complete: here"', "sh")
    merger = replace(planner.merger, export=echo, build=echo, has_tensorrt=True)
    engines = load.engines.model_copy(update={"serve_with": "tensorrt", "gpus": (1,)})
    base = FoundSet(load.plan.set_directory, engines)
    adapters = [PlannedAdapter(path=write_lora(tmp_path / "a.safetensors", 1), name="a", scale=0.5)]

    with pytest.raises(ServingError, match="other weights"):  # for nothing was exported
        await merger.make(base, adapters, lambda text: None, lambda: None)

    export, build = said.read_text().splitlines()
    assert export.startswith("longlive --size 64x80 --vae-type wan --precision fp32 --form portable --wait")
    assert export.endswith(f"--lora={tmp_path / 'a.safetensors'}=0.5")
    assert build.startswith(f"merged --out {planner.sets.root} --gpu 1")


async def test_clients_see_and_delete_merged_sets(planner: LoadPlanner, home: Path) -> None:
    assert planner.merger is not None
    await make(planner, decided(planner))
    name = decided(planner).engines.name
    holder = SimpleNamespace(load_plan=SimpleNamespace(engine_set=name))
    app = make_app(merged_sets_blueprint(planner.merger.merged, cast(Serving, holder)))
    client = app.test_client()

    listed = await (await client.get(ADDRESS)).get_json()
    used = await client.delete(f"{ADDRESS}?name={name}")
    nothing = await (await client.delete(ADDRESS)).get_json()
    holder.load_plan = None
    unknown = await client.delete(f"{ADDRESS}?name=nobody")
    with FileLock(home / "engines" / ".lock"):
        busy = await client.delete(ADDRESS)
    still = decided(planner).waits_for_merge
    removed = await (await client.delete(ADDRESS)).get_json()

    (shown,) = listed["sets"]
    assert [(lora["file"], lora["scale"]) for lora in shown["loras"]] == [("strong.safetensors", 0.8)]
    assert (listed["limit"], shown["pipeline_id"], shown["in_use"]) == (2, "longlive", True)
    assert shown["size_bytes"] > 0
    assert (used.status_code, unknown.status_code, busy.status_code) == (409, 404, 409)
    assert nothing == {"removed": [], "freed_bytes": 0}
    assert still is False
    assert removed == {"removed": [name], "freed_bytes": shown["size_bytes"]}
    assert decided(planner).waits_for_merge
    (left,) = (home / "engines" / "sets").iterdir()
    assert all((home / "engines" / "models" / engine).is_dir() for engine in read_engine_set(left).engines())


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = PlannedAdapter(path=tmp_path / "gone.safetensors", name="gone", scale=1.0)

    with pytest.raises(ServingError, match="cannot be read"):
        loras_of([gone])
