"""The shipped nano checkpoint in the product's loop: its pictures are judged by their colours."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.nano_quality import Stream
from export.checkpoints.demo import ensure_demo_models, trained_weights, write_demo_models
from export.nano.in_process import in_process
from export.nano.measure import look
from streaming.engines.demo import DEMO, read_demo, trained_directory, trained_info
from streaming.triton.model_pipeline import ModelPipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> ModelPipeline:
    """LongLive on the checkpoint that comes with the package."""
    models = tmp_path_factory.mktemp("nano")
    write_demo_models(models, trained_weights())
    return in_process(models, "longlive")


def about(background: str) -> str:
    return f"a red circle stays still on a {background} background"


def brightness(stream: Stream, prompt: str, **parameters: Any) -> float:
    """0 to 255, of the background at the end of the next chunk: the median of all pixels."""
    return float(np.median(stream.chunk(prompt, **parameters)[-1].reshape(-1, 3), axis=0).mean())


def test_the_background_is_what_the_prompt_says_and_follows_a_new_one(pipeline: ModelPipeline) -> None:
    stream = Stream(pipeline, seed=42)

    seen = [look(stream.chunk(about(colour))[-1]).background for colour in ("yellow", "yellow", "blue")]

    assert seen == ["yellow", "yellow", "blue"]


def test_two_prompts_at_once_give_the_colour_in_between(pipeline: ModelPipeline) -> None:
    both = [{"text": about(colour), "weight": 1.0} for colour in ("white", "black")]

    found = brightness(Stream(pipeline, seed=42), "", prompts=both)

    assert 90 < found < 170  # white is 240, black is 20


def test_a_transition_passes_through_the_colours_in_between(pipeline: ModelPipeline) -> None:
    stream = Stream(pipeline, seed=42)
    transition = {"target_prompts": [{"text": about("white"), "weight": 1.0}], "num_steps": 4}

    levels = [brightness(stream, about("black"))]
    levels += [brightness(stream, about("black"), transition=transition) for _ in range(4)]

    assert all(after > before - 6 for before, after in pairwise(levels))
    assert levels[0] < 40
    assert any(60 < level < 200 for level in levels)
    assert levels[-1] > 215


def test_the_files_are_small_and_come_with_their_card() -> None:
    files = {path.name: path.stat().st_size for path in trained_directory().iterdir()}

    assert sum(files.values()) < 15_000_000
    assert "MODEL_CARD.md" in files


def test_the_examples_are_of_the_world_that_it_knows() -> None:
    tokenizer = trained_weights().tokenizer

    assert trained_info().note
    for prompt in trained_info().examples:
        assert "<unk>" not in tokenizer.encode(prompt).tokens


def test_weights_of_an_older_version_are_replaced_and_somebodys_own_are_kept(tmp_path: Path) -> None:
    older, own = tmp_path / "older", tmp_path / "own"
    for directory, version in ((older, "of last year"), (own, "")):
        ensure_demo_models(directory)
        about = read_demo(directory).model_copy(update={"version": version})
        (directory / DEMO).write_text(about.model_dump_json())

    versions = [read_demo(ensure_demo_models(directory)).version for directory in (older, own)]

    assert versions == [trained_weights().about.version, ""]
