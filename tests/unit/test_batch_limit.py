"""More new prompts than an engine takes at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from export.onnx.store import EngineStore
from streaming.engines.engine import OrtEngine
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import ONNX_FILE, engine_directory
from streaming.engines.served import InProcess, InTriton
from streaming.errors import WanstreamError
from tests.engines import load_plan

MOST_PROMPTS = 16  # of one message of the API


class Plans:
    """A `ModelRunner` that refuses what is outside of a plan's profile, as TensorRT does."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self.batches: list[int] = []

    def is_ready(self, name: str) -> bool:
        return True

    def run(self, name: str, inputs: Mapping[str, Any], outputs: list[str]) -> dict[str, Any]:
        tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
        self.batches.append(len(tensors["ids"]))
        if self.batches[-1] > 4:
            raise WanstreamError("the shape of 'ids' is outside of the optimization profile")
        return dict(OrtEngine(engine_directory(self._models, name) / ONNX_FILE, 1).run(tensors, outputs))

    def load(self, name: str, config: str | None = None) -> None:
        """It is loaded."""

    def unload(self, name: str) -> None:
        """It stays."""


@pytest.mark.parametrize("count", [1, 4, 5, MOST_PROMPTS])
def test_as_many_prompts_as_the_api_takes_are_encoded_within_the_profile(
    count: int, exported_engines: tuple[Path, EngineSet]
) -> None:
    root, engines = exported_engines
    models = root / "engines" / "models"
    plans = Plans(models)
    ids = torch.arange(count * engines.model.text_len).reshape(count, -1) % 7
    inputs = {"ids": ids, "mask": torch.ones_like(ids)}
    plan = load_plan(EngineStore(root / "engines"), engines, backend="triton")
    encoder = InTriton(plan, plans)(engines.text_encoder)

    result = encoder.run(inputs, ["prompt_embeds"])["prompt_embeds"]

    assert plans.batches == [min(4, count - first) for first in range(0, count, 4)]
    expected = InProcess(models)(engines.text_encoder).run(inputs, ["prompt_embeds"])["prompt_embeds"]
    torch.testing.assert_close(result, expected)
