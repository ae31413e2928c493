"""Small checkpoints for tests: the names, keys and nesting of the released files, tiny networks."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints.checkpoints import checkpoint_shapes
from export.checkpoints.demo import random_state, random_weights, write_demo_models
from export.checkpoints.vace import branch_modules
from export.graphs.vace import VaceConfig
from gateway.files.models.artifacts import ARTIFACTS, is_directory
from streaming.checkpoints.files import TEXT_ENCODER, TOKENIZER, TRANSFORMER_FILES
from streaming.engines.load_plan import LoadPlan, TorchPlan
from streaming.specs import SPECS, CachedKeys
from tests.engines import SIZE, TRANSFORMER, VAE
from tests.hub_double import HubDouble


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


def write_released_layout(models: Path) -> Path:
    """The files of every pipeline as their authors nest, name and store them (wan.md 7), tiny networks.

    A generator below a name, keys behind `model.`, adapters plain or below a name, a text encoder in float8.
    """
    write_small(models)
    weights = random_weights(TRANSFORMER, VAE, SIZE)
    prefixed = {f"model.{key}": value for key, value in weights.transformer.items()}
    generator = {"generator": prefixed}
    for pipeline, state in {
        "longlive": generator,
        "streamdiffusionv2": generator | {"generator_ema": weights.transformer},
        "memflow": generator,
        "reward-forcing": weights.transformer,
    }.items():
        torch.save(state, models / TRANSFORMER_FILES[pipeline].weights)
    halves = {key: value.to(torch.bfloat16) for key, value in prefixed.items()}
    save_file(halves, models / TRANSFORMER_FILES["krea-realtime-video"].weights)
    for pipeline, entry in {"longlive": "generator_lora", "memflow": None}.items():
        adapter = TRANSFORMER_FILES[pipeline].adapter
        assert adapter is not None
        path = models / adapter[0]
        lora = torch.load(path, weights_only=True)["generator_lora"]
        torch.save({entry: lora} if entry else lora, path)
    text = {
        key: value.to(torch.bfloat16 if value.ndim == 1 else torch.float8_e4m3fn)
        for key, value in weights.text_encoder.items()
    }
    save_file(text, models / TEXT_ENCODER)
    for name in ("special_tokens_map.json", "spiece.model"):
        (models / TOKENIZER / name).write_text("{}")
    module = {key: value.to(torch.bfloat16) for key, value in vace_module().items()}
    save_file(module, models / TRANSFORMER_FILES["longlive"].vace)
    return models


def vace_module() -> dict[str, Tensor]:
    """A branch of one block, of random weights, as a module's file has it; for the small transformer."""
    shapes = checkpoint_shapes(*branch_modules(TRANSFORMER, VaceConfig((0,)), CachedKeys.ROTATED))
    return random_state({key: shape for key, shape in shapes.items() if key.startswith("vace_")}, 5)


def publish(hub: HubDouble, models: Path, pipeline: str) -> None:
    """Put the files of a pipeline on the hub, with some that nobody wants."""
    for artifact in ARTIFACTS[pipeline]:
        files = hub.repositories.setdefault(artifact.repository_id(), {"README.md": b"not wanted"})
        root = models / artifact.repository
        for name in artifact.files:
            paths = (root / name).rglob("*") if is_directory(name) else [root / name]
            files |= {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}
