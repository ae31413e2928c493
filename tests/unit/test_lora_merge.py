"""The built-in adapter: merged by the formula, and refused when it does not fit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints.checkpoints import load_weights, open_checkpoint
from export.checkpoints.lora_merge import LowRank, added, builtin_adapter, merge
from export.graphs.layers import Linear
from streaming.checkpoints.files import CheckpointError

KEY = "blocks.0.ffn.0"
OUT, IN, RANK = 5, 4, 2


def pair(key: str = KEY, rank_up: int = RANK) -> dict[str, Tensor]:
    return {
        f"base_model.model.{key}.lora_A.weight": torch.randn(RANK, IN),
        f"base_model.model.{key}.lora_B.weight": torch.randn(OUT, rank_up),
    }


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


@given(alpha=st.floats(0.5, 64), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_change_is_alpha_over_rank_times_up_times_down(alpha: float, seed: int) -> None:
    torch.manual_seed(seed)
    weight, down, up = torch.randn(OUT, IN), torch.randn(RANK, IN), torch.randn(OUT, RANK)
    x = torch.randn(3, IN)

    merged = added(weight, [LowRank(down, up, alpha / RANK)])

    torch.testing.assert_close(x @ merged.T, x @ weight.T + alpha / RANK * ((x @ down.T) @ up.T))


def test_a_module_is_loaded_with_the_adapter_merged(tmp_path: Path) -> None:
    weight, tensors = torch.randn(OUT, IN), pair("linear")
    base = open_checkpoint(saved(tmp_path / "base.safetensors", {"linear.weight": weight}))
    adapter = builtin_adapter(open_checkpoint(saved(tmp_path / "lora.safetensors", tensors)), alpha=RANK)
    module = torch.nn.ModuleDict({"linear": Linear(IN, OUT, bias=False)})

    load_weights(merge(base, adapter), module)

    down, up = tensors.values()
    torch.testing.assert_close(module["linear"].weight_t, (weight + up @ down).T)


def test_a_torch_file_may_hold_the_adapter_under_its_own_entry(tmp_path: Path) -> None:
    torch.save({"generator_lora": pair()}, tmp_path / "lora.pt")

    adapter = builtin_adapter(open_checkpoint(tmp_path / "lora.pt", "generator_lora"), alpha=4)

    assert adapter.keys() == {f"{KEY}.weight"}
    (change,) = adapter[f"{KEY}.weight"]
    assert change.scale == 4 / RANK


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({**pair(), "head.weight": torch.zeros(1)}, "it has key 'head.weight'"),
        (dict([*pair().items()][:1]), "no '.*lora_B.weight'"),
        (dict([*pair().items()][1:]), "pairs without '.lora_A.weight'"),
        (pair(rank_up=3), "two ranks"),
    ],
    ids=["foreign_key", "up_is_missing", "down_is_missing", "two_ranks"],
)
def test_a_file_that_is_no_whole_adapter_is_refused(
    tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "lora.safetensors", tensors))

    with pytest.raises(CheckpointError, match=message):
        builtin_adapter(checkpoint, alpha=1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"other.weight": torch.zeros(OUT, IN)}, "is not there"),
        ({f"{KEY}.weight": torch.zeros(IN, OUT)}, "is \\[4, 5\\]"),
    ],
    ids=["weight_is_missing", "weight_has_another_shape"],
)
def test_an_adapter_for_another_model_is_refused(
    weights: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    base = open_checkpoint(saved(tmp_path / "base.safetensors", weights))
    adapter = builtin_adapter(open_checkpoint(saved(tmp_path / "lora.safetensors", pair())), alpha=1)

    with pytest.raises(CheckpointError, match=message):
        merge(base, adapter)
