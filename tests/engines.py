"""Small exported engine sets for tests: demonstration checkpoints of the smallest sizes."""

import os
import shutil
from pathlib import Path
from typing import Any, Final

from export.checkpoints.demo import random_weights, write_demo_models
from export.graphs.vae import VaeConfig
from export.onnx.jobs import Request
from export.onnx.run import export_pipeline
from export.onnx.store import EngineStore
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.engine_set import SET, EngineSet, read_engine_set
from streaming.engines.load_plan import LoadPlan
from streaming.engines.manifest import CONFIG, MANIFEST, ONNX_FILE
from streaming.specs import SPECS

TRANSFORMER = TransformerConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=1, text_dim=16, text_len=12)
VAE = VaeConfig(dim=4)
SIZE = (64, 80)
BROKEN_VAE: Final = "lightvae"  # a set of `export_all` that only Triton finds out about
ABSENT_VAE: Final = "lighttae"  # one that the gateway can tell cannot be loaded


def small_request(models: Path, pipeline: str = "longlive") -> Request:
    """A pipeline with a window of seven latent frames; the checkpoints are written to `models` if absent."""
    if not models.exists():
        write_demo_models(models, random_weights(TRANSFORMER, VAE, SIZE))
    return Request(pipeline, models, (SIZE,), window=7, demo=True)


def export_small(root: Path, pipeline: str = "longlive") -> tuple[EngineStore, EngineSet]:
    """Export the small set below `root`. Pipelines share the engines that they have in common."""
    store = EngineStore(root / "engines")
    request = small_request(root / "models", pipeline)
    return store, export_pipeline(request, store, lambda line: None, workers=2)


def small_options(root: Path) -> tuple[object, ...]:
    """What `wanstream-export` takes to make the set of `export_small`."""
    return (
        "longlive",
        "--demo",
        "--form",
        "portable",
        "--home",
        root,
        "--models",
        root / "models",
        "--window",
        7,
    )


def load_plan(store: EngineStore, engines: EngineSet, **changes: Any) -> LoadPlan:
    """What the gateway decides about a load of the set's first size, with changes."""
    values: dict[str, Any] = {
        "engine_set": store.sets / engines.name,
        "models": store.models,
        "height": engines.vae[0].height,
        "width": engines.vae[0].width,
        "base_seed": SPECS[engines.pipeline].base_seed,
    }
    return LoadPlan(**values | changes)


def export_all(longlive: Path, root: Path) -> None:
    """Copy the small LongLive of `export_small` to `root` and export every other pipeline beside it.

    LongLive gets two more sets: with VAE type BROKEN_VAE, one of whose engines has a wrong content, and with
    ABSENT_VAE, one of whose engines is not there.
    """
    shutil.copytree(longlive, root, copy_function=os.link)
    store = EngineStore(root / "engines")
    (small,) = map(read_engine_set, store.sets.iterdir())
    _add_damaged(store, small.transformer, "damaged")
    for name, vae_type, transformer in (
        ("z_broken", BROKEN_VAE, "damaged"),
        ("z_absent", ABSENT_VAE, "absent"),
    ):
        other = small.model_copy(update={"name": name, "vae_type": vae_type, "transformer": transformer})
        shutil.copytree(store.sets / small.name, store.sets / name)
        (store.sets / name / SET).write_text(other.model_dump_json())
    for pipeline in sorted(TRANSFORMER_FILES.keys() - {small.pipeline}):
        export_small(root, pipeline)


def _add_damaged(store: EngineStore, name: str, copy: str) -> None:
    """Copy an engine; its weights have the right size, but are other ones."""
    shutil.copytree(store.models / name, store.models / copy)
    for path in (store.models / copy / CONFIG, store.engine(copy) / MANIFEST):
        path.write_text(path.read_text().replace(name, copy))
    weights = store.engine(copy) / f"{ONNX_FILE}.data"
    weights.write_bytes(bytes(len(weights.read_bytes())))
