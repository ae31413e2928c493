"""The exported VACE branch: manifests of the released sizes, and engines that do what the modules do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from export.onnx.jobs import Request
from export.onnx.outline import Outline, outline
from export.onnx.store import EngineStore
from export.pytorch.pipeline import load_pipeline
from gateway.serving.checkpoints import Checkpoints
from streaming.checkpoints.files import TRANSFORMER_FILES, CheckpointError
from streaming.engines.load_plan import TorchSettings, VacePlan
from streaming.engines.records import EngineError
from streaming.engines.served import InProcess, open_model
from streaming.network.inputs import group_of
from streaming.specs import LONGLIVE, SPECS
from tests.checkpoints import torch_load_plan, vace_module, write_small
from tests.engines import SIZE, small_request

PIPELINES = sorted(TRANSFORMER_FILES)


def published(pipeline: str) -> Outline:
    spec = SPECS[pipeline]
    size = (512, 512) if pipeline == "krea-realtime-video" else (spec.height, spec.width)
    return outline(Request(pipeline, Path("nowhere"), (size,), precision="bf16", vace=True))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_graph_with_the_branch_has_the_plain_one_s_cache(pipeline: str) -> None:
    found = published(pipeline)
    branch = found.engines.branch
    assert branch is not None
    plain, guided = found.manifests[found.engines.transformer], found.manifests[branch.transformer]
    of_vace = [tensor for tensor in guided.inputs if group_of(tensor.name) == "vace"]

    assert [t for t in guided.inputs if t not in of_vace] == list(plain.inputs)
    assert guided.outputs == plain.outputs
    assert len([t for t in of_vace if t.name.startswith("vace_cross_kv")]) == branch.blocks
    assert of_vace[0].shape[2] == 96 * 4
    assert guided.vace_blocks == branch.blocks == (8 if pipeline == "krea-realtime-video" else 15)
    loop = SPECS[pipeline].loop
    assert loop is not None
    assert all(profile["F"].max == loop.longest_chunk for profile in guided.profiles)


def test_the_branch_has_the_parameters_of_the_released_modules_and_counts_in_the_memory_plan() -> None:
    for pipeline, wanted in (("longlive", 0.73e9), ("krea-realtime-video", 3.0e9)):
        found = published(pipeline)
        branch = found.engines.branch
        assert branch is not None
        plain, guided = (
            sum(found.manifests[name].bytes for name in names)
            for names in (
                (found.engines.transformer, found.engines.text_kv),
                (branch.transformer, branch.text_kv),
            )
        )
        text = found.manifests[found.engines.text_kv].bytes
        assert (guided - (plain - text)) / 2 == pytest.approx(wanted, rel=0.1)
        (memory,) = found.memory()
        without = {k: v for k, v in found.manifests.items() if k not in (branch.transformer, branch.text_kv)}
        (smaller,) = replace(found, manifests=without).memory()
        assert memory.total() - smaller.total() > guided


def write_branch(models: Path) -> Path:
    """The file of a branch for the small stand-ins."""
    path = models / TRANSFORMER_FILES["longlive"].vace
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(vace_module(), path)
    return path


def test_a_set_without_the_branch_says_how_to_export_it(exported_engines: tuple[Path, Any]) -> None:
    root, engines = exported_engines
    store = EngineStore(root / "engines")

    with pytest.raises(EngineError, match=r"no VACE branch.* wanstream-export longlive --vace"):
        open_model(store.sets / engines.name, LONGLIVE, InProcess(store.models), vace=VacePlan())


def test_a_branch_beside_a_checkpoint_is_found_and_counted(tmp_path: Path) -> None:
    request = small_request(tmp_path / "models")
    checkpoints = Checkpoints(request.models, tmp_path, TorchSettings(device="cpu"), has_gpu=False)
    load = {"height": SIZE[0], "width": SIZE[1], "base_seed": 42, "vae_type": "wan", "vace_enabled": True}

    assert not checkpoints.availability(LONGLIVE).vace
    assert checkpoints.plan(LONGLIVE, load).vace is None
    path = write_branch(request.models)

    assert checkpoints.availability(LONGLIVE).vace
    assert checkpoints.plan(LONGLIVE, load).vace == VacePlan()
    assert checkpoints.plan(LONGLIVE, {**load, "vace_enabled": False}).vace is None
    counted = checkpoints.sizes(LONGLIVE, "wan", vace=True).vace_parameters
    assert counted == pytest.approx(path.stat().st_size / 4, rel=0.2)


def test_a_damaged_branch_fails_only_a_load_that_wants_it(tmp_path: Path) -> None:
    models = write_small(tmp_path / "models")
    write_branch(models).write_bytes(b"no tensors")

    load_pipeline(LONGLIVE, torch_load_plan(models, "longlive"))
    with pytest.raises(CheckpointError, match=r"VACE.* is damaged or incomplete: delete it and download"):
        load_pipeline(LONGLIVE, torch_load_plan(models, "longlive", vace=VacePlan()))
