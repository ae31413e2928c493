"""Pixel rules: which frames are taken, how they are resized, how numbers become pictures."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import WanstreamError
from streaming.network.pictures import to_pictures
from streaming.network.video import resample_indices, resize, to_model
from tests.frame_groups import TINY_GROUPS, WAN_GROUPS

sizes = st.integers(1, 40)


def pictures(frames: int, height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@given(have=st.integers(1, 200), want=st.integers(1, 200))
def test_frames_are_picked_as_torch_linspace_rounds(have: int, want: int) -> None:
    indices = resample_indices(have, want)

    assert indices == torch.linspace(0, have - 1, want).round().long().tolist()


@pytest.mark.parametrize(("have", "want"), [(0, 12), (12, 0)])
def test_picking_of_or_from_nothing_is_refused(have: int, want: int) -> None:
    with pytest.raises(WanstreamError, match="at least 1"):
        resample_indices(have, want)


@given(height=sizes, width=sizes, new_height=sizes, new_width=sizes, seed=st.integers(0, 99))
def test_resizing_is_bilinear_with_half_pixel_centres_and_without_antialiasing(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    images = pictures(2, height, width, seed)

    resized = resize(images, new_height, new_width)

    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = F.interpolate(channels_first, (new_height, new_width), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resized, expected.permute(0, 2, 3, 1).numpy(), atol=1e-3)
    assert resized.dtype == np.float32


@given(size=sizes, seed=st.integers(0, 99))
def test_resizing_to_the_same_size_changes_nothing(size: int, seed: int) -> None:
    images = pictures(1, size, size, seed)

    np.testing.assert_array_equal(resize(images, size, size), images)


def test_pictures_of_all_sizes_become_one_clip_in_order() -> None:
    small, fitting = np.full((1, 2, 4, 3), 0, np.uint8), np.full((2, 6, 8, 3), 255, np.uint8)

    clip = to_model([small, fitting], height=6, width=8)

    assert clip.shape == (1, 3, 3, 6, 8)
    assert clip.dtype == np.float32
    assert clip.mean(axis=(0, 1, 3, 4)).tolist() == [-1, 1, 1]


def test_colour_channels_stay_red_green_blue() -> None:
    red = np.zeros((1, 1, 1, 3), np.uint8)
    red[..., 0] = 255

    assert to_model([red], 1, 1).ravel().tolist() == [1, -1, -1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_working_type_is_kept(dtype: npt.DTypeLike) -> None:
    assert to_model([pictures(1, 4, 4, 0)], 8, 8, dtype).dtype == dtype


@pytest.mark.parametrize(("value", "level"), [(-2, 0), (-1, 0), (0, 127), (0.999, 254), (1, 255), (7, 255)])
def test_output_is_clamped_and_truncated(value: float, level: int) -> None:
    frames = torch.full((1, 3, 1, 1, 1), value)

    assert to_pictures(frames).ravel().tolist() == [level] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_are_those_of_float32_arithmetic_by_the_reference(dtype: torch.dtype) -> None:
    frames = (torch.linspace(-1.1, 1.1, 3 * 2 * 64 * 64).to(dtype)).reshape(1, 3, 2, 64, 64)
    given = frames.clone()

    levels = to_pictures(frames)

    unit = np.clip(frames.float().numpy(), -1, 1) / np.float32(2) + np.float32(0.5)
    assert levels.tobytes() == (unit * np.float32(255))[0].astype(np.uint8).transpose(1, 2, 3, 0).tobytes()
    assert torch.equal(frames, given)  # the loop goes on to use them


@given(frames=st.integers(1, 3), height=sizes, width=sizes, seed=st.integers(0, 99))
def test_a_picture_that_goes_in_and_out_loses_at_most_one_level(
    frames: int, height: int, width: int, seed: int
) -> None:
    images = pictures(frames, height, width, seed)

    back: npt.NDArray[Any] = to_pictures(torch.from_numpy(to_model([images], height, width)))

    assert back.shape == images.shape
    difference = images.astype(int) - back
    assert difference.min() >= 0  # truncation never brightens
    assert difference.max() <= 1


@given(frames=st.integers(1, 60), start=st.booleans())
def test_the_wan_vae_encodes_full_groups_only(frames: int, start: bool) -> None:
    if not start and frames < 4:
        with pytest.raises(WanstreamError, match="send at least 4"):
            WAN_GROUPS.cut(frames, start)
        return

    cut = WAN_GROUPS.cut(frames, start)

    assert cut.repeats == 0
    assert cut.first == (1 if start else 0)
    assert cut.later % 4 == 0
    assert 0 <= frames - cut.first - cut.later < 4


@given(frames=st.integers(1, 60), start=st.booleans())
def test_the_tiny_vae_encodes_all_frames_and_fills_the_last_group(frames: int, start: bool) -> None:
    cut = TINY_GROUPS.cut(frames, start)

    assert cut.first == (4 if start else 0)
    assert cut.later % 4 == 0
    assert 0 <= cut.repeats < 4
    assert cut.first + cut.later == frames + cut.repeats


@pytest.mark.parametrize("groups", [WAN_GROUPS, TINY_GROUPS])
@pytest.mark.parametrize("start", [True, False])
def test_no_frames_cannot_be_encoded(groups: Any, start: bool) -> None:
    with pytest.raises(WanstreamError, match="0 video frames are too few"):
        groups.cut(0, start)
