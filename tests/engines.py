"""A small exported engine set for tests: a demonstration checkpoint of the smallest sizes."""

from pathlib import Path

import torch

from export.demo import random_weights, write_demo_models
from export.graphs.transformer import TransformerConfig
from export.graphs.vae import VaeConfig
from export.jobs import Request
from export.run import export_pipeline
from export.store import EngineStore
from streaming.engine_set import EngineSet

TRANSFORMER = TransformerConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=1, text_dim=16, text_len=12)
VAE = VaeConfig(dim=4)
SIZE = (64, 80)


def small_request(models: Path, pipeline: str = "longlive") -> Request:
    """A pipeline with a window of seven latent frames; the checkpoints are written to `models` if absent."""
    if not models.exists():
        write_demo_models(models, random_weights(TRANSFORMER, VAE, SIZE))
    return Request(pipeline, models, (SIZE,), window=7, demo=True)


def export_small(root: Path, pipeline: str = "longlive") -> tuple[EngineStore, EngineSet]:
    """Export the small set below `root`. Pipelines share the engines that they have in common."""
    torch.set_num_threads(1)
    store = EngineStore(root / "engines")
    request = small_request(root / "models", pipeline)
    return store, export_pipeline(request, store, lambda line: None, workers=2)
