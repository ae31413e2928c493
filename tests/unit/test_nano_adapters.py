"""The adapters of the nano checkpoint: their effect is in the picture, and grows with the scale."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.nano_quality import Stream
from export.checkpoints.demo import trained_weights, write_demo_models
from export.nano.__main__ import ADAPTERS, main
from export.nano.measure import Images, look, rim_part, tile_contrast
from export.nano.styles import STYLES
from export.nano.world import Scene, States, draw, film
from export.pytorch.pipeline import load_pipeline
from gateway.__main__ import offered_loras
from gateway.config import Config
from streaming.adapters.files import look_into
from streaming.checkpoints.files import TRANSFORMER_FILES, read_config
from streaming.checkpoints.shapes import parameter_shapes
from streaming.engines.load_plan import LoadPlan, PlannedAdapter, TorchPlan
from streaming.specs import SPECS
from streaming.triton.model_pipeline import ModelPipeline

SIZE, SCALES, PROMPTS, LARGEST = (96, 96), (0.0, 0.5, 1.0), 10, 300_000
MEASURES: dict[str, Callable[[Images], float]] = {
    "outlined-shapes": rim_part,
    "checkered-background": tile_contrast,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nano")
    write_demo_models(directory, trained_weights())
    return directory


def scenes() -> list[Scene]:
    """Large shapes; nothing white or black, where a rim and tiles would be hard to tell."""
    rng, found = random.Random(1), []
    while len(found) < PROMPTS:
        scene = Scene.drawn(rng)
        if not {scene.colour, scene.background} & {"white", "black"} and scene.size == "large":
            found.append(scene)
    return found


@pytest.fixture(scope="module")
def beside(models: Path) -> ModelPipeline:
    """Both adapters beside the weights, so that every stream may have scales of its own."""
    adapters = (
        PlannedAdapter(path=ADAPTERS / f"{style}.safetensors", name=style, scale=0, runtime=True)
        for style in STYLES
    )
    return load_pipeline(SPECS["longlive"], plan(models, adapters=tuple(adapters), adapted=True))


def plan(models: Path, **changes: Any) -> LoadPlan:
    return LoadPlan(
        models=models.parent / "engines" / "models",
        height=SIZE[0],
        width=SIZE[1],
        backend="pytorch",
        pytorch=TorchPlan(checkpoints=models, vae_type="wan"),
        base_seed=7,
        **changes,
    )


def last_picture(pipeline: ModelPipeline, scene: Scene, chunks: int, **parameters: Any) -> Images:
    """Of a stream of so many chunks."""
    stream = Stream(pipeline, seed=7, **parameters)
    return [stream.chunk(scene.prompt) for _ in range(chunks)][-1][-1]


def scaled(style: str, scale: float) -> dict[str, Any]:
    return {"lora_scales": [{"path": style, "scale": scale}]}


def test_a_server_with_the_demonstration_offers_them() -> None:
    assert offered_loras(Config.from_env({})) == [ADAPTERS]
    assert offered_loras(Config.from_env({"WANSTREAM_DEMO": "off"})) == []


@pytest.mark.parametrize("style", STYLES)
def test_each_is_a_small_file_for_this_model(style: str, models: Path) -> None:
    path = ADAPTERS / f"{style}.safetensors"
    config = read_config(models / TRANSFORMER_FILES["longlive"].config)

    file = look_into(path, parameter_shapes(config))

    assert path.stat().st_size < LARGEST
    assert not file.warnings
    assert {"modelspec.title", "modelspec.description"} <= file.metadata.keys()


@pytest.mark.parametrize("style", STYLES)
def test_its_effect_grows_with_the_scale_and_leaves_the_prompt(style: str, beside: ModelPipeline) -> None:
    pictures = [
        [last_picture(beside, scene, 2 if scale == 1 else 1, **scaled(style, scale)) for scene in scenes()]
        for scale in SCALES
    ]

    none, half, whole = ([MEASURES[style](picture) for picture in row] for row in pictures)
    means = [float(np.mean(row)) for row in (none, half, whole)]
    assert means[0] < means[1] < means[2]
    assert means[2] > 5 * max(0.005, means[0])
    assert all(after > before for before, after in zip(none, whole, strict=True))
    colours = [
        look(picture).background == s.background for picture, s in zip(pictures[2], scenes(), strict=True)
    ]
    assert style == "checkered-background" or sum(colours) >= 0.9 * PROMPTS


@pytest.mark.parametrize("style", STYLES)
def test_merged_it_makes_the_same_pictures(style: str, models: Path, beside: ModelPipeline) -> None:
    adapter = PlannedAdapter(path=ADAPTERS / f"{style}.safetensors", name=style, scale=0.8)
    merged = load_pipeline(SPECS["longlive"], plan(models, adapters=(adapter,)))

    for scene in scenes()[:2]:
        by_merge = last_picture(merged, scene, 2).astype(int)
        by_branches = last_picture(beside, scene, 2, **scaled(style, 0.8))
        difference = np.abs(by_branches - by_merge)  # a trained network answers a rounding more strongly
        assert difference.max() <= 8
        assert difference.mean() < 0.2


@pytest.mark.parametrize("style", STYLES)
def test_what_is_painted_is_measured(style: str) -> None:
    states = States(torch.tensor([[48.0, 48.0]]), torch.zeros(1))
    scene = [Scene("large", "red", "circle", "stays still", "blue")]
    plain, painted = (
        ((film(scene, states, 1, SIZE, paint=paint)[0][0, 0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        for paint in (draw, STYLES[style])
    )

    assert MEASURES[style](painted) > 5 * max(0.005, MEASURES[style](plain))


def test_a_training_in_small_writes_a_file_that_merges(tmp_path: Path, models: Path) -> None:
    arguments = ["adapter", "outlined-shapes", "--out", str(tmp_path), "--films", "2", "--steps", "3"]

    result = CliRunner().invoke(main, arguments, catch_exceptions=False)

    assert result.exit_code == 0
    file = look_into(
        tmp_path / "outlined-shapes.safetensors",
        parameter_shapes(read_config(models / TRANSFORMER_FILES["longlive"].config)),
    )
    assert len(file.layers) == 40
