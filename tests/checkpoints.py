"""Small checkpoints for tests: the names, keys and nesting of the released files, tiny networks."""

from pathlib import Path
from typing import Any

from export.checkpoints.demo import random_weights, write_demo_models
from streaming.engines.load_plan import LoadPlan, TorchPlan
from streaming.specs import SPECS
from tests.engines import SIZE, TRANSFORMER, VAE


def write_small(models: Path) -> Path:
    """The files of every pipeline in the directory of models."""
    write_demo_models(models, random_weights(TRANSFORMER, VAE, SIZE))
    return models


def torch_load_plan(models: Path, pipeline: str, **changes: Any) -> LoadPlan:
    """What the gateway decides about a load with backend `pytorch`, with changes."""
    values: dict[str, Any] = {
        "models": models.parent / "engines" / "models",
        "height": SIZE[0],
        "width": SIZE[1],
        "backend": "pytorch",
        "pytorch": TorchPlan(checkpoints=models, vae_type="wan"),
        "base_seed": SPECS[pipeline].base_seed,
    }
    return LoadPlan(**values | changes)
