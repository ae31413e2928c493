"""The shipped nano checkpoint in the product's loop: its pictures are judged by their colours."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from benchmarks.nano_quality import Stream
from export.demo import trained_weights, write_demo_models
from export.nano.in_process import in_process
from export.nano.measure import look
from streaming.demo import trained_directory
from streaming.model_pipeline import ModelPipeline


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
