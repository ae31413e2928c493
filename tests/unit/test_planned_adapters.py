"""LoRA files of a load: judged before anything is touched, copied for as long as they are used."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gateway.errors import ApiError
from gateway.serving.adapters import Adapters
from gateway.serving.interface import ServingError
from streaming.checkpoints.config import TransformerConfig

CONFIG = TransformerConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=1, text_dim=16, text_len=12)
DOWN, UP = "blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight"


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    def find(name: str) -> Path:
        if not (tmp_path / name).exists():
            raise ApiError(400, f"LoRA '{name}' (file_not_found): no such file.")
        return tmp_path / name

    return Adapters(find, tmp_path / "copies")


def write(path: Path, dtype: torch.dtype = torch.bfloat16, value: float = 1.0) -> None:
    values = torch.full((2, 16), value)
    save_file({DOWN: values.to(dtype), UP: torch.ones(16, 2).to(dtype)}, path)


def loras(*names: str, scale: float = 1.0) -> dict[str, Any]:
    return {"loras": [{"path": name, "scale": scale, "merge_mode": "permanent_merge"} for name in names]}


def test_a_load_without_any_has_none(adapters: Adapters) -> None:
    assert adapters.planned({"loras": None}, CONFIG) == ()


def test_the_copy_outlives_the_file(adapters: Adapters, tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()

    (kept,) = adapters.keep(adapters.planned(loras("a.safetensors", scale=0.5), CONFIG))
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(10)

    assert kept.path.read_bytes() == content
    assert (kept.name, kept.scale) == ("a.safetensors", 0.5)


def test_only_copies_of_what_is_loaded_stay(adapters: Adapters, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name, value=float(name == "a.safetensors"))
    adapters.keep(adapters.planned(loras("a.safetensors"), CONFIG))

    (kept,) = adapters.keep(adapters.planned(loras("b.safetensors"), CONFIG))

    assert list(adapters.copies.iterdir()) == [kept.path]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn],
)
def test_values_that_are_no_numbers_are_found_in_every_type(
    dtype: torch.dtype, adapters: Adapters, tmp_path: Path
) -> None:
    write(tmp_path / "good.safetensors", dtype, value=400.0)
    write(tmp_path / "bad.safetensors", dtype, value=float("nan"))

    assert adapters.planned(loras("good.safetensors"), CONFIG)
    with pytest.raises(ServingError, match=r"'bad.safetensors' \(non_finite\)"):
        adapters.planned(loras("bad.safetensors"), CONFIG)


def test_what_is_wrong_with_a_file_is_said_with_its_class(adapters: Adapters, tmp_path: Path) -> None:
    save_file({DOWN: torch.zeros(2, 17), UP: torch.zeros(16, 2)}, tmp_path / "large.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here, only words")

    for name, problem in (
        ("large.safetensors", "shape_mismatch"),
        ("text.safetensors", "unreadable"),
        ("absent.safetensors", "file_not_found"),
    ):
        with pytest.raises(ServingError, match=rf"'{name}' \({problem}\)"):
            adapters.planned(loras(name), CONFIG)
