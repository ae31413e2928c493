"""Files of VACE branches: modules, full checkpoints, and what is neither."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints.checkpoints import checkpoint_shapes, load_weights, open_checkpoint
from export.checkpoints.demo import random_state
from export.checkpoints.vace import branch_modules, open_vace, together
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vace import VaceConfig
from streaming.checkpoints.config import WAN_1_3B, WAN_14B, TransformerConfig
from streaming.checkpoints.files import CheckpointError
from streaming.specs import CachedKeys

CONFIG = TransformerConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=4, text_dim=16, text_len=12)


@pytest.fixture(scope="module")
def module() -> dict[str, Tensor]:
    """The tensors of a module's file."""
    shapes = checkpoint_shapes(*branch_modules(CONFIG, VaceConfig((0, 2)), CachedKeys.ROTATED))
    return random_state({key: shape for key, shape in shapes.items() if key.startswith("vace_")}, 3)


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    """The tensors of the transformer that it is for."""
    with torch.device("meta"):
        shapes = checkpoint_shapes(Transformer(CONFIG), TextKV(CONFIG))
    return random_state(shapes, 4)


def written(path: Path, *parts: dict[str, Tensor]) -> Path:
    save_file({key: tensor for part in parts for key, tensor in part.items()}, path)
    return path


def test_a_module_and_a_full_checkpoint_give_the_same_branch(
    module: dict[str, Tensor], base: dict[str, Tensor], tmp_path: Path
) -> None:
    alone, full = (
        written(tmp_path / "a.safetensors", module),
        written(tmp_path / "b.safetensors", module, base),
    )

    for path in (alone, full):
        checkpoint, vace = open_vace(path, CONFIG)
        assert vace == VaceConfig((0, 2), 96)
        found = dict(checkpoint.tensors(list(checkpoint.entries)))
        assert found.keys() == module.keys()
        assert all(torch.equal(found[key], module[key]) for key in module)


def test_the_branch_is_loaded_with_the_transformer(
    module: dict[str, Tensor], base: dict[str, Tensor], tmp_path: Path
) -> None:
    branch, vace = open_vace(written(tmp_path / "vace.safetensors", module), CONFIG)
    plain = open_checkpoint(written(tmp_path / "base.safetensors", base))
    transformer, text = branch_modules(CONFIG, vace, CachedKeys.ROTATED)
    load_weights(together(plain, branch), transformer, text, TextKV(CONFIG))

    weights = dict(transformer.named_parameters())
    torch.testing.assert_close(weights["blocks.1.ffn.0.weight_t"], base["blocks.1.ffn.0.weight"].t())
    torch.testing.assert_close(
        weights["vace_blocks.1.after_proj.weight_t"], module["vace_blocks.1.after_proj.weight"].t()
    )


@pytest.mark.parametrize(
    ("config", "blocks", "layers"),
    [(WAN_1_3B, 15, tuple(range(0, 30, 2))), (WAN_14B, 8, tuple(range(0, 40, 5)))],
)
def test_blocks_are_spread_as_in_the_released_models(
    config: TransformerConfig, blocks: int, layers: tuple[int, ...]
) -> None:
    shapes = {f"vace_blocks.{n}.after_proj.bias": (config.dim,) for n in range(blocks)}
    shapes["vace_patch_embedding.weight"] = (config.dim, 96, 1, 2, 2)

    assert VaceConfig.from_shapes(shapes, config.num_layers) == VaceConfig(layers, 96)


def test_what_is_no_branch_of_this_model_is_refused(
    module: dict[str, Tensor], base: dict[str, Tensor], tmp_path: Path
) -> None:
    embedding = "vace_patch_embedding.weight"
    other = {key: tensor for key, tensor in module.items() if key != "vace_blocks.1.after_proj.bias"}
    for name, tensors, expected in (
        ("none", base, "holds no VACE branch"),
        ("other", module | {embedding: torch.ones(20, 96, 1, 2, 2)}, r"is \[20, 96, 1, 2, 2\], not \[16, 96"),
        ("part", other, "lacks VACE tensors: vace_blocks.1.after_proj.bias"),
        ("zeros", module | {embedding: torch.zeros(16, 96, 1, 2, 2)}, "all zeros"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            open_vace(written(tmp_path / f"{name}.safetensors", tensors), CONFIG)


def test_unknown_tensors_of_a_branch_are_named_in_a_warning(
    module: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "more.safetensors", module, {"vace_blocks.0.extra": torch.ones(1)})

    checkpoint, _ = open_vace(path, CONFIG)

    assert checkpoint.entries.keys() == module.keys()
    assert "vace_blocks.0.extra" in caplog.text
