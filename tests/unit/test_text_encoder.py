"""The UMT5 encoder: what padding may and may not change, sizes from files, float8 weights."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints.checkpoints import checkpoint_shapes
from export.checkpoints.load import load_text_encoder
from export.graphs.layers import Linear
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig, relative_position_bucket
from streaming.checkpoints.files import CheckpointError
from streaming.errors import WanstreamError
from tests.random_weights import randomized

LENGTH = 12
CONFIG = TextEncoderConfig(
    vocab=20, dim=16, dim_attn=24, dim_ffn=20, num_heads=3, num_layers=2, num_buckets=16, seq_len=LENGTH
)
ENCODER = randomized(TextEncoder(CONFIG))


def tokens(length: int, filler: int = 0) -> tuple[Tensor, Tensor]:
    """ids and mask [1, LENGTH] of a prompt of `length` tokens, padded with the id `filler`."""
    ids = torch.arange(1, LENGTH + 1).clamp(max=CONFIG.vocab - 1)
    mask = (torch.arange(LENGTH) < length).long()
    return torch.where(mask > 0, ids, filler)[None], mask[None]


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, LENGTH), filler=st.integers(0, CONFIG.vocab - 1))
def test_padding_ids_do_not_reach_the_prompt(length: int, filler: int) -> None:
    plain, other = ENCODER(*tokens(length)), ENCODER(*tokens(length, filler))

    torch.testing.assert_close(other, plain, rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, LENGTH))
def test_rows_after_the_prompt_are_exactly_zero(length: int) -> None:
    embeds = ENCODER(*tokens(length))

    assert embeds[:, length:].eq(0).all()
    assert embeds[:, :length].ne(0).any(dim=-1).all()


def test_a_shorter_padded_length_gives_the_same_rows() -> None:
    short = TextEncoder(replace(CONFIG, seq_len=8))
    short.load_state_dict(ENCODER.state_dict())
    ids, mask = tokens(5)

    embeds = short(ids[:, :8], mask[:, :8])

    torch.testing.assert_close(embeds[:, :5], ENCODER(ids, mask)[:, :5], rtol=1e-5, atol=1e-5)


def test_prompts_of_a_batch_do_not_touch_each_other() -> None:
    (ids, mask), (long_ids, long_mask) = tokens(3), tokens(9)

    together = ENCODER(torch.cat([ids, long_ids]), torch.cat([mask, long_mask]))

    separate = torch.cat([ENCODER(ids, mask), ENCODER(long_ids, long_mask)])
    torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("distances", "bucket"),
    [
        (range(8, 12), 8),
        (range(12, 16), 9),
        (range(16, 23), 10),
        (range(23, 32), 11),
        (range(32, 46), 12),
        (range(46, 64), 13),
        (range(64, 91), 14),
        (range(91, 513), 15),
    ],
)
def test_far_distances_share_the_buckets_of_the_specification(distances: range, bucket: int) -> None:
    away = torch.tensor(list(distances))

    assert set(relative_position_bucket(-away, 32, 128).tolist()) == {bucket}
    assert set(relative_position_bucket(away, 32, 128).tolist()) == {16 + bucket}


def test_near_distances_have_a_bucket_each() -> None:
    near = torch.arange(-7, 8)

    assert relative_position_bucket(near, 32, 128).tolist() == [7, 6, 5, 4, 3, 2, 1, 0, *range(17, 24)]


def test_the_default_sizes_are_those_of_umt5_xxl() -> None:
    with torch.device("meta"):
        shapes = checkpoint_shapes(TextEncoder(TextEncoderConfig()))

    assert len(shapes) == 242
    assert sum(map(prod, shapes.values())) == 5_680_910_336


def checkpoint(linear_type: torch.dtype) -> dict[str, Tensor]:
    """The encoder's weights under their checkpoint names, those of linear layers in another type."""
    state = dict(ENCODER.state_dict())
    for path, module in ENCODER.named_modules():
        if isinstance(module, Linear):
            state[f"{path}.weight"] = state.pop(f"{path}.weight_t").t().contiguous().to(linear_type)
    return state


def test_a_checkpoint_file_decides_the_sizes(tmp_path: Path) -> None:
    path = tmp_path / "umt5.safetensors"
    save_file(checkpoint(torch.float32), path)

    encoder = load_text_encoder(path, seq_len=LENGTH)

    assert encoder.config == CONFIG
    torch.testing.assert_close(encoder(*tokens(7)), ENCODER(*tokens(7)), rtol=0, atol=0)


def test_float8_weights_are_taken_as_plain_values(tmp_path: Path) -> None:
    state = checkpoint(torch.float8_e4m3fn)
    path = tmp_path / "umt5-fp8.safetensors"
    save_file(state, path)

    encoder = load_text_encoder(path, seq_len=LENGTH)

    weight = encoder.blocks[0].attn.q.weight_t
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, state["blocks.0.attn.q.weight"].float().t(), rtol=0, atol=0)
    similarity = torch.cosine_similarity(encoder(*tokens(7)).flatten(), ENCODER(*tokens(7)).flatten(), dim=0)
    assert similarity > 0.99


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    path = tmp_path / "umt5.safetensors"
    save_file(checkpoint(torch.float32), path)

    embeds = load_text_encoder(path, seq_len=LENGTH, dtype=torch.bfloat16)(*tokens(7))

    assert embeds.dtype == torch.bfloat16
    assert torch.cosine_similarity(embeds.float().flatten(), ENCODER(*tokens(7)).flatten(), dim=0) > 0.999


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"patch_embedding.weight": torch.zeros(2)}, path)

    with pytest.raises(
        CheckpointError, match=r"other\.safetensors' is not a UMT5 encoder: .*token_embedding"
    ):
        load_text_encoder(path, seq_len=LENGTH)


def test_a_config_with_shared_positions_is_refused() -> None:
    with pytest.raises(WanstreamError, match="use UMT5"):
        TextEncoderConfig.from_json({"shared_pos": True})
