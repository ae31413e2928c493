"""LoRA files: what the reader finds in them, and what it says about the rest."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints.checkpoints import Checkpoint, open_checkpoint
from export.checkpoints.lora_merge import ScaledAdapter, merge, user_adapters
from streaming.adapters.files import AdapterError, AdapterFile, look_into
from streaming.adapters.keys import ModuleNames, parse
from streaming.checkpoints.files import CheckpointError

OUT, IN, RANK = 6, 4, 2
LAYERS = ("blocks.0.self_attn.q", "time_embedding.0", "text_embedding.2", "head.head", "time_projection.1")
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"{name}.weight": (OUT, IN) for name in LAYERS},
    **{f"{name}.bias": (OUT,) for name in LAYERS},
    "blocks.0.norm3.weight": (IN,),
    "patch_embedding.weight": (OUT, 4, 1, 2, 2),
}


def saved(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def pair(spelling: str, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict[str, Tensor]:
    return {f"{spelling}.{down}": torch.randn(RANK, IN), f"{spelling}.{up}": torch.randn(OUT, RANK)}


def file_with(tmp_path: Path, tensors: dict[str, Tensor]) -> AdapterFile:
    return look_into(saved(tmp_path / "lora.safetensors", tensors), SHAPES)


def base(tmp_path: Path) -> Checkpoint:
    tensors = {key: torch.randn(shape) for key, shape in SHAPES.items()}
    return open_checkpoint(saved(tmp_path / "base.safetensors", tensors))


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in checkpoint.tensors(list(SHAPES))}


@pytest.mark.parametrize("module", LAYERS)
@pytest.mark.parametrize(
    "spelled",
    [
        "{}",
        "diffusion_model.{}",
        "base_model.model.{}",
        "base_model.model.diffusion_model.{}",
        "transformer.{}",
    ],
)
def test_every_prefix_is_understood(module: str, spelled: str) -> None:
    assert ModuleNames(LAYERS).find(spelled.format(module)) == module


@pytest.mark.parametrize("module", LAYERS)
def test_underscores_of_kohya_are_looked_up(module: str) -> None:
    assert ModuleNames(LAYERS).find("lora_unet_" + module.replace(".", "_")) == module


@pytest.mark.parametrize(
    ("diffusers", "wan"),
    [
        ("blocks.0.attn1.to_q", "blocks.0.self_attn.q"),
        ("vace_blocks.3.attn2.to_out.0", "vace_blocks.3.cross_attn.o"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("proj_out", "head.head"),
    ],
)
def test_names_of_diffusers_are_translated(diffusers: str, wan: str) -> None:
    assert ModuleNames([wan]).find(f"transformer.{diffusers}") == wan


@given(st.text(max_size=60) | st.from_regex(r"[a-z_.0-9]{1,40}\.(lora_A|lora_B|alpha|diff)[a-z_.]{0,20}"))
@settings(max_examples=300, deadline=None)
def test_no_name_breaks_the_reader(name: str) -> None:
    key = parse(name)

    assert ModuleNames(LAYERS).find(name if key is None else key.module) in (None, *LAYERS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_of_few_bits_count_as_what_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint, tensors = base(tmp_path), {k: v.to(dtype) for k, v in pair("head.head").items()}
    path = saved(tmp_path / "lora.safetensors", tensors)
    down, up = (tensor.float() for tensor in tensors.values())

    merged = weights(merge(checkpoint, user_adapters(checkpoint, [ScaledAdapter(path, 0.5)])[0]))

    expected = weights(checkpoint)["head.head.weight"] + 0.5 * up @ down
    torch.testing.assert_close(merged["head.head.weight"], expected)


def test_differences_are_added_to_weight_and_bias(tmp_path: Path) -> None:
    checkpoint = base(tmp_path)
    tensors = {"diffusion_model.head.head.diff": torch.randn(OUT, IN), "head.head.diff_b": torch.randn(OUT)}
    path = saved(tmp_path / "lora.safetensors", tensors)

    merged = weights(merge(checkpoint, user_adapters(checkpoint, [ScaledAdapter(path, -2.0)])[0]))

    plain, (diff, diff_b) = weights(checkpoint), tensors.values()
    torch.testing.assert_close(merged["head.head.weight"], plain["head.head.weight"] - 2 * diff)
    torch.testing.assert_close(merged["head.head.bias"], plain["head.head.bias"] - 2 * diff_b)


def test_each_kind_that_is_left_out_is_told_once_with_a_count(tmp_path: Path) -> None:
    tensors = {
        **pair("diffusion_model.head.head"),
        **pair("lora_te_text_model_encoder_layers_0_mlp_fc1"),
        **pair("lora_unet_blocks_77_self_attn_q"),
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(IN),
        "diffusion_model.time_embedding.0.lora_A.weight": torch.zeros(RANK, IN),
        "lora_unet_text_embedding_2.hada_w1_a": torch.zeros(OUT, RANK),
        "step": torch.zeros(1),
    }

    file = file_with(tmp_path, tensors)

    assert list(file.layers) == ["head.head"]
    told = "\n".join(file.warnings)
    assert len(file.warnings) == len(set(file.warnings)) == 6
    for part in (
        "2 tensors were ignored: for a text encoder",
        "2 tensors were ignored: for layers that this model",
        "1 tensors were ignored: for layers that are not linear",
        "1 tensors were ignored: without the other half",
        "LoHa or LoKr",
        "not of a LoRA",
    ):
        assert part in told


def test_dora_counts_as_its_plain_low_rank_part(tmp_path: Path) -> None:
    tensors = {**pair("head.head"), "head.head.dora_scale": torch.ones(OUT, 1)}

    file = file_with(tmp_path, tensors)

    assert file.low_rank_only
    assert file.rank == RANK
    assert "DoRA" in file.warnings[0]


@pytest.mark.parametrize(
    ("tensors", "problem", "text"),
    [
        ({"lora_unet_head_head.lokr_w1": torch.zeros(2, 2)}, "no_match", "LoHa or LoKr"),
        (pair("lora_te1_text_model"), "no_match", "for a text encoder"),
        ({"head.head.lora_A.weight": torch.zeros(RANK, IN)}, "no_match", "without the other half"),
        ({**pair("head.head"), "head.head.alpha": torch.zeros(2)}, "bad_alpha", "not one number"),
        ({"head.head.diff": torch.zeros(OUT, IN + 1)}, "shape_mismatch", "not \\[6, 4\\]"),
        (
            {"head.head.lora_A.weight": torch.zeros(()), "head.head.lora_B.weight": torch.zeros(OUT, 1)},
            "shape_mismatch",
            "is \\[\\]",
        ),
    ],
    ids=["lokr", "text_encoder", "half", "alpha", "difference", "scalar"],
)
def test_a_file_without_use_is_refused(
    tensors: dict[str, Tensor], problem: str, text: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=rf"LoRA 'lora.safetensors' \({problem}\): .*{text}"):
        file_with(tmp_path, tensors)


def test_two_adapters_in_one_file_do_not_mix(tmp_path: Path) -> None:
    first = pair("head.head", "lora_A.default.weight", "lora_B.default.weight")
    second = pair("head.head", "lora_A.other.weight", "lora_B.other.weight")

    layer = file_with(tmp_path, {**first, **second}).layers["head.head"]

    assert (layer.down, layer.up) == tuple(first)


def test_a_file_listed_twice_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "lora.safetensors", pair("head.head"))

    with pytest.raises(AdapterError, match="duplicate"):
        user_adapters(base(tmp_path), [ScaledAdapter(path, 1.0)] * 2)


def test_a_sum_that_is_no_number_is_refused(tmp_path: Path) -> None:
    tensors = {key: torch.full_like(value, 1e38) for key, value in pair("head.head").items()}
    checkpoint, path = base(tmp_path), saved(tmp_path / "lora.safetensors", tensors)
    changed = merge(checkpoint, user_adapters(checkpoint, [ScaledAdapter(path, 1.0)])[0])

    with pytest.raises(CheckpointError, match="non_finite"):
        weights(changed)


def test_what_the_training_wrote_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "lora.safetensors", pair("head.head"), {"ss_tag_frequency": "{}"})

    assert look_into(path, SHAPES).metadata == {"ss_tag_frequency": "{}"}
