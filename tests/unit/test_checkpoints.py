"""Checkpoint files: every layout loads, and what does not fit is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoints.checkpoints import checkpoint_shapes, load_weights, open_checkpoint
from export.graphs.layers import LayerNorm, Linear
from export.graphs.transformer import TextKV, Transformer
from streaming.checkpoints.config import WAN_1_3B, WAN_14B
from streaming.checkpoints.files import CheckpointError

State = dict[str, Tensor]
Save = Callable[[State, Path], None]


class Tiny(nn.Module):
    """A linear layer, a patch embedding and an affine norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(3, 2)
        self.patches = Linear(8, 2, bias=False, checkpoint_shape=(2, 4, 1, 2, 1))
        self.norm = LayerNorm(2, 1e-6, affine=True)


@pytest.fixture
def module() -> Tiny:
    with torch.device("meta"):
        return Tiny()


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "linear.weight": (2, 3),
        "linear.bias": (2,),
        "patches.weight": (2, 4, 1, 2, 1),
        "norm.weight": (2,),
        "norm.bias": (2,),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(key): tensor for key, tensor in state.items()}


LAYOUTS: dict[str, tuple[str, str | None, Callable[[State, Path], None]]] = {
    "safetensors": ("a.safetensors", None, save_file),
    "flat pt": ("a.pt", None, torch.save),
    "flat pth": ("a.pth", None, torch.save),
    "old format without zip": (
        "a.pth",
        None,
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    ),
    "generator": ("a.pt", "generator", lambda state, path: torch.save({"generator": state, "step": 5}, path)),
    "generator_ema beside generator": (
        "a.pt",
        "generator_ema",
        lambda state, path: torch.save({"generator": {"x": torch.zeros(1)}, "generator_ema": state}, path),
    ),
    "first of several names": (
        "a.pt",
        ("generator_ema", "generator"),
        lambda state, path: torch.save({"generator": {"x": torch.zeros(1)}, "generator_ema": state}, path),
    ),
    "second of several names": (
        "a.pt",
        ("generator_ema", "generator"),
        lambda state, path: torch.save({"generator": state}, path),
    ),
    "entry asked for, flat file": ("a.pt", "generator", torch.save),
    "model. prefix": (
        "a.safetensors",
        None,
        lambda state, path: save_file(renamed(state, "model.{}".format), path),
    ),
    "fsdp names below generator": (
        "a.pt",
        "generator",
        lambda state, path: torch.save(
            {"generator": renamed(state, lambda key: f"model._fsdp_wrapped_module.{key}")}, path
        ),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout: str, module: Tiny, state: State, tmp_path: Path) -> None:
    name, entry, save = LAYOUTS[layout]
    save(state, tmp_path / name)

    load_weights(open_checkpoint(tmp_path / name, entry), module)

    assert torch.equal(module.linear.weight_t, state["linear.weight"].t())
    assert torch.equal(module.patches.weight_t, state["patches.weight"].flatten(1).t())
    assert module.linear.bias is not None
    assert torch.equal(module.linear.bias, state["linear.bias"])
    assert module.linear.weight_t.is_contiguous()


def test_prefix_takes_a_part_of_a_file(module: Tiny, state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(renamed(state, "weights.{}".format) | {"in.x": torch.zeros(1)}, path)

    load_weights(open_checkpoint(path, prefix="weights."), module)

    assert torch.equal(module.linear.weight_t, state["linear.weight"].t())


def test_norms_stay_float32_in_a_bf16_module(module: Tiny, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")

    load_weights(open_checkpoint(tmp_path / "a.safetensors"), module, dtype=torch.bfloat16)

    assert module.linear.weight_t.dtype is torch.bfloat16
    assert module.norm.weight is not None
    assert torch.equal(module.norm.weight, state["norm.weight"])


def test_float8_weights_are_values_without_scale(module: Tiny, state: State, tmp_path: Path) -> None:
    fp8 = state["linear.weight"].to(torch.float8_e4m3fn)
    save_file({**state, "linear.weight": fp8}, tmp_path / "a.safetensors")

    load_weights(open_checkpoint(tmp_path / "a.safetensors"), module)

    assert torch.equal(module.linear.weight_t, fp8.float().t())


def test_loaded_weights_do_not_depend_on_the_file(module: Tiny, state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(state, path)
    load_weights(open_checkpoint(path), module)

    path.write_bytes(b"\0" * path.stat().st_size)

    assert module.norm.weight is not None
    assert torch.equal(module.norm.weight, state["norm.weight"])


def test_two_modules_share_one_file(state: State, tmp_path: Path) -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Linear(3, 2)

    class Right(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = Linear(8, 2, bias=False, checkpoint_shape=(2, 4, 1, 2, 1))
            self.norm = LayerNorm(2, 1e-6, affine=True)

    save_file(state, tmp_path / "a.safetensors")
    with torch.device("meta"):
        left, right = Left(), Right()

    load_weights(open_checkpoint(tmp_path / "a.safetensors"), left, right)

    assert torch.equal(left.linear.weight_t, state["linear.weight"].t())
    assert torch.equal(right.patches.weight_t, state["patches.weight"].flatten(1).t())


def without(key: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("norm.bias"), "missing: norm.bias"),
        (lambda state: {**state, "head.bias": torch.zeros(1)}, "unexpected: head.bias"),
        (
            lambda state: {**state, "linear.weight": torch.zeros(3, 2)},
            r"linear.weight is \[3, 2\], not \[2, 3\]",
        ),
        (
            lambda state: {**state, "patches.weight": torch.zeros(2, 8)},
            r"patches.weight is \[2, 8\], not \[2, 4, 1, 2, 1\]",
        ),
    ],
    ids=["missing", "unexpected", "shape", "patch shape"],
)
def test_keys_that_do_not_fit_are_named_and_nothing_is_loaded(
    change: Callable[[State], State], message: str, module: Tiny, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(change(state), path)

    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(open_checkpoint(path), module)

    assert str(path) in str(error.value)
    assert module.linear.weight_t.is_meta


def test_unexpected_keys_can_be_a_warning(
    module: Tiny, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "a.safetensors")

    load_weights(open_checkpoint(tmp_path / "a.safetensors"), module, unexpected="warn")

    assert "extra" in caplog.text
    assert torch.equal(module.linear.weight_t, state["linear.weight"].t())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_called_incomplete(name: str, keep: float, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
def test_a_file_that_is_no_checkpoint_is_called_damaged(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"404 Not Found " * 100)

    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>\n<html>", r"is a web page \(HTML\): download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "is a pointer of git-lfs"),
    ],
    ids=["page", "pointer"],
)
def test_what_is_in_the_place_of_a_checkpoint_is_named(
    name: str, content: bytes, what: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=what):
        open_checkpoint(path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return Path(tmp_path / "ran").touch, ()  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "a.pt")

    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "a.pt")

    assert not (tmp_path / "ran").exists()


def test_an_entry_that_is_not_there_is_answered_with_those_that_are(state: State, tmp_path: Path) -> None:
    torch.save({"generator_ema": state, "critic": state}, tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=r"no state dict 'generator'.*generator_ema, critic"):
        open_checkpoint(tmp_path / "a.pt", "generator")


def test_a_file_with_several_state_dicts_needs_an_entry(state: State, tmp_path: Path) -> None:
    torch.save({"generator": state, "generator_ema": state}, tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=r"no tensors at its top level.*generator, generator_ema"):
        open_checkpoint(tmp_path / "a.pt")


def test_two_names_for_one_key_are_refused(state: State, tmp_path: Path) -> None:
    save_file({**state, "_fsdp_wrapped_module.norm.bias": torch.zeros(2)}, tmp_path / "a.safetensors")

    with pytest.raises(CheckpointError, match=r"two tensors for norm\.bias"):
        open_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["none.safetensors", "none.pt"])
def test_a_file_that_does_not_exist_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name}' does not exist"):
        open_checkpoint(tmp_path / name)


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"x")

    with pytest.raises(CheckpointError, match=r"must be a .safetensors, .pt or .pth"):
        open_checkpoint(tmp_path / "a.ckpt")


def test_many_missing_keys_are_counted_not_listed(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with torch.device("meta"):
        module = Transformer(WAN_1_3B)

    with pytest.raises(CheckpointError, match="and 663 more") as error:
        load_weights(open_checkpoint(tmp_path / "a.safetensors"), module)

    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("config", "keys", "parameters"),
    [(WAN_1_3B, 825, 1_418_996_800), (WAN_14B, 1095, 14_288_491_584)],
    ids=["1.3B", "14B"],
)
def test_real_sizes_have_the_published_parameter_count(config, keys: int, parameters: int) -> None:
    with torch.device("meta"):
        shapes = checkpoint_shapes(Transformer(config), TextKV(config))

    assert len(shapes) == keys
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
